//! `seamark.toml`: the operator's configuration of this host.
//!
//! Pure code. An unknown key or a wrong value is an error. Each error is reported with file, line and reason, and the
//! boot continues with the defaults.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::{format, string::String, vec::Vec};
use core::ops::RangeInclusive;

use serde::{Deserialize, Deserializer, de::Error};
use toml::de::DeTable;

mod console;
mod features;
mod files;
pub mod seal;
mod td;

pub use console::ConsolePort;
pub use features::{Paravirt, Xfam, XfamFeature};
pub use td::{Cpuid, MEMORY_STEP, Populate, Td, bytes};

/// Name of the configuration file. It is searched for next to the program, then in the root of the volume or server.
/// The files that it names are relative to the folder where it was found.
pub const FILE_NAME: &str = "seamark.toml";

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[host]`: the hypervisor itself.
    #[serde(default)]
    pub host: Host,
    /// `[[file]]`: files to load into memory at boot.
    #[serde(default)]
    pub file: Vec<File>,
    /// `[[td]]`: the TDs that this host knows by name.
    #[serde(default)]
    pub td: Vec<Td>,
}

/// Configuration of the hypervisor itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// Log level: `off`, `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: LogLevel,
    /// Action after a crash report.
    pub on_crash: OnCrash,
    /// Action after an NMI that neither this program nor a record of the firmware explains.
    pub nmi: OnNmi,
    /// Use of a core's threads by several TDs.
    pub smt: Smt,
    /// Milliseconds within which a CPU must report after its SIPI, or answer another CPU's call; 100 to 60,000.
    #[serde(deserialize_with = "cpu_timeout")]
    pub cpu_timeout_ms: u32,
    /// Treatment of memory that was a TD's: `always` clears it, `erratum` clears it only where the CPU requires that,
    /// `reuse` keeps it for another TD.
    pub clear: Clear,
    /// Maximum share of a busy CPU's time, in percent, for reclaiming the memory of ended TDs; 0 to 90.
    #[serde(deserialize_with = "reclaim_share")]
    pub reclaim_share: u32,
    /// Maximum time in milliseconds that a vCPU runs while others wait for its CPU; 1 to 100.
    #[serde(deserialize_with = "slice")]
    pub slice_ms: u32,
    /// Period in milliseconds over which a TD's `cap` is enforced; 10 to 1,000.
    #[serde(deserialize_with = "cap_period")]
    pub cap_period_ms: u32,
    /// The serial port of the console: `COM1` to `COM4` or an I/O port (`0x3e8`), and the speed if it is not 115,200
    /// baud (`COM2,9600`). The port that ACPI's SPCR names comes first. By default COM1, or COM2 if there is no COM1.
    #[serde(deserialize_with = "console::port")]
    pub console: Option<ConsolePort>,
    /// Seconds without a sign of life after which the machine's watchdog resets it, written as `"60s"`; 10 to 600. By
    /// default there is no watchdog.
    #[serde(deserialize_with = "watchdog")]
    pub watchdog: Option<u32>,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            log_level: LogLevel::Info,
            on_crash: OnCrash::Halt,
            nmi: OnNmi::Halt,
            smt: Smt::Share,
            cpu_timeout_ms: 2000,
            clear: Clear::Always,
            reclaim_share: 10,
            slice_ms: 10,
            cap_period_ms: 100,
            console: None,
            watchdog: None,
        }
    }
}

fn reclaim_share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    ranged(deserializer, "reclaim_share", 0..=90).map(|n| n as u32)
}

fn cpu_timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    ranged(deserializer, "cpu_timeout_ms", 100..=60_000).map(|n| n as u32)
}

fn slice<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    ranged(deserializer, "slice_ms", 1..=100).map(|n| n as u32)
}

fn cap_period<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    ranged(deserializer, "cap_period_ms", 10..=1000).map(|n| n as u32)
}

fn watchdog<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text
        .strip_suffix('s')
        .filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|digits| digits.parse().ok()) {
        Some(seconds @ 10..=600) => Ok(Some(seconds)),
        _ => Err(Error::custom(format!(
            "watchdog is {text:?}; it must be from \"10s\" to \"600s\""
        ))),
    }
}

/// Deserialises a number in `range`. `key` is the operator's name for it.
fn ranged<'de, D: Deserializer<'de>>(
    deserializer: D,
    key: &str,
    range: RangeInclusive<i64>,
) -> Result<i64, D::Error> {
    let number = i64::deserialize(deserializer)?;
    if range.contains(&number) {
        Ok(number)
    } else {
        Err(Error::custom(format!(
            "{key} is {number}; it must be from {} to {}",
            range.start(),
            range.end()
        )))
    }
}

/// The log level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are those of the log levels")]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<LogLevel> for log::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::Off,
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
        }
    }
}

/// The action after a crash report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCrash {
    /// Every CPU stays halted, for analysis.
    Halt,
    /// The machine is reset.
    Reboot,
}

