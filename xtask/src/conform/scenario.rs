//! A scenario file: its header and its steps, decoded and checked before anything runs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use ruzstd::decoding::StreamingDecoder;
use serde::Deserialize;
use serde::de::IgnoredAny;
use stub_module::host::{Conditions, Config};
use stub_module::{Point, Release};

use super::native::NativeMsrs;
use super::number::Number;
use super::raw::{Header, RawDump, RawPatch, RawStep, point, xmm_file};
use super::registers::Registers;

/// Maximum number of times that a call may be repeated: enough to initialise a TDMR of 64 TiB.
const MAX_REPEAT: u64 = 1 << 24;

/// One scenario, ready to be replayed.
pub struct Scenario {
    pub name: String,
    pub config: Config,
    /// True for a guest-side recording, which omits zeros and contains the guest's view.
    pub guest_side: bool,
    pub steps: Vec<Step>,
    /// The release of the module that answered.
    pub release: Release,
    /// The MSRs that the TD accesses without an exit, if the recording lists them.
    pub native_msrs: Option<NativeMsrs>,
}

/// One call.
pub struct Step {
    /// The line in the file.
    pub line: usize,
    pub index: Option<u64>,
    pub lp: u32,
    pub leaf: String,
    pub input: Registers,
    pub output: Registers,
    pub memory_in: Vec<Patch>,
    pub memory_out: Vec<Dump>,
    pub repeat: u64,
    pub conditions: Conditions,
    pub guest: Option<Vec<Exit>>,
    /// The state at the guest's entry: `Some(None)` if it must not be entered.
    pub entry: Option<Option<Changes>>,
    pub during: Option<During>,
    pub xmm_in: [u128; 16],
    pub xmm_out: [u128; 16],
    pub volatile: BTreeSet<String>,
    /// The release that the P-SEAMLDR installs in this step, instead of a call.
    pub reload: Option<Release>,
    /// True if the module shuts down during the call.
    pub shutdown: bool,
    /// The value that the module writes to the ICR during the call.
    pub icr: Option<u64>,
}

/// Bytes that the VMM writes before a call.
pub struct Patch {
    pub pa: u64,
    pub bytes: Vec<u8>,
}

/// Bytes that are read after a call.
pub struct Dump {
    pub pa: u64,
    pub gpa: Option<u64>,
    pub bytes: Vec<u8>,
}

/// Calls on other logical processors at a point inside a call.
pub struct During {
    pub point: Point,
    pub nth: u32,
    pub steps: Vec<Step>,
}

/// One VM exit that the guest produces.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exit {
    pub reason: Number,
    #[serde(default)]
    pub qual: Number,
    #[serde(default)]
    pub gpa: Number,
    #[serde(default)]
    pub ilen: Number,
    #[serde(default)]
    pub intinfo: Number,
    #[serde(default)]
    pub regs: Registers,
    #[serde(default)]
    pub set: BTreeMap<String, serde_json::Value>,
    pub after: Option<Changes>,
    /// The instructions that the guest retired since its entry.
    pub insts: Option<u64>,
    #[serde(default, rename = "note")]
    _note: IgnoredAny,
    #[serde(default, rename = "implicit")]
    _implicit: IgnoredAny,
}

/// The differences between two states of a guest, flattened: `regs/rax`, `rip`, `ve_info/gpa` ...
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes(pub BTreeMap<String, Change>);

/// The value of a changed field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for Changes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let tree = serde_json::Map::deserialize(deserializer)?;
        let mut changes = Self::default();
        for (key, value) in &tree {
            changes.flatten(key, value);
        }
        Ok(changes)
    }
}

impl Changes {
    fn flatten(&mut self, path: &str, value: &serde_json::Value) {
        use serde_json::Value;
        let change = match value {
            Value::Object(tree) => {
                for (key, value) in tree {
                    self.flatten(&format!("{path}/{key}"), value);
                }
                return;
            }
            Value::Bool(truth) => Change::Number((*truth).into()),
            _ if path.contains("xmm/") => Change::Text(value.as_str().unwrap_or("").to_owned()),
            _ => match Number::deserialize(value) {
                Ok(number) => Change::Number(number.0),
                Err(_) => Change::Text(value.as_str().unwrap_or("?").to_owned()),
            },
        };
        self.0.insert(path.to_owned(), change);
    }
}

