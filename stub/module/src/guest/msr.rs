//! RDMSR and WRMSR of a TD: the MSRs that it accesses directly, those that the module emulates, and those that it
//! refuses.

use seam::abi::x86::efer;
use seam::abi::{Attributes, Status};

use super::exit::{Check, Stop, TdExit};
use super::{Inside, reason};
use crate::Machine;
use crate::cpuid::{Features, Native};
use crate::field::Structure;
use crate::td::{Tdcs, tdcs};
use crate::vcpu::{Field, Gpr, Held, fields};
use crate::vp::vmcs::features;

/// The handling of an MSR access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// The TD accesses the MSR directly.
    Native,
    /// The module handles the access.
    Answer(Answer),
    /// Direct access with the feature; otherwise the module handles the access.
    If(Feature, Answer),
}

/// The module's handling of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// #VE.
    Ve,
    /// #GP(0).
    Gp,
    /// #GP(0) if the TD's CPUID does not have the MSR, else #VE.
    GpOrVe,
    /// The module emulates the MSR.
    Emulated,
}

/// A feature that gives a TD direct access to an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feature {
    Perfmon,
    Cet,
    Pt,
    Uintr,
    Lbr,
    Umwait,
    Xfd,
    Pks,
    Tsx,
    PerfMetrics,
    PerfmonAndPt,
}

/// MSRs with consecutive addresses and the same rules.
struct Row {
    first: u32,
    last: u32,
    read: Rule,
    write: Rule,
}

const fn row(first: u32, last: u32, read: Rule, write: Rule) -> Row {
    Row {
        first,
        last,
        read,
        write,
    }
}

const fn if_(feature: Feature, answer: Answer) -> Rule {
    Rule::If(feature, answer)
}

use Answer::{Emulated, Gp};
use Feature::{Cet, Lbr, PerfMetrics, Perfmon, PerfmonAndPt, Pks, Pt, Tsx, Uintr, Umwait, Xfd};

const NATIVE: Rule = Rule::Native;
const VE: Rule = Rule::Answer(Answer::Ve);
const GP: Rule = Rule::Answer(Answer::Gp);
const GP_OR_VE: Rule = Rule::Answer(Answer::GpOrVe);
const EMULATED: Rule = Rule::Answer(Answer::Emulated);

