//! `seamark.toml`: the operator's configuration of this host.
//!
//! Pure code. A mistake costs the `[[td]]` or `[[file]]` that it is in, or the key of `[host]`; every mistake is reported
//! with its line, and what to write instead.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::{format, string::String, vec::Vec};

mod console;
mod cpuid;
mod define;
mod disk;
mod features;
mod files;
mod host;
mod hosts;
mod keys;
pub mod lock;
mod mend;
mod network;
mod pci;
mod read;
pub mod seal;
mod td;
mod value;
mod vsock;

use keys::{Key, Keyed, quoted, text};

pub use console::ConsolePort;
pub use cpuid::Cpuid;
pub use define::read_td;
pub use disk::{Disk, MOST_DISKS};
pub use features::{Paravirt, Xfam, XfamFeature};
pub use host::{Clear, Host, LogLevel, OnCrash, OnNmi, Smt};
pub use hosts::host_file_name;
pub use network::{MOST_CARDS, MacAddress, Net, Network, Port};
pub use pci::{MOST_FUNCTIONS, Pci};
pub use read::{Names, Problem, Read, read};
pub use td::{Populate, Td, TdConsole};
pub use value::{MEMORY_STEP, bytes};
pub use vsock::{Vsock, VsockService};

/// Name of the configuration file that hosts without one of their own ([`host_file_name`]) use. It is searched for next
/// to the program, then in the root of the volume or server.
/// The files that it names are relative to the folder where it was found.
pub const FILE_NAME: &str = "seamark.toml";

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `[host]`: the hypervisor itself.
    pub host: Host,
    /// `[[file]]`: files to load into memory at boot.
    pub file: Vec<File>,
    /// `[[network]]`: the networks of this host's TDs.
    pub network: Vec<Network>,
    /// `[[td]]`: the TDs that this host knows by name.
    pub td: Vec<Td>,
}

/// A file to load into memory at boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Name of the file in the rest of the configuration.
    pub name: String,
    /// Path relative to the folder that contains `seamark.toml`.
    pub path: String,
}

impl Keyed for File {
    const TABLE: &'static str = "[[file]]";
    const KEYS: &'static [Key<Self>] = &[
        Key::<Self>::new(
            "name",
            "a text in quotes",
            |file, value| text(value).map(|name| file.name = name),
            |file| Some(quoted(&file.name)),
        )
        .required(),
        Key::<Self>::new(
            "path",
            "a path in quotes, relative to the folder of the configuration",
            |file, value| text(value).map(|path| file.path = path),
            |file| Some(quoted(&file.path)),
        )
        .required(),
    ];

    fn blank() -> Self {
        Self {
            name: String::new(),
            path: String::new(),
        }
    }
}

/// Parses a configuration that must have no mistake.
///
/// # Errors
/// One line for the operator, with each mistake: `seamark.toml:LINE: what is wrong`.
pub fn parse(bytes: &[u8]) -> Result<Config, String> {
    let Read {
        config, problems, ..
    } = read(bytes);
    if problems.is_empty() {
        return Ok(config);
    }
    let lines: Vec<_> = problems
        .iter()
        .map(|problem| format!("{FILE_NAME}:{problem}"))
        .collect();
    Err(lines.join("; "))
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
                let said = format!(
                    "seamark.toml:2: {key} is {wrong}; it must be a number from {least} to {most}"
                );
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
