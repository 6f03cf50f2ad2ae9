//! Options of the stub, which QEMU passes as fw_cfg files named `opt/seamstub/NAME`.
//!
//! Every option has a default. The ROM reports an invalid option and keeps the default. The program that starts the
//! machine checks the options first, with the same code.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Display;
use core::str::FromStr;

use stub_module::Release;
use stub_module::hooks::Hooks;

/// The directory of the options' fw_cfg files.
pub const PREFIX: &str = "opt/seamstub/";

/// The names of all options, without [`PREFIX`].
pub const NAMES: [&str; 8] = [
    "tdx",
    "module",
    "hkids",
    "trace",
    "stuck",
    "tsc_adjust",
    "hooks",
    "tsc_hz",
];

/// KeyID bits at the top of a physical address, over QEMU's `phys-bits=48`.
pub const KEYID_BITS: u32 = 4;

/// The highest APIC id of a processor. QEMU's APICs stay in xAPIC mode beneath the emulated x2APIC. An xAPIC id has 8
/// bits, and 255 is the broadcast id.
pub const MAX_APIC_ID: u32 = 254;

/// Number of KeyIDs other than 0 that fit the KeyID bits.
pub const MAX_KEYIDS: u32 = (1 << KEYID_BITS) - 1;

/// The configuration of the emulated machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `tdx`: true if the machine has SEAM and TDX.
    pub tdx: bool,
    /// `module`: the release of Intel's module that the emulated one behaves as.
    pub module: Release,
    /// `hkids`: the number of private HKIDs, 2 to [`MAX_KEYIDS`] - 1.
    pub hkids: u32,
    /// `trace`: 0 reports only violations, 1 adds faults that the monitor injects, 2 adds every emulated instruction
    /// and IPI.
    pub trace: u8,
    /// `stuck`: numbers of logical processors that ignore a SIPI unless it is a broadcast, like processors held by
    /// firmware; separated by commas.
    pub stuck: Vec<u32>,
    /// `tsc_adjust`: numbers of logical processors on which the firmware has left another IA32_TSC_ADJUST than zero;
    /// separated by commas.
    pub tsc_adjust: Vec<u32>,
    /// `hooks`: the module's fault injection, in the module's own format.
    pub hooks: String,
    /// `tsc_hz`: the frequency that the machine reports for its time-stamp counter, 100 MHz to 10 GHz; the default is
    /// the measured one.
    pub tsc_hz: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tdx: true,
            module: Release::default(),
            hkids: MAX_KEYIDS - 1,
            trace: 0,
            stuck: Vec::new(),
            tsc_adjust: Vec::new(),
            hooks: String::new(),
            tsc_hz: None,
        }
    }
}

impl Options {
    /// Returns whether the logical processor `number` is stuck.
    #[must_use]
    pub fn is_stuck(&self, number: u32) -> bool {
        self.stuck.contains(&number)
    }

    /// Returns the IA32_TSC_ADJUST that the firmware has left on the logical processor `number`.
    #[must_use]
    pub fn left_tsc_adjust(&self, number: u32) -> u64 {
        if self.tsc_adjust.contains(&number) {
            0x1000 * (u64::from(number) + 1)
        } else {
            0
        }
    }

    /// Sets the option `name` (without [`PREFIX`]) from the contents of its file. A trailing newline is ignored.
    ///
    /// # Errors
    /// The error, in one line. The option is unchanged then.
    pub fn set(&mut self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let text = core::str::from_utf8(bytes)
            .map_err(|_| format!("{name} is not UTF-8"))?
            .trim();
        match name {
            "tdx" => {
                self.tdx = match text {
                    "on" => true,
                    "off" => false,
                    _ => return Err(format!("tdx is on or off, not {text}")),
                }
            }
            "module" => self.module = text.parse()?,
            "hkids" => self.hkids = number(name, text, 2, MAX_KEYIDS - 1)?,
            "trace" => self.trace = number(name, text, 0, 2)?,
            "stuck" => self.stuck = processors(name, text, 1)?,
            "tsc_adjust" => self.tsc_adjust = processors(name, text, 0)?,
            "hooks" => {
                Hooks::parse(text).map_err(|error| {
                    format!(
                        "hooks takes statements such as `busy TDH.MEM.PAGE.AUG call 1`: {error}"
                    )
                })?;
                self.hooks = text.to_string();
            }
            "tsc_hz" => self.tsc_hz = Some(number(name, text, 100_000_000, 10_000_000_000)?),
            _ => {
                return Err(format!(
                    "there is no option {name}; the options are {}",
                    NAMES.join(", ")
                ));
            }
        }
        Ok(())
    }