/// The MSRs with rules other than #VE.
///
/// Source: TDX module 1.5.01, MSR configuration table.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    row(0x10, 0x10, NATIVE, VE),
    row(0x48, 0x49, NATIVE, NATIVE),
    row(0x87, 0x87, GP_OR_VE, GP_OR_VE),
    row(0x8C, 0x8F, GP, GP),
    row(0x98, 0x9B, GP, GP),
    row(0x9E, 0x9E, GP, GP),
    row(0xBC, 0xBC, NATIVE, VE),
    row(0xBD, 0xBD, EMULATED, NATIVE),
    row(0xC1, 0xC8, if_(Perfmon, Gp), if_(Perfmon, Gp)),
    row(0xE1, 0xE1, if_(Umwait, Gp), if_(Umwait, Gp)),
    row(0x10A, 0x10A, EMULATED, NATIVE),
    row(0x10B, 0x10B, NATIVE, NATIVE),
    row(0x122, 0x122, if_(Tsx, Gp), if_(Tsx, Gp)),
    row(0x174, 0x176, NATIVE, NATIVE),
    row(0x186, 0x18D, if_(Perfmon, Gp), if_(Perfmon, Gp)),
    row(0x195, 0x195, GP, GP),
    row(0x1A0, 0x1A0, if_(Perfmon, Emulated), VE),
    row(0x1A6, 0x1A7, if_(Perfmon, Gp), if_(Perfmon, Gp)),
    row(0x1C4, 0x1C5, if_(Xfd, Gp), if_(Xfd, Gp)),
    row(0x1D9, 0x1D9, EMULATED, EMULATED),
    row(0x1F8, 0x1FA, GP_OR_VE, GP_OR_VE),
    row(0x276, 0x276, GP, GP),
    row(0x277, 0x277, NATIVE, NATIVE),
    row(0x309, 0x310, if_(Perfmon, Gp), if_(Perfmon, Gp)),
    row(0x329, 0x329, if_(PerfMetrics, Gp), if_(PerfMetrics, Gp)),
    row(0x345, 0x345, if_(PerfmonAndPt, Emulated), if_(Perfmon, Gp)),
    row(0x38D, 0x392, if_(Perfmon, Gp), if_(Perfmon, Gp)),
    row(0x3F1, 0x3F2, if_(Perfmon, Gp), if_(Perfmon, Gp)),
    row(0x3F6, 0x3F7, if_(Perfmon, Gp), if_(Perfmon, Gp)),
    row(0x480, 0x480, EMULATED, GP),
    row(0x481, 0x484, VE, GP),
    row(0x485, 0x489, EMULATED, GP),
    row(0x48A, 0x48A, VE, GP),
    row(0x48B, 0x492, EMULATED, GP),
    row(0x4C1, 0x4C8, if_(Perfmon, Gp), if_(Perfmon, Gp)),
    row(0x500, 0x500, GP, GP),
    row(0x560, 0x561, if_(Pt, Gp), if_(Pt, Gp)),
    row(0x570, 0x572, if_(Pt, Gp), if_(Pt, Gp)),
    row(0x580, 0x587, if_(Pt, Gp), if_(Pt, Gp)),
    row(0x600, 0x600, NATIVE, NATIVE),
    row(0x6A0, 0x6A0, if_(Cet, Gp), if_(Cet, Gp)),
    row(0x6A2, 0x6A2, if_(Cet, Gp), if_(Cet, Gp)),
    row(0x6A4, 0x6A8, if_(Cet, Gp), if_(Cet, Gp)),
    row(0x6E0, 0x6E0, GP_OR_VE, GP_OR_VE),
    row(0x6E1, 0x6E1, if_(Pks, Gp), if_(Pks, Gp)),
    row(0x800, 0x801, GP, GP),
    row(0x804, 0x807, GP, GP),
    row(0x808, 0x80C, NATIVE, NATIVE),
    row(0x80E, 0x80E, NATIVE, NATIVE),
    row(0x810, 0x827, NATIVE, NATIVE),
    row(0x829, 0x82E, GP, GP),
    row(0x831, 0x831, GP, GP),
    row(0x83F, 0x83F, NATIVE, NATIVE),
    row(0x840, 0x8FF, GP, GP),
    row(0x981, 0x984, GP_OR_VE, GP_OR_VE),
    row(0x985, 0x98A, if_(Uintr, Gp), if_(Uintr, Gp)),
    row(0xC80, 0xC80, NATIVE, VE),
    row(0xD90, 0xD90, GP, GP),
    row(0xD93, 0xD93, GP, GP),
    row(0xDA0, 0xDA0, NATIVE, EMULATED),
    row(0x1200, 0x12FF, if_(Lbr, Gp), if_(Lbr, Gp)),
    row(0x14CE, 0x14CF, if_(Lbr, Gp), if_(Lbr, Gp)),
    row(0x1500, 0x16FF, if_(Lbr, Gp), if_(Lbr, Gp)),
    row(0x1B01, 0x1B01, NATIVE, NATIVE),
    row(0xC000_0080, 0xC000_0080, NATIVE, EMULATED),
    row(0xC000_0081, 0xC000_0082, NATIVE, NATIVE),
    row(0xC000_0084, 0xC000_0084, NATIVE, NATIVE),
    row(0xC000_0100, 0xC000_0103, NATIVE, NATIVE),
];

const DEBUGCTL: u32 = 0x1D9;
const XAPIC_DISABLE_STATUS: u32 = 0xBD;
const ARCH_CAPABILITIES: u32 = 0x10A;
const MISC_ENABLE: u32 = 0x1A0;
const PERF_CAPABILITIES: u32 = 0x345;
const XSS: u32 = 0xDA0;
const EFER: u32 = 0xC000_0080;
/// XFAM bits.
const XFAM_PT: u32 = 8;
const XFAM_CET: u32 = 11;
const XFAM_UINTR: u32 = 14;
const XFAM_LBR: u32 = 15;
/// IA32_PERF_CAPABILITIES: performance metrics; PEBS into a processor trace.
const PERF_METRICS: u64 = 1 << 15;
const PEBS_OUTPUT_PT: u64 = 1 << 16;
/// IA32_MISC_ENABLE: performance monitoring available; PEBS unavailable.
const PERFMON_AVAILABLE: u64 = 1 << 7;
const PEBS_UNAVAILABLE: u64 = 1 << 12;
/// DEBUGCTL bits.
const BTF: u64 = 1 << 1;
const TR: u64 = 1 << 6;
const BTS: u64 = 1 << 7;
const UNCORE_PMI: u64 = 1 << 13;
const DEBUGCTL_RESERVED: u64 = !0xFFFF | 0x38;
/// RFLAGS.TF; the pending debug exception of a single step.
const TRAP_FLAG: u64 = 1 << 8;
const SINGLE_STEP: u64 = 1 << 14;
fn find(msr: u32) -> Option<&'static Row> {
    ROWS.iter()
        .find(|row| (row.first..=row.last).contains(&msr))
}