/// The action after an NMI that neither this program nor a record of the firmware explains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnNmi {
    /// A crash report, and the action after one.
    Halt,
    /// An entry in the log.
    Log,
}

/// Use of a core's threads by several TDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Smt {
    /// The threads of a core run vCPUs of any TDs.
    Share,
    /// The threads of a core never run vCPUs of different TDs at once.
    SameTd,
}

/// The treatment of memory that was a TD's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clear {
    /// Clear it.
    Always,
    /// Clear it if the CPU has the partial-write erratum.
    Erratum,
    /// Keep it as it is, for use by another TD alone.
    Reuse,
}

/// A file to load into memory at boot.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Name of the file in the rest of the configuration.
    pub name: String,
    /// Path relative to the folder that contains `seamark.toml`.
    pub path: String,
}

/// Parses a configuration.
///
/// # Errors
/// One line for the operator: `seamark.toml:LINE: what is wrong`.
pub fn parse(bytes: &[u8]) -> Result<Config, String> {
    let text = core::str::from_utf8(bytes).map_err(|e| {
        format!(
            "{FILE_NAME}:{}: the file is not UTF-8 text",
            line_of(bytes, e.valid_up_to())
        )
    })?;
    let refused = |e: toml::de::Error| {
        let line = e.span().map_or(1, |span| line_of(bytes, span.start));
        let message = e.message().trim().replace('\n', "; ");
        format!("{FILE_NAME}:{line}: {message}")
    };
    let table = DeTable::parse(text).map_err(refused)?;
    let names = Names::of(table.get_ref());
    let config = Config::deserialize(toml::Deserializer::from(table)).map_err(refused)?;
    names
        .check()
        .map_err(|(at, what)| format!("{FILE_NAME}:{}: {what}", line_of(bytes, at)))?;
    Ok(config)
}

/// The names by which parts of the configuration refer to each other, with their positions in the text.
struct Names {
    files: Vec<Word>,
    tds: Vec<NamedTd>,
}

struct NamedTd {
    name: Word,
    image: Option<Word>,
    kernel: Option<Word>,
    initrd: Option<Word>,
    cmdline: Option<Word>,
}

/// A string of the text, and the byte offset at which it starts.
struct Word {
    text: String,
    at: usize,
}

impl Word {
    /// Returns the string value of a key.
    fn of(table: &DeTable<'_>, key: &str) -> Option<Self> {
        let (_, value) = table.iter().find(|(name, _)| name.get_ref() == key)?;
        Some(Self {
            text: value.get_ref().as_str()?.into(),
            at: value.span().start,
        })
    }
}

/// Returns the tables of `[[kind]]`.
fn tables<'t, 'i>(table: &'t DeTable<'i>, kind: &'t str) -> impl Iterator<Item = &'t DeTable<'i>> {
    let array = table.iter().find(|(name, _)| name.get_ref() == kind);
    let array = array.and_then(|(_, value)| value.get_ref().as_array());
    let entries = array.into_iter().flat_map(|array| array.iter());
    entries.filter_map(|entry| entry.get_ref().as_table())
}

impl Names {
    /// Collects the names of a text that may have any other error.
    fn of(table: &DeTable<'_>) -> Self {
        let tds = tables(table, "td").filter_map(|td| {
            let word = |key| Word::of(td, key);
            Some(NamedTd {
                name: word("name")?,
                image: word("image"),
                kernel: word("kernel"),
                initrd: word("initrd"),
                cmdline: word("cmdline"),
            })
        });
        Self {
            files: tables(table, "file")
                .filter_map(|file| Word::of(file, "name"))
                .collect(),
            tds: tds.collect(),
        }
    }

    /// # Errors
    /// The byte offset of a wrong name, and what is wrong with it.
    fn check(&self) -> Result<(), (usize, String)> {
        let tds: Vec<_> = self.tds.iter().map(|td| &td.name).collect();
        all_differ("file", &self.files.iter().collect::<Vec<_>>())?;
        all_differ("td", &tds)?;
        for td in &self.tds {
            let named = [
                ("image", &td.image),
                ("kernel", &td.kernel),
                ("initrd", &td.initrd),
            ];
            for (key, name) in named {
                let Some(name) = name else { continue };
                if !self.files.iter().any(|file| file.text == name.text) {
                    let problem =
                        format!("{key} is {:?}, and no [[file]] has that name", name.text);
                    return Err((name.at, problem));
                }
            }
            if td.kernel.is_some() {
                continue;
            }
            for (key, value) in [("initrd", &td.initrd), ("cmdline", &td.cmdline)] {
                if let Some(value) = value {
                    return Err((
                        value.at,
                        format!("{key} requires a kernel, and there is none"),
                    ));
                }
            }
            if td.image.is_none() {
                return Err((
                    td.name.at,
                    format!("{} needs an image, or a kernel", td.name.text),
                ));
            }
        }
        Ok(())
    }
}

