//! Translates a TD's configuration into TD_PARAMS, within the module's capabilities.

use core::fmt;

use seam::abi::{Attributes, ConfigFlags, TdParams, Xfam};
use zerocopy::FromZeros;

use super::capabilities::{Capabilities, CpuidConfig, Place};
use super::features;
pub use super::unsupported::Unsupported;

/// Four levels of S-EPT, write-back.
///
/// Source: TDX Module ABI 1.5, EPTP_CONTROLS.
const EPTP_FOUR_LEVELS: u64 = 0x1E;
/// Unit of TSC_FREQUENCY in MHz.
const TSC_UNIT_MHZ: u16 = 25;
/// Valid values of TSC_FREQUENCY.
const TSC_UNITS: core::ops::RangeInclusive<u16> = 4..=400;
/// The CPUID leaf of family, features and number of logical processors. That of further features follows.
const CPUID_FEATURES: u32 = 1;
const CPUID_MORE_FEATURES: u32 = 7;
/// The CPUID leaf of the levels of processors.
const CPUID_TOPOLOGY: u32 = 0x1F;
/// The CPUID leaf of address widths.
const CPUID_WIDTHS: u32 = 0x8000_0008;
/// Width in bits of guest-physical addresses with four levels of S-EPT.
const GPA_BITS: u8 = 48;
/// EBX of CPUID leaf 7: HLE and RTM. Modules accept both or none, but a CPU may have one.
const TSX: u32 = 1 << 4 | 1 << 11;

/// Values of this machine for settings that the operator leaves open.
pub trait Native {
    /// Returns the host's CPUID: EAX, EBX, ECX, EDX.
    fn cpuid(&self, leaf: u32, sub_leaf: u32) -> [u32; 4];

    /// Returns the frequency of the host's TSC in MHz.
    fn tsc_mhz(&self) -> u32;
}

/// The CPUID values of a leaf that the module refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedCpuid {
    /// The leaf.
    leaf: u32,
    /// The sub-leaf.
    sub_leaf: Option<u32>,
    /// Bits of EAX, EBX, ECX and EDX that the TD was to have.
    asked: [u32; 4],
    /// Those of them that this CPU does not have.
    lacking: [u32; 4],
}

impl RefusedCpuid {
    /// Finds the values that TDH.MNG.INIT refused, by the leaf and sub-leaf that it returns.
    pub fn find(
        place: u64,
        params: &TdParams,
        module: &Capabilities,
        native: &(impl Native + ?Sized),
    ) -> Option<Self> {
        let Place(leaf, sub_leaf) = Place::from_module(place);
        let is_it = |config: &CpuidConfig| (config.leaf, config.sub_leaf) == (leaf, sub_leaf);
        let index = module.cpuid.iter().position(is_it)?;
        let asked = *params.cpuid_config.get(index)?;
        let has = native.cpuid(leaf, sub_leaf.unwrap_or(0));
        let mut lacking = core::array::from_fn(|i| asked[i] & !has[i]);
        if leaf == CPUID_FEATURES {
            // The model and the number of processors are numbers, not features.
            lacking[..2].fill(0);
        }
        Some(Self {
            leaf,
            sub_leaf,
            asked,
            lacking,
        })
    }
}

impl fmt::Display for RefusedCpuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cpuid: {}", Place(self.leaf, self.sub_leaf))?;
        let is_lacking = self.lacking != [0; 4];
        let bits = if is_lacking { self.lacking } else { self.asked };
        f.write_str(if is_lacking {
            ", where this CPU does not have"
        } else {
            ", with the value"
        })?;
        let registers = ["eax", "ebx", "ecx", "edx"].into_iter().zip(bits);
        let mut separator = " ";
        for (register, bits) in registers.filter(|(_, bits)| !is_lacking || *bits != 0) {
            write!(f, "{separator}{register} {bits:#x}")?;
            separator = ", ";
        }
        Ok(())
    }
}