/// The properties of a TD that its MSRs depend on.
struct TdFeatures<'a> {
    attributes: u64,
    xfam: u64,
    features: Features,
    native: &'a Native,
}

impl TdFeatures<'_> {
    fn has(&self, feature: Feature) -> bool {
        let has_xfam = |bit: u32| self.xfam >> bit & 1 != 0;
        let perfmon = self.attributes & Attributes::PERFMON.bits() != 0;
        match feature {
            Perfmon => perfmon,
            Cet => has_xfam(XFAM_CET),
            Pt => has_xfam(XFAM_PT),
            Uintr => has_xfam(XFAM_UINTR),
            Lbr => has_xfam(XFAM_LBR),
            Umwait => self.features.waitpkg,
            Xfd => self.features.xfd,
            Pks => self.attributes & Attributes::PKS.bits() != 0,
            Tsx => self.features.tsx,
            PerfMetrics => perfmon && self.native.msrs.perf_capabilities & PERF_METRICS != 0,
            PerfmonAndPt => perfmon && has_xfam(XFAM_PT),
        }
    }

    fn is_native(&self, rule: Rule) -> bool {
        match rule {
            Rule::Native => true,
            Rule::Answer(_) => false,
            Rule::If(feature, _) => self.has(feature),
        }
    }
}

/// Words of an MSR-bitmap page. Initially the bit of every MSR is set.
const BITMAP_WORDS: u32 = 512;

/// Fills a TD's MSR bitmaps: low reads, high reads, low writes, high writes. A set bit makes the access exit.
pub fn fill_bitmaps<M: Machine>(native: &Native, tdcs: &Tdcs<'_, M>) {
    let td = TdFeatures {
        attributes: tdcs.get(tdcs::field::ATTRIBUTES),
        xfam: tdcs.get(tdcs::field::XFAM),
        features: features(tdcs),
        native,
    };
    for word in 0..BITMAP_WORDS {
        tdcs.set(fields::MSR_BITMAPS.at(word), u64::MAX);
    }
    for row in ROWS {
        // Two separate calls, because a loop over pairs of a rule and a half is miscompiled (docs/miscompilation.md).
        if td.is_native(row.read) {
            let_through(tdcs, row, 0);
        }
        if td.is_native(row.write) {
            let_through(tdcs, row, BITMAP_WORDS / 2);
        }
    }
}

/// Clears the bits of MSRs in the half of the bitmaps that starts at word `half`.
fn let_through<M: Machine>(tdcs: &Tdcs<'_, M>, row: &Row, half: u32) {
    for msr in row.first..=row.last {
        let high = if msr >> 13 == 0 { 0 } else { BITMAP_WORDS / 4 };
        let bit = msr & 0x1FFF;
        let field = fields::MSR_BITMAPS.at(half + high + bit / 64);
        tdcs.set(field, tdcs.get(field) & !(1 << (bit % 64)));
    }
}

