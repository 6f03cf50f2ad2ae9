//! The lines of a scenario file as JSON, and their conversion to what a replay needs.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, anyhow, bail, ensure};
use seam::abi::{MAX_HKIDS, MAX_PACKAGES};
use serde::Deserialize;
use serde::de::IgnoredAny;
use stub_module::host::{Conditions, Config};
use stub_module::{PconfigError, Point, Release};

use super::number::{self, Number};
use super::registers::Registers;
use super::scenario::{Changes, Dump, Exit, Patch};

/// Maximum number of logical processors of a platform.
const MAX_LPS: usize = 4096;
/// Maximum size in bytes of the memory that one step may write or read.
const MAX_STRETCH: u64 = 64 << 20;

// Every structure refuses keys that it does not list, so that a replay can't pass over what a recording states.

/// The header, as in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    pub scenario: String,
    pub format: Option<String>,
    pub module: Option<RawModule>,
    #[serde(alias = "platform_model")]
    pub machine: RawMachine,
    /// The MSRs that the recorded TD accesses without an exit.
    pub msr_native: Option<BTreeMap<String, Vec<String>>>,
    #[serde(default, rename = "note")]
    _note: IgnoredAny,
    #[serde(default, rename = "platform")]
    _platform: IgnoredAny,
    #[serde(default, rename = "td_config")]
    _td_config: IgnoredAny,
}

/// The version of the module that answered.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawModule {
    pub major: u64,
    pub minor: u64,
    pub update: u64,
    #[serde(default, rename = "build")]
    _build: IgnoredAny,
}