impl Scenario {
    /// Reads a scenario from a `.jsonl` or `.jsonl.zst` file.
    ///
    /// # Errors
    /// The file can't be read or is malformed; the sentence gives the file and the line.
    pub fn load(path: &Path) -> Result<Self> {
        Self::parse(read(path)?.as_bytes(), &path.display().to_string())
    }

    /// Reads a scenario from lines of JSON. `file` names them in errors.
    ///
    /// # Errors
    /// They are malformed; the sentence gives the file and the line.
    pub fn parse(text: impl BufRead, file: &str) -> Result<Self> {
        let mut scenario = None;
        for (line, text) in (1..).zip(text.lines()) {
            let place = || format!("{file}, line {line}");
            let text = text.with_context(place)?;
            if text.trim().is_empty() {
                continue;
            }
            match &mut scenario {
                None => scenario = Some(Self::header(&text).with_context(place)?),
                Some(scenario) => {
                    let raw: RawStep = decode(&text).with_context(place)?;
                    let step = scenario.step(raw, line).with_context(place)?;
                    scenario.steps.push(step);
                }
            }
        }
        scenario.ok_or_else(|| anyhow!("{file}, line 1: there is no header"))
    }

    fn header(text: &str) -> Result<Self> {
        let Header {
            scenario,
            format,
            module,
            machine,
            msr_native,
            ..
        } = decode(text).context("the header")?;
        let guest_side = match format.as_deref() {
            None => false,
            Some("guest-1") => true,
            Some(other) => bail!("the format `{other}` is not known"),
        };
        let release = match module {
            None => Release::V1_5_01,
            Some(module) => module.release().context("the header's module")?,
        };
        let native_msrs = msr_native.map(|lists| NativeMsrs::new(&lists));
        Ok(Self {
            name: scenario,
            guest_side,
            steps: Vec::new(),
            release,
            native_msrs: native_msrs.transpose().context("the header's msr_native")?,
            config: machine.config().context("the header's machine")?,
        })
    }

    fn step(&self, raw: RawStep, line: usize) -> Result<Step> {
        if let Some(reload) = &raw.reload {
            ensure!(
                reload == "update",
                "the P-SEAMLDR knows no reload `{reload}`"
            );
        }
        let installed = match (&raw.reload, &raw.module) {
            (None, None) => None,
            (None, Some(_)) => bail!("a module is installed by a reload only"),
            (Some(_), None) => Some(self.release),
            (Some(_), Some(module)) => Some(module.release()?),
        };
        ensure!(
            (raw.lp as usize) < self.config.lp_to_package.len(),
            "there is no logical processor {}",
            raw.lp
        );
        let repeat = raw.repeat.unwrap_or(1);
        ensure!(
            (1..=MAX_REPEAT).contains(&repeat),
            "{repeat} repetitions are not 1 to {MAX_REPEAT}"
        );
        let during = match raw.during {
            None => None,
            Some(during) => {
                let steps = during.steps.into_iter().map(|step| self.step(step, line));
                let steps = steps.collect::<Result<Vec<_>>>()?;
                if let Some(step) = steps.iter().find(|step| step.lp == raw.lp) {
                    bail!(
                        "a call that runs during another can't be on the same logical processor {}",
                        step.lp
                    );
                }
                Some(During {
                    point: point(&during.event)?,
                    nth: during.nth.unwrap_or(Number(1)).narrow("nth")?,
                    steps,
                })
            }
        };
        let patches = raw.mem_in.into_iter().map(RawPatch::patch);
        let dumps = raw.mem_out.into_iter().map(RawDump::dump);
        Ok(Step {
            line,
            index: raw.i,
            lp: raw.lp,
            leaf: raw.leaf_name.unwrap_or_else(|| leaf_name(&raw.input)),
            input: raw.input,
            output: raw.out,
            memory_in: patches.collect::<Result<_>>()?,
            memory_out: dumps.collect::<Result<_>>()?,
            repeat,
            conditions: raw.env.conditions()?,
            guest: raw.guest,
            entry: raw.entry,
            during,
            xmm_in: xmm_file(&raw.xmm_in)?,
            xmm_out: xmm_file(&raw.xmm_out)?,
            volatile: raw.volatile,
            reload: installed,
            shutdown: raw.shutdown,
            icr: raw.icr.map(|icr| icr.0),
        })
    }
}