/// Returns the parameters of a TD.
///
/// # Errors
/// [`Unsupported`], with the key of `[[td]]` that this module does not support.
pub fn params(
    td: &config::Td,
    module: &Capabilities,
    native: &(impl Native + ?Sized),
) -> Result<TdParams, Unsupported> {
    if td.vcpus > module.max_vcpus {
        return Err(Unsupported::Vcpus {
            wanted: td.vcpus,
            most: module.max_vcpus,
        });
    }
    let mut params = TdParams::new_zeroed();
    params.attributes = attributes(td, module)?;
    params.xfam = xfam(td.xfam.as_ref(), module)?;
    params.max_vcpus = td.vcpus;
    params.eptp_controls = EPTP_FOUR_LEVELS;
    params.config_flags = config_flags(td, module)?;
    widths(td, module, native)?;
    ve_reduction(td, module, native)?;
    params.tsc_frequency = match td.tsc_mhz {
        Some(mhz) => mhz / TSC_UNIT_MHZ,
        None => tsc_units(native.tsc_mhz()),
    };
    params.mrconfigid = td.mrconfigid;
    params.mrowner = td.mrowner;
    params.mrownerconfig = td.mrownerconfig;
    cpuid(td, module, native, &mut params.cpuid_config)?;
    Ok(params)
}

fn attributes(td: &config::Td, module: &Capabilities) -> Result<Attributes, Unsupported> {
    let wanted = [
        (td.debug, Attributes::DEBUG, "debug"),
        (
            td.sept_ve_disable,
            Attributes::SEPT_VE_DISABLE,
            "sept_ve_disable",
        ),
        (td.migratable, Attributes::MIGRATABLE, "migratable"),
        (td.pks, Attributes::PKS, "pks"),
        (td.perfmon, Attributes::PERFMON, "perfmon"),
        (td.icssd, Attributes::ICSSD, "icssd"),
        (td.lass, Attributes::LASS, "lass"),
    ];
    let mut value = Attributes::empty();
    for (is_wanted, bit, name) in wanted {
        value.set(bit, is_wanted);
        if module.attributes.forbidden(value).contains(bit) {
            return Err(Unsupported::Feature(name));
        }
    }
    if td.migratable && (td.debug || td.perfmon) {
        return Err(Unsupported::Migratable);
    }
    if td.icssd && td.perfmon {
        return Err(Unsupported::Icssd);
    }
    let missing = module.attributes.missing(value);
    if missing.is_empty() {
        Ok(value)
    } else {
        Err(Unsupported::AttributesMissing(missing))
    }
}

/// Returns the flags that the module requires, NO_RBP_MOD and MAXPA_VIRT. A default of NO_RBP_MOD yields to the module.
fn config_flags(td: &config::Td, module: &Capabilities) -> Result<ConfigFlags, Unsupported> {
    let bit = ConfigFlags::NO_RBP_MOD;
    let mut wanted = ConfigFlags::empty();
    wanted.set(bit, td.no_rbp_mod());
    if td.maxpa.is_some() {
        wanted |= ConfigFlags::MAXPA_VIRT;
    }
    let value = module.config_flags.one | wanted & module.config_flags.zero;
    if td.no_rbp_mod.is_some() && value.contains(bit) != wanted.contains(bit) {
        return Err(Unsupported::NoRbpMod(value.contains(bit)));
    }
    Ok(value)
}

/// Checks the physical address width that the TD's CPUID shows.
fn widths(
    td: &config::Td,
    module: &Capabilities,
    native: &(impl Native + ?Sized),
) -> Result<(), Unsupported> {
    let Some(wanted) = td.maxpa else {
        return Ok(());
    };
    let least = module.min_virt_maxpa;
    let least = least.filter(|_| module.config_flags.zero.contains(ConfigFlags::MAXPA_VIRT));
    let least = least.ok_or(Unsupported::Feature("maxpa"))?;
    let most = GPA_BITS.min(native.cpuid(CPUID_WIDTHS, 0)[0] as u8);
    if (least..=most).contains(&wanted) {
        Ok(())
    } else {
        Err(Unsupported::MaxPa {
            wanted,
            least,
            most,
        })
    }
}