impl RawModule {
    /// Returns the release.
    pub fn release(&self) -> Result<Release> {
        let Self {
            major,
            minor,
            update,
            ..
        } = self;
        let version = format!("{major}.{minor}.{update:02}");
        version.parse().map_err(|error: String| anyhow!(error))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawMachine {
    pub lps: Option<Number>,
    pub lp_to_package: Option<Vec<Number>>,
    pub cmrs: Option<Vec<(Number, Number)>>,
    pub max_pa: Option<Number>,
    pub keyid_bits: Option<Number>,
    pub num_mktme_keyids: Option<Number>,
    pub num_tdx_keyids: Option<Number>,
    pub wbinvd_sub_blocks: Option<Number>,
    pub cpuid_fms: Option<Number>,
    pub seamrr_base: Option<Number>,
    pub seamrr_size: Option<Number>,
    pub rng_seed: Option<Number>,
    #[serde(default)]
    pub msrs: BTreeMap<String, Number>,
    #[serde(default)]
    pub lp_msrs: BTreeMap<String, Number>,
    #[serde(default, rename = "packages")]
    _packages: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawStep {
    pub i: Option<u64>,
    pub lp: u32,
    pub leaf_name: Option<String>,
    #[serde(rename = "in")]
    pub input: Registers,
    pub out: Registers,
    #[serde(default)]
    pub mem_in: Vec<RawPatch>,
    #[serde(default)]
    pub mem_out: Vec<RawDump>,
    pub repeat: Option<u64>,
    #[serde(default)]
    pub env: RawEnvironment,
    pub guest: Option<Vec<Exit>>,
    #[serde(default, deserialize_with = "present")]
    pub entry: Option<Option<Changes>>,
    pub during: Option<RawDuring>,
    #[serde(default)]
    pub xmm_in: BTreeMap<String, String>,
    #[serde(default)]
    pub xmm_out: BTreeMap<String, String>,
    #[serde(default)]
    pub volatile: BTreeSet<String>,
    #[serde(default, rename = "note")]
    _note: IgnoredAny,
    #[serde(default, rename = "status_name")]
    _status_name: IgnoredAny,
    #[serde(default, rename = "status_detail")]
    _status_detail: IgnoredAny,
    #[serde(default, rename = "exit_reason")]
    _exit_reason: IgnoredAny,
    /// The P-SEAMLDR installs a module: not a call.
    pub reload: Option<String>,
    /// The module that it installs, if it is another one.
    pub module: Option<RawModule>,
    /// The module shuts down in this call.
    #[serde(default)]
    pub shutdown: bool,
    /// The value that the module writes to the x2APIC's ICR in this call.
    pub icr: Option<Number>,
}

/// Distinguishes a key whose value is null from a missing key.
fn present<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<Changes>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawPatch {
    pub pa: Number,
    pub hex: Option<String>,
    pub fill: Option<String>,
    pub value: Option<Number>,
    pub len: Option<Number>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawDump {
    pub pa: Number,
    pub gpa: Option<Number>,
    pub len: Option<Number>,
    pub hex: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawEnvironment {
    pub intr_at_check: Option<Number>,
    pub rdrand_fail: Option<Number>,
    pub rdseed_fail: Option<Number>,
    pub pconfig_fail: Option<Number>,
    pub pconfig_code: Option<Number>,
    #[serde(default)]
    pub msrs: BTreeMap<String, Number>,
    pub seamreport_status: Option<Number>,
    pub verifyreport_status: Option<Number>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawDuring {
    pub event: String,
    pub nth: Option<Number>,
    pub steps: Vec<RawStep>,
}

impl RawMachine {
    pub fn config(self) -> Result<Config> {
        let usual = Config::default();
        let narrow = |what, number: Option<Number>, usual: u32| match number {
            Some(number) => number.narrow(what),
            None => Ok(usual),
        };
        let lp_to_package = match self.lp_to_package {
            Some(packages) => packages
                .into_iter()
                .map(|package| package.narrow("package"))
                .collect::<Result<Vec<_>>>()?,
            None => usual.lp_to_package,
        };
        let lps = self.lps.map_or(lp_to_package.len(), |lps| lps.0 as usize);
        ensure!(
            lps == lp_to_package.len() && (1..=MAX_LPS).contains(&lps),
            "{lps} logical processors, but lp_to_package has {}",
            lp_to_package.len()
        );
        if let Some(package) = lp_to_package.iter().max() {
            ensure!(
                (*package as usize) < MAX_PACKAGES,
                "package {package} is beyond the last of {MAX_PACKAGES}"
            );
        }
        let keyid_bits = narrow("keyid_bits", self.keyid_bits, usual.keyid_bits)?;
        ensure!(keyid_bits <= 15, "{keyid_bits} KeyID bits are more than 15");
        let max_pa = narrow("max_pa", self.max_pa, usual.max_pa)?;
        ensure!(
            (36..=52).contains(&max_pa),
            "{max_pa} physical address bits are not 36 to 52"
        );
        let num_tdx_keyids = narrow("num_tdx_keyids", self.num_tdx_keyids, usual.num_tdx_keyids)?;
        ensure!(
            num_tdx_keyids as usize <= MAX_HKIDS,
            "{num_tdx_keyids} private HKIDs are more than {MAX_HKIDS}"
        );
        let seamrr = (
            self.seamrr_base.map_or(usual.seamrr.0, |base| base.0),
            self.seamrr_size.map_or(usual.seamrr.1, |size| size.0),
        );
        ensure!(
            seamrr.0.checked_add(seamrr.1).is_some(),
            "the SEAM range goes beyond the last address"
        );
        let mut lp_msrs = BTreeMap::new();
        for (key, value) in self.lp_msrs {
            let (lp, msr) = key
                .split_once(':')
                .with_context(|| format!("`{key}` is not `lp:address`"))?;
            let lp = Number::parse(lp)?.narrow("logical processor")?;
            lp_msrs.insert((lp, Number::parse(msr)?.narrow("MSR")?), value.0);
        }
        Ok(Config {
            release: usual.release,
            lp_to_package,
            cmrs: match self.cmrs {
                Some(cmrs) => cmrs
                    .into_iter()
                    .map(|(base, size)| (base.0, size.0))
                    .collect(),
                None => usual.cmrs,
            },
            max_pa,
            keyid_bits,
            num_mktme_keyids: narrow(
                "num_mktme_keyids",
                self.num_mktme_keyids,
                usual.num_mktme_keyids,
            )?,
            num_tdx_keyids,
            seamrr,
            wbinvd_sub_blocks: narrow(
                "wbinvd_sub_blocks",
                self.wbinvd_sub_blocks,
                usual.wbinvd_sub_blocks,
            )?,
            cpuid_fms: narrow("cpuid_fms", self.cpuid_fms, usual.cpuid_fms)?,
            rng_seed: self.rng_seed.map_or(usual.rng_seed, |seed| seed.0),
            msrs: msr_values(self.msrs)?,
            lp_msrs,
            cpuids: BTreeMap::new(),
            scales_tsc: true,
            tsc_leaf: None,
            books_guards: false,
        })
    }
}

impl RawEnvironment {
    pub fn conditions(self) -> Result<Conditions> {
        let count = |what, number: Option<Number>| number.unwrap_or_default().narrow(what);
        let pconfig_failures = match self.pconfig_fail {
            None => None,
            Some(failures) => {
                let error = match self.pconfig_code.unwrap_or(Number(5)).0 {
                    2 => PconfigError::Entropy,
                    5 => PconfigError::Busy,
                    other => bail!("PCONFIG code {other} is neither 2 nor 5"),
                };
                Some((failures.narrow("pconfig_fail")?, error))
            }
        };
        Ok(Conditions {
            interrupt_at_check: match self.intr_at_check {
                Some(check) => Some(check.narrow("intr_at_check")?),
                None => None,
            },
            rdrand_failures: count("rdrand_fail", self.rdrand_fail)?,
            rdseed_failures: count("rdseed_fail", self.rdseed_fail)?,
            pconfig_failures,
            msrs: msr_values(self.msrs)?,
            seamreport_status: self.seamreport_status.unwrap_or_default().0,
            // The recorded CPU accepts every report unless the recording says otherwise.
            verifyreport_status: Some(self.verifyreport_status.unwrap_or_default().0),
        })
    }
}

impl RawPatch {
    pub fn patch(self) -> Result<Patch> {
        let pa = self.pa.0;
        let len = || match self.len {
            Some(Number(len)) if len <= MAX_STRETCH => Ok(len as usize),
            Some(Number(len)) => bail!("{len:#x} bytes of memory are more than {MAX_STRETCH:#x}"),
            None => bail!("a fill needs a length"),
        };
        let bytes = match (self.hex.as_deref(), self.fill.as_deref()) {
            (Some(hex), None) => number::bytes(hex)?,
            (None, Some("byte")) => {
                let value = self.value.context("a fill with a byte needs a value")?;
                let value = u8::try_from(value.0).context("a fill value exceeds a byte")?;
                vec![value; len()?]
            }
            (None, Some("zero")) => vec![0; len()?],
            (None, Some("pa_qwords")) => (0..len()? as u64)
                .step_by(8)
                .flat_map(|offset| pa.wrapping_add(offset).to_le_bytes())
                .take(len()?)
                .collect(),
            (None, Some(other)) => bail!("memory can't be filled with `{other}`"),
            (Some(_), Some(_)) | (None, None) => bail!("memory needs either `hex` or `fill`"),
        };
        Ok(Patch { pa, bytes })
    }
}

impl RawDump {
    pub fn dump(self) -> Result<Dump> {
        let bytes = number::bytes(&self.hex)?;
        if let Some(Number(len)) = self.len {
            ensure!(
                len == bytes.len() as u64,
                "mem_out says {len} bytes and lists {}",
                bytes.len()
            );
        }
        Ok(Dump {
            pa: self.pa.0,
            gpa: self.gpa.map(|gpa| gpa.0),
            bytes,
        })
    }
}

fn msr_values(msrs: BTreeMap<String, Number>) -> Result<BTreeMap<u32, u64>> {
    msrs.into_iter()
        .map(|(msr, value)| Ok((Number::parse(&msr)?.narrow("MSR")?, value.0)))
        .collect()
}

pub fn xmm_file(named: &BTreeMap<String, String>) -> Result<[u128; 16]> {
    let mut file = [0; 16];
    for (name, text) in named {
        let register = name
            .parse::<usize>()
            .ok()
            .and_then(|index| file.get_mut(index))
            .with_context(|| format!("there is no XMM register {name}"))?;
        *register = number::xmm(text)?;
    }
    Ok(file)
}

pub fn point(event: &str) -> Result<Point> {
    Ok(match event {
        "guest" => Point::Guest,
        "pconfig" => Point::Pconfig,
        "wbnoinvdp" => Point::Wbnoinvdp,
        "movdir64b" => Point::Movdir64b,
        "sha384" => Point::Sha384,
        "rdtsc" => Point::Rdtsc,
        "intr_check" => Point::IntrCheck,
        "invept" => Point::Invept,
        "clflush" => Point::Clflush,
        other => bail!("`{other}` is no point inside a call"),
    })
}
