//! The MSRs that a recorded TD accesses without a VM exit, and their comparison with the TD's MSR bitmaps.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use stub_module::host::HostMachine;
use stub_module::vcpu::{Field, Vcpu};
use stub_module::{Machine, Platform};

use super::number::Number;
use super::replay::Difference;

/// The four parts of an MSR-bitmap page: name in a recording, first MSR, byte offset in the page.
const PARTS: [(&str, u32, u64); 4] = [
    ("rd_low", 0, 0),
    ("rd_high", 0xC000_0000, 0x400),
    ("wr_low", 0, 0x800),
    ("wr_high", 0xC000_0000, 0xC00),
];
/// MSRs that a part covers.
const COVERED: u32 = 0x2000;

/// The MSRs without a VM exit, for each part of the bitmaps.
#[derive(Clone)]
pub struct NativeMsrs([BTreeSet<u32>; 4]);

impl NativeMsrs {
    /// Reads the lists of a header: addresses, and ranges of them.
    pub fn new(lists: &BTreeMap<String, Vec<String>>) -> Result<Self> {
        let mut parts: [BTreeSet<u32>; 4] = Default::default();
        for (name, list) in lists {
            let Some(part) = PARTS.iter().position(|(known, ..)| known == name) else {
                bail!("`{name}` is no part of the MSR bitmaps");
            };
            for range in list {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                let [first, last] = [first, last].map(|msr| Number::parse(msr)?.narrow("MSR"));
                let (first, last) = (first?, last.context("the end of a range")?);
                parts[part].extend(first..=last);
            }
        }
        Ok(Self(parts))
    }

    /// Compares the lists with the bitmaps of a vCPU.
    pub fn compare(&self, machine: &HostMachine, vcpu: &Vcpu<'_>, into: &mut Vec<Difference>) {
        let platform: Platform<'_> = machine.platform();
        let bitmaps = platform.without_keyid(vcpu.vmcs(Field::MSR_BITMAP));
        for ((name, base, offset), expected) in PARTS.into_iter().zip(&self.0) {
            let mut bytes = [0; COVERED as usize / 8];
            machine.memory().read(bitmaps + offset, &mut bytes);
            for msr in 0..COVERED {
                let native = bytes[msr as usize / 8] >> (msr % 8) & 1 == 0;
                if native != expected.contains(&(base + msr)) {
                    let told = |native| if native { "native" } else { "exit" };
                    into.push(Difference::new(
                        format!("msr_native/{name}/{:#x}", base + msr),
                        told(!native),
                        told(native),
                    ));
                }
            }
        }
    }
}