/// Checks the keys about #VE reduction.
fn ve_reduction(
    td: &config::Td,
    module: &Capabilities,
    native: &(impl Native + ?Sized),
) -> Result<(), Unsupported> {
    if td.ve_reduction == Some(true) && !module.ve_reduction {
        return Err(Unsupported::Feature("ve_reduction"));
    }
    let Some(kept) = &td.paravirt else {
        return Ok(());
    };
    if !module.ve_reduction {
        return Err(Unsupported::Feature("paravirt"));
    }
    let lacks = |feature: &&config::Paravirt| {
        let bits = features::cpuid_bits(**feature);
        native.cpuid(bits.leaf, 0)[bits.register] & bits.bits != bits.bits
    };
    match kept.iter().find(lacks) {
        Some(feature) => Err(Unsupported::Absent {
            key: "paravirt",
            feature: feature.name(),
        }),
        None => Ok(()),
    }
}

fn xfam(wanted: Option<&config::Xfam>, module: &Capabilities) -> Result<Xfam, Unsupported> {
    let value = match wanted {
        None => return Ok(Xfam::USUAL & module.xfam.zero | module.xfam.one),
        Some(config::Xfam::Bits(bits)) => Xfam::from_bits_retain(*bits),
        Some(config::Xfam::Features(list)) => list.iter().copied().map(features::xfam).collect(),
    };
    let forbidden = module.xfam.forbidden(value);
    if !forbidden.is_empty() {
        return Err(Unsupported::XfamBits(forbidden));
    }
    let missing = module.xfam.missing(value);
    if !missing.is_empty() {
        return Err(Unsupported::XfamMissing(missing));
    }
    for group in [Xfam::AVX512, Xfam::CET, Xfam::AMX] {
        if value.intersects(group) && !value.contains(group) {
            return Err(Unsupported::XfamGroup(group));
        }
    }
    if value.intersects(Xfam::AVX512) && !value.contains(Xfam::AVX) {
        return Err(Unsupported::XfamGroup(Xfam::AVX512 | Xfam::AVX));
    }
    Ok(value)
}

/// Returns the TSC frequency of a TD that is nearest to the host's.
fn tsc_units(mhz: u32) -> u16 {
    let unit = u32::from(TSC_UNIT_MHZ);
    let units = (mhz + unit / 2) / unit;
    units.clamp((*TSC_UNITS.start()).into(), (*TSC_UNITS.end()).into()) as u16
}

/// Fills in CPUID: the host's own values for the bits that it can configure, overridden by the operator's.
fn cpuid(
    td: &config::Td,
    module: &Capabilities,
    native: &(impl Native + ?Sized),
    into: &mut [[u32; 4]],
) -> Result<(), Unsupported> {
    for wanted in &td.cpuid {
        if !module.cpuid.iter().any(|config| is_about(wanted, config)) {
            return Err(Unsupported::CpuidLeaf {
                leaf: wanted.leaf,
                sub_leaf: wanted.subleaf,
            });
        }
    }
    for (config, value) in module.cpuid.iter().zip(into) {
        *value = native.cpuid(config.leaf, config.sub_leaf.unwrap_or(0));
        if config.leaf == CPUID_FEATURES {
            // EAX: zero stands for the family, model and stepping of this machine. EBX 23:16: logical processors.
            value[0] = 0;
            value[1] = u32::from(td.vcpus).min(0xFF) << 16;
        }
        if config.leaf == CPUID_TOPOLOGY {
            // Zero stands for the topology of this machine.
            *value = [0; 4];
        }
        if config.leaf == CPUID_WIDTHS
            && let Some(maxpa) = td.maxpa
        {
            value[0] = maxpa.into();
        }
        let is_first = config.sub_leaf.unwrap_or(0) == 0;
        if let Some(kept) = &td.paravirt
            && is_first
        {
            features::keep(kept, config.leaf, value);
        }
        for (register, mask) in value.iter_mut().zip(config.mask) {
            *register &= mask;
        }
        if config.leaf == CPUID_MORE_FEATURES && is_first && value[1] & TSX != TSX {
            value[1] &= !TSX;
        }
        for wanted in td.cpuid.iter().filter(|wanted| is_about(wanted, config)) {
            override_with(wanted, config, value)?;
        }
    }
    Ok(())
}