/// Reads a file, and decompresses it if its name says so.
///
/// # Errors
/// The file can't be read.
pub fn read(path: &Path) -> Result<String> {
    let mut text =
        std::fs::read(path).with_context(|| format!("{} can't be read", path.display()))?;
    if path.extension().is_some_and(|suffix| suffix == "zst") {
        text = decompress(&text)
            .with_context(|| format!("{} can't be read as zstd", path.display()))?;
    }
    String::from_utf8(text).with_context(|| format!("{} is not UTF-8", path.display()))
}

/// Decompresses the frames of a zstd file, one after the other, and compares their checksums.
fn decompress(mut compressed: &[u8]) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    while !compressed.is_empty() {
        let mut frame = StreamingDecoder::new(&mut compressed)?;
        frame.read_to_end(&mut text)?;
        let frame = frame.into_frame_decoder();
        let expected = frame.get_checksum_from_data();
        ensure!(
            expected.is_none() || expected == frame.get_calculated_checksum(),
            "a checksum does not match"
        );
    }
    Ok(text)
}

/// Returns the name of the leaf in RAX, for a step that does not give it.
fn leaf_name(input: &Registers) -> String {
    let rax = input.get(0).unwrap_or(0);
    match seam::abi::Leaf::from_number(rax as u16) {
        Some(leaf) => leaf.name().to_owned(),
        None => format!("leaf {:#x}", rax as u16),
    }
}