    /// Checks the options against a machine with this number of processors.
    ///
    /// # Errors
    /// The option that names a nonexistent processor.
    pub fn check(&self, processors: u32) -> Result<(), String> {
        let lists = [("stuck", &self.stuck), ("tsc_adjust", &self.tsc_adjust)];
        for (name, list) in lists {
            if let Some(lp) = list.iter().find(|&&lp| lp >= processors) {
                return Err(format!(
                    "{name}={lp} names no processor: the machine has {processors}, numbered from 0"
                ));
            }
        }
        Ok(())
    }
}

/// Parses a list of processors' numbers, from `min` on.
fn processors(name: &str, text: &str, min: u32) -> Result<Vec<u32>, String> {
    text.split(',')
        .filter(|lp| !lp.trim().is_empty())
        .map(|lp| number(name, lp.trim(), min, 0xFFFF))
        .collect()
}

fn number<T: FromStr + PartialOrd + Display + Copy>(
    name: &str,
    text: &str,
    min: T,
    max: T,
) -> Result<T, String> {
    match text.parse() {
        Ok(value) if (min..=max).contains(&value) => Ok(value),
        _ => Err(format!(
            "{name} takes a number from {min} to {max}, not {text}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let mut options = Options::default();
        options.set("tdx", b"off\n").unwrap();
        options.set("module", b"1.5.16").unwrap();
        options.set("hkids", b"3").unwrap();
        options.set("trace", b"2").unwrap();
        options.set("stuck", b"2, 3").unwrap();
        options.set("tsc_adjust", b"0,1").unwrap();
        options
            .set("hooks", b"busy TDH.MEM.PAGE.AUG call 8")
            .unwrap();
        options.set("tsc_hz", b"2596170000").unwrap();
        assert_eq!(
            options,
            Options {
                tdx: false,
                module: Release::V1_5_16,
                hkids: 3,
                trace: 2,
                stuck: [2, 3].into(),
                tsc_adjust: [0, 1].into(),
                hooks: "busy TDH.MEM.PAGE.AUG call 8".into(),
                tsc_hz: Some(2_596_170_000),
            }
        );
    }

    #[test]
    fn a_bad_option_is_named_and_changes_nothing() {
        let mut options = Options::default();
        for (name, text) in [
            ("tdx", &b"maybe"[..]),
            ("module", b"1.5.02"),
            ("hkids", b"0"),
            ("hkids", b"15"),
            ("trace", b"-1"),
            ("stuck", b"1,x"),
            ("stuck", b"0"),
            ("hooks", b"\xff"),
            ("hooks", b"fail"),
            ("tsc_hz", b"99999999"),
            ("tsc_hz", b"2.6 GHz"),
            ("colour", b"red"),
        ] {
            let why = options.set(name, text).unwrap_err();
            assert!(why.contains(name), "{why}");
        }
        assert_eq!(options, Options::default());
    }

    #[test]
    fn an_unknown_option_is_answered_with_those_that_there_are() {
        let why = Options::default().set("foo", b"1").unwrap_err();
        for name in NAMES {
            assert!(why.contains(name), "{why}");
        }
    }

    #[test]
    fn a_stuck_processor_is_one_of_the_machines() {
        let mut options = Options::default();
        options.set("stuck", b"3").unwrap();
        assert_eq!(options.check(4), Ok(()));
        assert!(options.check(3).unwrap_err().contains("stuck=3"));
    }
}