impl<M: Machine> Inside<'_, M> {
    fn set_msr_result(&self, value: u64) {
        self.vcpu.set_gpr(Gpr::Rax, value & 0xFFFF_FFFF);
        self.vcpu.set_gpr(Gpr::Rdx, value >> 32);
    }

    /// Handles an access that the module does not emulate.
    fn refuse_msr(&self, full: u32, msr: u32, rule: impl Fn(&Row) -> Rule) -> Result<(), Stop> {
        let in_bitmaps = msr < 0x2000 || (0xC000_0000..0xC000_2000).contains(&msr);
        let answer = match find(msr).filter(|_| in_bitmaps) {
            None => Answer::Ve,
            Some(row) => {
                let td = TdFeatures {
                    attributes: self.tdcs.get(tdcs::field::ATTRIBUTES),
                    xfam: self.tdcs.get(tdcs::field::XFAM),
                    features: features(&self.tdcs),
                    native: self.cx.native(),
                };
                let rule = rule(row);
                if td.is_native(rule) {
                    return Err(self.unexpected_msr(full));
                }
                match rule {
                    Rule::Native => return Err(self.unexpected_msr(full)),
                    Rule::Answer(Answer::GpOrVe) => {
                        if self.cpuid_has(msr, td.features) {
                            Answer::Ve
                        } else {
                            Answer::Gp
                        }
                    }
                    Rule::Answer(answer) | Rule::If(_, answer) => answer,
                }
            }
        };
        match answer {
            Answer::Ve => self.raise_ve(full & 0xFFFF, 0, 0, 0),
            Answer::Gp => self.raise_gp(),
            Answer::GpOrVe | Answer::Emulated => return Err(self.unexpected_msr(full)),
        }
        Ok(())
    }

    /// Handles an exit for an MSR that the TD accesses directly. Intel's module shuts down. Here only the TD ends,
    /// because the machine's other TDs are not affected.
    #[inline(never)]
    fn unexpected_msr(&self, full: u32) -> Stop {
        self.tell(Check::NativeMsr, false);
        TdExit::new(Status::NON_RECOVERABLE_TD, full).into()
    }

    /// Returns whether a TD's CPUID has the feature that an MSR belongs to.
    fn cpuid_has(&self, msr: u32, features: Features) -> bool {
        match msr {
            0x1F8..=0x1FA => features.dca,
            0x981..=0x984 => features.tme,
            0x87 => features.mktme,
            0x6E0 => features.tsc_deadline,
            _ => false,
        }
    }

    /// Handles RDMSR.
    ///
    /// # Errors
    /// The TD ends if it accesses the MSR directly, because then the access can't have exited.
    #[inline(never)]
    pub fn rdmsr(&self, full: u32) -> Result<(), Stop> {
        let vcpu = &self.vcpu;
        let msr = vcpu.gpr(Gpr::Rcx) as u32;
        let perfmon = self.has_attribute(Attributes::PERFMON.bits());
        let value = match msr {
            DEBUGCTL => vcpu.vmcs(Field::DEBUGCTL) & !UNCORE_PMI,
            XAPIC_DISABLE_STATUS => 1,
            ARCH_CAPABILITIES => self.tdcs.get(fields::VIRTUAL_ARCH_CAPABILITIES),
            MISC_ENABLE if !perfmon => {
                let native = self.cx.machine.rdmsr(self.cx.lp, MISC_ENABLE);
                native & !PERFMON_AVAILABLE | PEBS_UNAVAILABLE
            }
            PERF_CAPABILITIES if !perfmon => 0,
            PERF_CAPABILITIES if vcpu.get(fields::XFAM) >> XFAM_PT & 1 == 0 => {
                self.cx.native().msrs.perf_capabilities & !PEBS_OUTPUT_PT
            }
            0x480..=0x493 => match fields::virtual_vmx_msr(msr) {
                Some(field) => self.tdcs.get(field),
                None => return self.refuse_msr(full, msr, |row| row.read),
            },
            _ => return self.refuse_msr(full, msr, |row| row.read),
        };
        self.set_msr_result(value);
        Ok(())
    }

    /// Handles WRMSR.
    ///
    /// # Errors
    /// As [`Self::rdmsr`].
    #[inline(never)]
    pub fn wrmsr(&self, full: u32) -> Result<(), Stop> {
        let vcpu = &self.vcpu;
        let msr = vcpu.gpr(Gpr::Rcx) as u32;
        let value = vcpu.gpr(Gpr::Rdx) << 32 | vcpu.gpr(Gpr::Rax) & 0xFFFF_FFFF;
        match msr {
            XSS => {
                if value & !(self.cx.native().xss & vcpu.get(fields::XFAM)) != 0 {
                    self.raise_gp();
                } else {
                    vcpu.set_held(Held::Xss, value);
                }
            }
            DEBUGCTL => self.write_debugctl(value),
            EFER => {
                let old = vcpu.vmcs(Field::EFER);
                let new = value & !efer::LMA | old & efer::LMA;
                if (old ^ new) & !efer::SCE != 0 {
                    self.raise_ve(reason::WRMSR, 0, 0, 0);
                } else {
                    vcpu.set_vmcs(Field::EFER, new);
                }
            }
            _ => return self.refuse_msr(full, msr, |row| row.write),
        }
        Ok(())
    }

    fn write_debugctl(&self, value: u64) {
        let vcpu = &self.vcpu;
        if value & DEBUGCTL_RESERVED != 0 {
            return self.raise_gp();
        }
        if value & (TR | BTS) == TR {
            return self.raise_ve(reason::WRMSR, 0, 0, 0);
        }
        let old = vcpu.vmcs(Field::DEBUGCTL);
        vcpu.set_vmcs(Field::DEBUGCTL, value & !UNCORE_PMI | old & UNCORE_PMI);
        if vcpu.vmcs(Field::RFLAGS) & TRAP_FLAG != 0 && (value ^ old) & BTF != 0 {
            let pending = vcpu.vmcs(Field::PENDING_DEBUG) & !SINGLE_STEP;
            let step = if old & BTF != 0 { SINGLE_STEP } else { 0 };
            vcpu.set_vmcs(Field::PENDING_DEBUG, pending | step);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_in_order_and_apart() {
        assert!(ROWS.windows(2).all(|pair| pair[0].last < pair[1].first));
    }

    #[test]
    fn the_time_stamp_counter_can_be_read_but_not_written() {
        let row = find(0x10).unwrap();
        assert_eq!((row.read, row.write), (NATIVE, VE));
    }
}