fn decode<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| {
        // serde_json counts lines within this one line; the caller adds the file's line number.
        let said = error.to_string();
        match said.split_once(" at line ") {
            Some((what, _)) => anyhow!("{what} (column {})", error.column()),
            None => anyhow!(said),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = r#"{"scenario":"s","machine":{"lps":1,"lp_to_package":[0]}}"#;

    fn parse(steps: &str) -> Result<Scenario> {
        Scenario::parse(format!("{HEADER}\n{steps}").as_bytes(), "f.jsonl")
    }

    fn complaint(steps: &str) -> String {
        match parse(steps) {
            Ok(_) => panic!("{steps} was accepted"),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn a_step_may_leave_out_what_is_ordinary() {
        let scenario = parse(r#"{"lp":0,"in":{"rax":"0x21"},"out":{"rax":0}}"#).unwrap();
        let step = &scenario.steps[0];
        assert_eq!((step.repeat, step.input.get(0)), (1, Some(0x21)));
        let ordinary = Conditions {
            verifyreport_status: Some(0),
            ..Conditions::default()
        };
        assert_eq!(step.conditions, ordinary);
        assert!(step.entry.is_none() && !step.shutdown);
    }

    #[test]
    fn malformed_input_is_told_with_file_and_line() {
        let step = r#"{"lp":0,"in":{},"out":{}}"#;
        let said = complaint(&format!("{step}\n{{\"lp\":0,"));
        assert!(said.starts_with("f.jsonl, line 3: "), "{said}");
        for (bad, because) in [
            (r#"{"lp":7,"in":{},"out":{}}"#, "no logical processor 7"),
            (r#"{"lp":0,"in":{"rzx":1},"out":{}}"#, "rzx"),
            (
                r#"{"lp":0,"in":{},"out":{},"mem_in":[{"pa":0,"fill":"byte","len":8}]}"#,
                "needs a value",
            ),
            (
                r#"{"lp":0,"in":{},"out":{},"mem_in":[{"pa":0,"fill":"zero","len":"0xffffffffff"}]}"#,
                "are more than",
            ),
            (
                r#"{"lp":0,"in":{},"out":{},"during":{"event":"tea","steps":[]}}"#,
                "`tea` is no point",
            ),
            (
                r#"{"lp":0,"in":{},"out":{},"during":{"event":"guest","steps":[{"lp":0,"in":{},"out":{}}]}}"#,
                "same logical processor",
            ),
            ("[]", "invalid"),
        ] {
            let said = complaint(bad);
            assert!(
                said.starts_with("f.jsonl, line 2: ") && said.contains(because),
                "{said}"
            );
        }
    }

    #[test]
    fn every_kind_of_memory_is_understood() {
        let scenario = parse(
            r#"{"lp":0,"in":{},"out":{},"mem_in":[{"pa":"0x10","hex":"0102"},{"pa":0,"fill":"byte","value":7,"len":3},
            {"pa":0,"fill":"zero","len":2},{"pa":"0x1000","fill":"pa_qwords","len":16}]}"#
                .replace('\n', "")
                .as_str(),
        )
        .unwrap();
        let bytes: Vec<_> = scenario.steps[0]
            .memory_in
            .iter()
            .map(|patch| patch.bytes.clone())
            .collect();
        assert_eq!(bytes[0], [1, 2]);
        assert_eq!(bytes[1], [7, 7, 7]);
        assert_eq!(bytes[2], [0, 0]);
        assert_eq!(bytes[3], [0, 16, 0, 0, 0, 0, 0, 0, 8, 16, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn an_entry_of_null_is_not_the_same_as_none() {
        let scenario = parse(r#"{"lp":0,"in":{},"out":{},"entry":null}"#).unwrap();
        assert_eq!(scenario.steps[0].entry, Some(None));
    }

    #[test]
    fn a_key_that_is_not_known_is_an_error_wherever_it_stands() {
        for (step, key) in [
            (r#"{"lp":0,"in":{},"out":{},"colour":"red"}"#, "colour"),
            (r#"{"lp":0,"in":{},"out":{},"env":{"moon":1}}"#, "moon"),
            (
                r#"{"lp":0,"in":{},"out":{},"guest":[{"reason":1,"mood":0}]}"#,
                "mood",
            ),
            (
                r#"{"lp":0,"in":{},"out":{},"mem_in":[{"pa":0,"hex":"","ink":1}]}"#,
                "ink",
            ),
            (
                r#"{"lp":0,"in":{},"out":{},"mem_out":[{"pa":0,"hex":"","ink":1}]}"#,
                "ink",
            ),
            (
                r#"{"lp":0,"in":{},"out":{},"during":{"event":"guest","steps":[],"for":1}}"#,
                "for",
            ),
        ] {
            let said = complaint(step);
            assert!(said.contains(&format!("unknown field `{key}`")), "{said}");
        }
        let header = r#"{"scenario":"s","machine":{"lps":1,"lp_to_package":[0],"hue":1}}"#;
        assert!(Scenario::parse(header.as_bytes(), "f").is_err());
    }

    #[test]
    fn the_header_and_a_reload_name_the_release() {
        let header = |update| {
            format!(
                r#"{{"scenario":"s","module":{{"major":1,"minor":5,"update":{update}}},"machine":{{"lps":1,"lp_to_package":[0]}}}}"#
            )
        };
        let reload = r#"{"lp":0,"in":{},"out":{},"reload":"update"}"#;
        let scenario =
            Scenario::parse(format!("{}\n{reload}", header(16)).as_bytes(), "f").unwrap();
        assert_eq!(scenario.release, Release::V1_5_16);
        assert_eq!(scenario.steps[0].reload, Some(Release::V1_5_16));
        assert!(Scenario::parse(header(17).as_bytes(), "f").is_err());
        assert_eq!(parse("").unwrap().release, Release::V1_5_01);
    }

    #[test]
    fn damaged_recordings_are_refused() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors");
        let whole = std::fs::read(folder.join("c_sys_busy.jsonl.zst")).unwrap();
        let text = decompress(&whole).unwrap();
        let twice = decompress(&[&whole[..], &whole].concat()).unwrap();
        assert_eq!(twice, [&text[..], &text].concat());
        let mut checksum = whole.clone();
        *checksum.last_mut().unwrap() ^= 1;
        let error = decompress(&checksum).unwrap_err().to_string();
        assert_eq!(error, "a checksum does not match");
        for length in 1..whole.len() {
            assert!(decompress(&whole[..length]).is_err(), "{length} bytes");
        }
    }
}