fn all_differ(kind: &str, names: &[&Word]) -> Result<(), (usize, String)> {
    for (i, name) in names.iter().enumerate() {
        if names[..i].iter().any(|other| other.text == name.text) {
            let problem = format!("name is {:?}, which another [[{kind}]] has", name.text);
            return Err((name.at, problem));
        }
    }
    Ok(())
}

fn line_of(bytes: &[u8], at: usize) -> usize {
    1 + bytes[..at.min(bytes.len())]
        .iter()
        .filter(|&&b| b == b'\n')
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse(b""), Ok(Config::default()));
        assert_eq!(parse(b"[host]\n"), Ok(Config::default()));
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(
            b"[host]\nlog_level = \"debug\"\non_crash = \"reboot\"\nnmi = \"log\"\nsmt = \"same-td\"\ncpu_timeout_ms = 500\nclear = \"reuse\"\n\
              reclaim_share = 20\nslice_ms = 2\ncap_period_ms = 50\n\
              [[file]]\nname = \"linux\"\npath = \"guests/vmlinuz\"\n",
        )
        .unwrap();
        assert_eq!(config.host.log_level, LogLevel::Debug);
        assert_eq!(config.host.on_crash, OnCrash::Reboot);
        assert_eq!(
            (config.host.nmi, config.host.smt),
            (OnNmi::Log, Smt::SameTd)
        );
        assert_eq!(config.host.cpu_timeout_ms, 500);
        assert_eq!(config.host.clear, Clear::Reuse);
        assert_eq!(config.host.reclaim_share, 20);
        assert_eq!((config.host.slice_ms, config.host.cap_period_ms), (2, 50));
        assert_eq!(config.file[0].path, "guests/vmlinuz");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let e = parse(b"# hello\n[host]\nlog_level = \"info\"\ncolour = 3\n").unwrap_err();
        assert!(e.starts_with("seamark.toml:4: "), "{e}");
        assert!(e.contains("colour"), "{e}");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_line() {
        let e = parse(b"[host]\n\nlog_level = \"loud\"\n").unwrap_err();
        assert!(e.starts_with("seamark.toml:3: "), "{e}");
        assert!(e.contains("loud"), "{e}");
    }

    #[test]
    fn a_number_of_the_host_s_is_in_its_range() {
        for (key, least, most) in [
            ("cpu_timeout_ms", 100, 60_000),
            ("reclaim_share", 0, 90),
            ("slice_ms", 1, 100),
            ("cap_period_ms", 10, 1000),
        ] {
            let set = |value: i64| parse(format!("[host]\n{key} = {value}\n").as_bytes());
            for right in [least, most] {
                assert!(set(right).is_ok(), "{key} = {right}");
            }
            for wrong in [least - 1, most + 1] {
                let said =
                    format!("seamark.toml:2: {key} is {wrong}; it must be from {least} to {most}");
                assert_eq!(set(wrong), Err(said));
            }
        }
    }

    #[test]
    fn a_watchdog_s_time_is_in_seconds() {
        let set = |text| parse(format!("[host]\nwatchdog = {text:?}\n").as_bytes());
        assert_eq!(set("60s").unwrap().host.watchdog, Some(60));
        for wrong in ["60", "9s", "601s", "1m", "+60s", "s"] {
            let e = set(wrong).unwrap_err();
            assert!(e.contains("it must be from \"10s\" to \"600s\""), "{e}");
        }
    }

    #[test]
    fn a_td_names_a_file_that_exists() {
        let e = parse(
            b"[[td]]\nname = \"a\"\nmemory = \"2M\"\nimage = \"x\"\n[[file]]\nname = \"y\"\npath = \"y\"\n",
        )
        .unwrap_err();
        assert_eq!(
            e,
            "seamark.toml:4: image is \"x\", and no [[file]] has that name"
        );
    }

    #[test]
    fn two_of_a_kind_never_share_a_name() {
        let e =
            parse(b"[[file]]\nname = \"y\"\npath = \"a\"\n[[file]]\nname = \"y\"\npath = \"b\"\n")
                .unwrap_err();
        assert_eq!(
            e,
            "seamark.toml:5: name is \"y\", which another [[file]] has"
        );
        let td = "[[td]]\nname = \"a\"\nimage = \"y\"\nmemory = \"2M\"\n";
        let text = format!("[[file]]\nname = \"y\"\npath = \"y\"\n{td}{td}");
        let e = parse(text.as_bytes()).unwrap_err();
        assert_eq!(e, "seamark.toml:9: name is \"a\", which another [[td]] has");
    }

    #[test]
    fn broken_syntax_and_bytes_that_are_no_text_are_reported() {
        let e = parse(b"[host]\nlog_level =\n").unwrap_err();
        assert!(e.starts_with("seamark.toml:2: "), "{e}");
        let e = parse(b"[host]\n\xFF\xFE\n").unwrap_err();
        assert_eq!(e, "seamark.toml:2: the file is not UTF-8 text");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_give_a_config_or_one_line(bytes: Vec<u8>) {
            if let Err(e) = parse(&bytes) {
                assert!(e.starts_with("seamark.toml:") && !e.contains('\n'));
            }
        }
    }
}