fn is_about(wanted: &config::Cpuid, config: &CpuidConfig) -> bool {
    wanted.leaf == config.leaf && wanted.subleaf == config.sub_leaf
}

fn override_with(
    wanted: &config::Cpuid,
    config: &CpuidConfig,
    value: &mut [u32; 4],
) -> Result<(), Unsupported> {
    let registers = [
        ("eax", wanted.eax),
        ("ebx", wanted.ebx),
        ("ecx", wanted.ecx),
        ("edx", wanted.edx),
    ];
    for (((name, wanted), mask), value) in registers.into_iter().zip(config.mask).zip(value) {
        let Some(wanted) = wanted else {
            continue;
        };
        if wanted & !mask != 0 {
            return Err(Unsupported::CpuidBits {
                leaf: config.leaf,
                sub_leaf: config.sub_leaf,
                register: name,
                bits: wanted & !mask,
            });
        }
        *value = wanted;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use alloc::{format, string::ToString, vec, vec::Vec};

    use super::*;
    use crate::td::capabilities::Fixed;

    struct Machine;

    impl Native for Machine {
        fn cpuid(&self, leaf: u32, _: u32) -> [u32; 4] {
            match leaf {
                CPUID_WIDTHS => [0x3934, 0, 0, 0],
                _ => [leaf | 0xF00, u32::MAX, u32::MAX, 0x55],
            }
        }

        fn tsc_mhz(&self) -> u32 {
            2111
        }
    }

    fn module() -> Capabilities {
        let entry = |leaf, sub_leaf, mask| CpuidConfig {
            leaf,
            sub_leaf,
            mask,
        };
        Capabilities {
            attributes: Fixed {
                zero: Attributes::DEBUG
                    | Attributes::SEPT_VE_DISABLE
                    | Attributes::MIGRATABLE
                    | Attributes::PERFMON,
                one: Attributes::empty(),
            },
            xfam: Fixed {
                zero: Xfam::from_bits_retain(0x6_DBE7),
                one: Xfam::X87 | Xfam::SSE,
            },
            config_flags: Fixed {
                zero: ConfigFlags::from_bits_retain(0xF),
                one: ConfigFlags::empty(),
            },
            cpuid: vec![
                entry(1, None, [0x0FFF_3FFF, 0x00FF_0000, 0x8, 0]),
                entry(7, Some(0), [0, 0x20, 0, u32::MAX]),
                entry(CPUID_WIDTHS, None, [0xFF, 0, 0, 0]),
            ],
            max_vcpus: 8,
            min_virt_maxpa: Some(45),
            tdcx_pages: 6,
            tdvps_pages: 6,
            topology_enum: false,
            ve_reduction: true,
        }
    }

    fn td(more: &str) -> config::Td {
        let text = format!(
            "[[file]]\nname = \"f\"\npath = \"f\"\n[[td]]\nname = \"a\"\nimage = \"f\"\nmemory = \"2M\"\n{more}"
        );
        config::parse(text.as_bytes()).unwrap().td.remove(0)
    }

    fn of(more: &str) -> Result<TdParams, Unsupported> {
        params(&td(more), &module(), &Machine)
    }

    #[test]
    fn open_settings_take_the_machines_values() {
        let params = of("vcpus = 4\n").unwrap();
        assert_eq!(params.attributes, Attributes::SEPT_VE_DISABLE);
        // x87, SSE, AVX, AVX-512, PKRU and AMX: neither PT nor CET, UINTR and LBR, which this module supports too.
        assert_eq!((params.xfam.bits(), params.max_vcpus), (0x6_02E7, 4));
        assert_eq!(params.eptp_controls, 0x1E);
        assert!(params.config_flags.is_empty(), "an image may pass RBP");
        assert_eq!(params.tsc_frequency, 84);
        assert_eq!(params.cpuid_config[0], [0, 4 << 16, 8, 0]);
        assert_eq!(params.cpuid_config[1], [0, 0x20, 0, 0x55]);
        assert_eq!(params.cpuid_config[2], [52, 0, 0, 0]);
        assert_eq!(params.cpuid_config[3], [0; 4]);
    }

    #[test]
    fn a_refused_leaf_is_told_with_the_bits_that_the_cpu_lacks() {
        let wanted = "[[td.cpuid]]\nleaf = 7\nsubleaf = 0\nebx = 0\nedx = 0x1F\n";
        let params = of(wanted).unwrap();
        let refused = |place| RefusedCpuid::find(place, &params, &module(), &Machine);
        assert_eq!(
            refused(7).unwrap().to_string(),
            "cpuid: leaf 0x7, subleaf 0x0, where this CPU does not have edx 0xa"
        );
        let model = refused(0xFFFF_FFFF_0000_0001).unwrap().to_string();
        let start = "cpuid: leaf 0x1, with the value eax 0x0, ebx 0x10000, ";
        assert!(model.starts_with(start), "{model}");
        assert_eq!(refused(8), None);
    }

    #[test]
    fn a_td_gets_no_half_of_tsx() {
        let ebx = |mask| {
            let mut module = module();
            module.cpuid[1].mask[1] = mask;
            params(&td(""), &module, &Machine).map(|params| params.cpuid_config[1][1])
        };
        assert_eq!(ebx(TSX), Ok(TSX));
        // A module on a CPU without HLE lets the host configure RTM only.
        assert_eq!(ebx(1 << 11), Ok(0));
    }

    #[test]
    fn the_parameters_follow_the_configuration() {
        let params = of(
            "debug = true\nsept_ve_disable = false\nno_rbp_mod = true\nxfam = 0xE7\ntsc_mhz = 1000\n\
             [[td.cpuid]]\nleaf = 7\nsubleaf = 0\nebx = 0\nedx = 7\n",
        )
        .unwrap();
        assert_eq!(params.attributes, Attributes::DEBUG);
        assert_eq!(params.config_flags, ConfigFlags::NO_RBP_MOD);
        assert_eq!((params.xfam.bits(), params.tsc_frequency), (0xE7, 40));
        assert_eq!(params.cpuid_config[1], [0, 0, 0, 7]);
    }

    #[test]
    fn an_unsupported_setting_is_refused_with_its_key() {
        let cases = [
            ("pks = true\n", "pks: "),
            ("icssd = true\n", "icssd: "),
            ("lass = true\n", "lass: "),
            ("migratable = true\ndebug = true\n", "migratable: "),
            ("migratable = true\nperfmon = true\n", "migratable: "),
            (
                "xfam = 0xB\n",
                "xfam: this TDX module does not support BNDREGS (0x8)",
            ),
            ("xfam = 0x1\n", "xfam: every TD must have SSE (0x2)"),
            ("xfam = [\"sse\"]\n", "xfam: every TD must have X87 (0x1)"),
            (
                "xfam = [\"x87\", \"sse\", \"apx\"]\n",
                "xfam: this TDX module does not support APX (0x80000)",
            ),
            (
                "xfam = [\"x87\", \"sse\", \"avx512\"]\n",
                "xfam: AVX, OPMASK, ZMM_HI256, HI16_ZMM (0xe4) must be",
            ),
            (
                "maxpa = 44\n",
                "maxpa: 44 is configured, and a TD on this machine may have 45 to 48",
            ),
            (
                "paravirt = [\"mtrr\"]\n",
                "paravirt: this CPU does not have mtrr",
            ),
            (
                "xfam = 0x27\n",
                "xfam: OPMASK, ZMM_HI256, HI16_ZMM (0xe0) must be",
            ),
            (
                "xfam = 0xE3\n",
                "xfam: AVX, OPMASK, ZMM_HI256, HI16_ZMM (0xe4) must be",
            ),
            (
                "vcpus = 9\n",
                "vcpus: 9 are configured, and this TDX module supports at most 8",
            ),
            ("[[td.cpuid]]\nleaf = 2\n", "cpuid: "),
            ("[[td.cpuid]]\nleaf = 7\n", "cpuid: "),
            (
                "[[td.cpuid]]\nleaf = 7\nsubleaf = 0\nebx = 0x30\n",
                "cpuid: this TDX module does not let the host configure the bits 0x10 of ebx in leaf 0x7, subleaf \
                 0x0",
            ),
        ];
        for (text, start) in cases {
            let refused = of(text).unwrap_err().to_string();
            assert!(refused.starts_with(start), "{refused}");
        }
        let mut strange = module();
        strange.attributes.one = Attributes::KL | Attributes::from_bits_retain(1 << 8);
        let refused = params(&td(""), &strange, &Machine).unwrap_err().to_string();
        assert!(
            refused.starts_with("attributes: this TDX module requires bit 8, KL (0x80000100)"),
            "{refused}"
        );
    }

    #[test]
    fn features_are_named_in_any_order() {
        let bits = |list: &str| of(&format!("xfam = [{list}]\n")).map(|params| params.xfam.bits());
        assert_eq!(bits(r#""sse", "x87""#), Ok(3));
        assert_eq!(
            bits(r#""x87", "sse", "avx", "avx512", "pkru", "amx""#),
            Ok(0x6_02E7)
        );
        assert_eq!(
            bits(r#""x87", "sse", "pt", "cet", "uintr", "lbr", "x87""#),
            Ok(0xD903)
        );
    }

    #[test]
    fn a_guest_is_told_the_width_that_the_operator_chooses() {
        let params = of("maxpa = 46\n").unwrap();
        assert_eq!(params.config_flags, ConfigFlags::MAXPA_VIRT);
        assert_eq!(params.cpuid_config[2], [46, 0, 0, 0]);
    }

    #[test]
    fn a_guest_keeps_the_features_that_are_listed_alone() {
        let ecx = |keys: &str| {
            let mut module = module();
            module.cpuid[0].mask[2] = 0x0104_0189;
            params(&td(keys), &module, &Machine).map(|params| params.cpuid_config[0][2])
        };
        // SSE3 and MONITOR are not among them.
        assert_eq!(ecx(""), Ok(0x0104_0189));
        assert_eq!(ecx("paravirt = []\n"), Ok(9));
        assert_eq!(ecx("paravirt = [\"est\", \"dca\"]\n"), Ok(0x0004_0089));
        assert_eq!(
            ecx("paravirt = [\"tsc_deadline\", \"tm2\"]\n"),
            Ok(0x0100_0109)
        );
    }

    #[test]
    fn rbp_is_passed_as_the_operator_says_if_the_module_can_do_that() {
        let flags = |more: &str, zero, one| {
            let module = Capabilities {
                config_flags: Fixed {
                    zero: ConfigFlags::from_bits_retain(zero),
                    one: ConfigFlags::from_bits_retain(one),
                },
                ..module()
            };
            params(&td(more), &module, &Machine).map(|params| params.config_flags.bits())
        };
        const BIT: u64 = ConfigFlags::NO_RBP_MOD.bits();
        assert_eq!(flags("no_rbp_mod = true\n", 7, 0), Ok(BIT));
        assert_eq!(flags("no_rbp_mod = false\n", 7, 0), Ok(0));
        // A setting left open follows the module.
        assert_eq!(flags("", 7, BIT), Ok(BIT));
        assert_eq!(flags("kernel = \"f\"\n", 3, 0), Ok(0));
        let refused = flags("no_rbp_mod = true\n", 3, 0).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "no_rbp_mod: this TDX module has it in no TD"
        );
        let refused = flags("no_rbp_mod = false\n", 7, BIT);
        assert_eq!(refused, Err(Unsupported::NoRbpMod(true)));
    }

    #[test]
    fn every_frequency_that_a_host_may_have_gives_one_that_a_td_can_have() {
        let units: Vec<_> = [1, 2000, 2111, 2113, 20_000].map(tsc_units).into();
        assert_eq!(units, [4, 80, 84, 85, 400]);
    }
}
