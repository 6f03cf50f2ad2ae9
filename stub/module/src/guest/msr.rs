//! RDMSR and WRMSR of a TD: the MSRs that it accesses directly, those that the module emulates, and those that it
//! refuses.

mod table;

use seam::abi::x86::efer;
use seam::abi::{Attributes, Status, TdCtls};

use super::exit::{Check, Stop, TdExit};
use super::{Category, Inside, VeInfo, reason};
use crate::cpuid::{Features, Native};
use crate::field::Structure;
use crate::mng::event_filter;
use crate::td::{Tdcs, tdcs};
use crate::vcpu::{Field, Gpr, Held, fields};
use crate::vp::vmcs::features;
use crate::{Change, Machine, Release};
use table::Feature::{
    Cet, Lbr, PerfMetrics, Perfmon, PerfmonAndPt, Pks, Pt, Tsx, Uintr, Umwait, Unfiltered, Xfd,
};
use table::{Answer, Feature, Owner, REVISED, ROWS, Row, Rule};

const SMI_COUNT: u32 = 0x34;
const FEATURE_CONTROL: u32 = 0x3A;
const PPIN_CTL: u32 = 0x4E;
const BIOS_UPDATE_TRIGGER: u32 = 0x79;
const BIOS_SIGN_ID: u32 = 0x8B;
const PLATFORM_INFO: u32 = 0xCE;
const FEATURE_ENABLES: u32 = 0x140;
const PERFEVTSEL: core::ops::RangeInclusive<u32> = 0x186..=0x18D;
const X2APIC_ID: u32 = 0x802;
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
/// The module's own mark in the shadow of an IA32_PERFEVTSELx.
const FORBIDDEN_EVENT: u64 = 1 << 63;
/// DEBUGCTL bits.
const BTF: u64 = 1 << 1;
const TR: u64 = 1 << 6;
const BTS: u64 = 1 << 7;
const UNCORE_PMI: u64 = 1 << 13;
const FREEZE_WHILE_SMM: u64 = 1 << 14;
const RTM_DEBUG: u64 = 1 << 15;
const DEBUGCTL_RESERVED: u64 = !0xFFFF | 0x38;
/// RFLAGS.TF; the pending debug exception of a single step.
const TRAP_FLAG: u64 = 1 << 8;
const SINGLE_STEP: u64 = 1 << 14;

fn find(release: Release, msr: u32) -> Option<&'static Row> {
    let of = |rows: &'static [Row]| {
        rows.iter()
            .find(|row| (row.first..=row.last).contains(&msr))
    };
    let revised = release.does(Change::STRICT_MSRS).then(|| of(REVISED));
    revised.flatten().or_else(|| of(ROWS))
}

/// The properties of a TD that its MSRs depend on.
struct TdFeatures<'a> {
    attributes: u64,
    xfam: u64,
    features: Features,
    native: &'a Native,
    reduces_ve: bool,
    filters_events: bool,
}

impl<'a> TdFeatures<'a> {
    fn of<M: Machine>(native: &'a Native, tdcs: &Tdcs<'_, M>) -> Self {
        let controls = tdcs.get(tdcs::field::TD_CTLS);
        Self {
            attributes: tdcs.get(tdcs::field::ATTRIBUTES),
            xfam: tdcs.get(tdcs::field::XFAM),
            features: features(native, tdcs),
            native,
            reduces_ve: controls & TdCtls::REDUCE_VE.bits() != 0,
            filters_events: tdcs.get(tdcs::field::EVENT_FILTERS_NUM) != 0,
        }
    }

    fn owns(&self, owner: Owner) -> bool {
        let features = &self.features;
        match owner {
            Owner::Acpi => features.acpi,
            Owner::CoreCapabilities => features.core_capabilities,
            Owner::Dca => features.dca,
            Owner::Est => features.est,
            Owner::Mca => features.mca,
            Owner::Mtrr => features.mtrr,
            Owner::Pconfig => features.mktme,
            Owner::RdtA => features.rdt_a,
            Owner::RdtM => features.rdt_m,
            Owner::Tm2 => features.tm2,
            Owner::Tme => features.tme,
            Owner::TscDeadline => features.tsc_deadline,
            Owner::Unreduced => !self.reduces_ve,
        }
    }

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
            Unfiltered => perfmon && !self.filters_events,
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

/// Returns whether a guest may load IA32_XSS with this value. A TD with processor trace keeps its state by other means
/// than XSAVES.
const fn accepts_xss(value: u64, native: u64, xfam: u64) -> bool {
    value & !(native & xfam & !(1 << XFAM_PT)) == 0
}

/// Words of an MSR-bitmap page. Initially the bit of every MSR is set.
const BITMAP_WORDS: u32 = 512;

/// Fills a TD's MSR bitmaps: low reads, high reads, low writes, high writes. A set bit makes the access exit.
pub fn fill_bitmaps<M: Machine>(release: Release, native: &Native, tdcs: &Tdcs<'_, M>) {
    let td = TdFeatures::of(native, tdcs);
    for word in 0..BITMAP_WORDS {
        tdcs.set(fields::MSR_BITMAPS.at(word), u64::MAX);
    }
    fill_from(ROWS, &td, tdcs);
    if release.does(Change::STRICT_MSRS) {
        fill_from(REVISED, &td, tdcs);
    }
}

fn fill_from<M: Machine>(rows: &[Row], td: &TdFeatures<'_>, tdcs: &Tdcs<'_, M>) {
    for row in rows {
        // Two separate calls, because a loop over pairs of a rule and a half is miscompiled (docs/miscompilation.md).
        set_bits(tdcs, row, 0, !td.is_native(row.read));
        set_bits(tdcs, row, BITMAP_WORDS / 2, !td.is_native(row.write));
    }
}

/// Sets or clears the bits of MSRs in the half of the bitmaps that starts at word `half`.
fn set_bits<M: Machine>(tdcs: &Tdcs<'_, M>, row: &Row, half: u32, exits: bool) {
    for msr in row.first..=row.last {
        let high = if msr >> 13 == 0 { 0 } else { BITMAP_WORDS / 4 };
        let bit = msr & 0x1FFF;
        let field = fields::MSR_BITMAPS.at(half + high + bit / 64);
        let others = tdcs.get(field) & !(1 << (bit % 64));
        tdcs.set(field, others | u64::from(exits) << (bit % 64));
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
        let release = self.cx.module.release;
        let is_strict = release.does(Change::STRICT_MSRS);
        let td = TdFeatures::of(self.cx.native(), &self.tdcs);
        let answer = match find(release, msr).filter(|_| in_bitmaps) {
            None if is_strict && in_bitmaps => Answer::Having(Owner::Unreduced),
            None => Answer::Ve,
            Some(row) => {
                let rule = rule(row);
                if td.is_native(rule) {
                    return Err(self.unexpected_msr(full));
                }
                match rule {
                    Rule::Native => return Err(self.unexpected_msr(full)),
                    Rule::Answer(answer) | Rule::If(_, answer) => answer,
                }
            }
        };
        match answer {
            Answer::Ve => self.raise_ve(full & 0xFFFF, 0, 0, 0),
            Answer::Gp => self.raise_gp(),
            Answer::Having(owner) if !td.owns(owner) => self.raise_gp(),
            Answer::Having(_) => self.raise_ve_by_choice(full),
            Answer::Emulated if is_strict => self.raise_ve_by_choice(full),
            Answer::Emulated => return Err(self.unexpected_msr(full)),
        }
        Ok(())
    }

    /// Raises #VE for an MSR that the guest can have instead, or do without.
    fn raise_ve_by_choice(&self, full: u32) {
        self.raise_ve_for(Category::Configurable, VeInfo::of(full & 0xFFFF));
    }

    /// Handles an exit for an MSR that the TD accesses directly. Intel's module shuts down. Here only the TD ends,
    /// because the machine's other TDs are not affected.
    #[inline(never)]
    fn unexpected_msr(&self, full: u32) -> Stop {
        self.tell(Check::NativeMsr, false);
        TdExit::new(Status::NON_RECOVERABLE_TD, full).into()
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
        if self.cx.module.release.does(Change::STRICT_MSRS) {
            if PERFEVTSEL.contains(&msr) && !perfmon {
                self.raise_gp();
                return Ok(());
            }
            if let Some(value) = self.read_emulated(msr) {
                self.set_msr_result(value);
                return Ok(());
            }
        }
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

    /// Returns the value of an MSR that the module emulates with [`Change::STRICT_MSRS`], if the TD has it.
    fn read_emulated(&self, msr: u32) -> Option<u64> {
        const LOCKED: u64 = 1;
        let vcpu = &self.vcpu;
        let reduces = self.has_control(TdCtls::REDUCE_VE);
        Some(match msr {
            SMI_COUNT if reduces => vcpu.get(fields::SMI_COUNT),
            FEATURE_CONTROL | PPIN_CTL if reduces => LOCKED,
            BIOS_SIGN_ID if reduces => 0xFFFF_FFFF,
            PLATFORM_INFO | FEATURE_ENABLES if reduces => 0,
            MISC_ENABLE => vcpu.get(fields::MISC_ENABLE),
            X2APIC_ID if self.has_control(TdCtls::ENUM_TOPOLOGY) => self.x2apic_id().into(),
            msr if PERFEVTSEL.contains(&msr) && self.filters_events() => {
                vcpu.get(fields::PERFEVTSEL.at(msr - PERFEVTSEL.start())) & !FORBIDDEN_EVENT
            }
            _ => return None,
        })
    }

    fn filters_events(&self) -> bool {
        self.tdcs.get(tdcs::field::EVENT_FILTERS_NUM) != 0
    }

    /// Writes an MSR that the module emulates with [`Change::STRICT_MSRS`]. Returns false if the TD does not have it.
    fn write_emulated(&self, msr: u32, value: u64) -> bool {
        let reduces = self.has_control(TdCtls::REDUCE_VE);
        match msr {
            SMI_COUNT if reduces => self.vcpu.set(fields::SMI_COUNT, value),
            BIOS_UPDATE_TRIGGER | BIOS_SIGN_ID if reduces => {}
            FEATURE_ENABLES if reduces => {
                if value != 0 {
                    self.raise_gp();
                }
            }
            MISC_ENABLE if reduces => self.write_misc_enable(value),
            msr if PERFEVTSEL.contains(&msr) => {
                if !self.has_attribute(Attributes::PERFMON.bits()) {
                    self.raise_gp();
                } else if self.filters_events() {
                    self.select_event(msr - PERFEVTSEL.start(), value);
                } else {
                    return false;
                }
            }
            _ => return false,
        }
        true
    }

    fn write_misc_enable(&self, value: u64) {
        const ILLEGAL: u64 = 0xFFFF_FFFF_FF3A_E776;
        /// Performance monitoring available; branch trace and PEBS unavailable.
        const READ_ONLY: u64 = 1 << 7 | 1 << 11 | 1 << 12;
        const EST: u64 = 1 << 16;
        const MONITOR: u64 = 1 << 18;
        const LIMIT_CPUID: u64 = 1 << 22;
        const TPR_MESSAGES_OFF: u64 = 1 << 23;
        let vcpu = &self.vcpu;
        let old = vcpu.get(fields::MISC_ENABLE);
        let features = self.features();
        if value & ILLEGAL != 0 || value & EST != 0 && !features.est {
            return self.raise_gp();
        }
        if (value ^ old) & MONITOR != 0 || value & LIMIT_CPUID != 0 {
            return self.raise_ve_for(Category::Unsupported, VeInfo::of(reason::WRMSR));
        }
        if value & TPR_MESSAGES_OFF != 0 && !features.xtpr_update {
            return self.raise_gp();
        }
        vcpu.set(fields::MISC_ENABLE, value & !READ_ONLY | old & READ_ONLY);
    }

    /// Selects the event that a counter counts. A forbidden event is selected without being counted.
    fn select_event(&self, counter: u32, value: u64) {
        const ENABLED: u64 = 1 << 22;
        let is_forbidden = value & ENABLED != 0 && !event_filter::allows(&self.tdcs, value as u16);
        if is_forbidden {
            self.tdcs.add(tdcs::field::FILTERED_EVENTS_COUNT, 1);
        }
        let mark = if is_forbidden { FORBIDDEN_EVENT } else { 0 };
        self.vcpu.set(fields::PERFEVTSEL.at(counter), value | mark);
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
        if self.cx.module.release.does(Change::STRICT_MSRS) && self.write_emulated(msr, value) {
            return Ok(());
        }
        match msr {
            XSS => {
                if !accepts_xss(value, self.cx.native().xss, vcpu.get(fields::XFAM)) {
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
                    self.raise_ve_for(Category::Unsupported, VeInfo::of(reason::WRMSR));
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
            return self.raise_ve_for(Category::Unsupported, VeInfo::of(reason::WRMSR));
        }
        if self.cx.module.release.does(Change::STRICT_MSRS) {
            let freezes = value & FREEZE_WHILE_SMM != 0;
            let has_perfmon = self.has_attribute(Attributes::PERFMON.bits());
            if freezes && !has_perfmon || value & RTM_DEBUG != 0 && !self.features().tsx {
                return self.raise_gp();
            }
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
        for rows in [ROWS, REVISED] {
            assert!(rows.windows(2).all(|pair| pair[0].last < pair[1].first));
        }
    }

    #[test]
    fn xss_never_has_the_component_of_processor_trace() {
        let (cet, pt) = (3 << XFAM_CET, 1 << XFAM_PT);
        assert!(accepts_xss(cet, cet | pt, cet | pt));
        assert!(accepts_xss(0, cet | pt, cet | pt));
        assert!(!accepts_xss(pt, cet | pt, cet | pt));
        assert!(!accepts_xss(cet | pt, cet | pt, cet | pt));
        assert!(!accepts_xss(cet, cet, 0));
    }

    #[test]
    fn the_time_stamp_counter_can_be_read_but_not_written() {
        let row = find(Release::V1_5_01, 0x10).unwrap();
        assert_eq!(
            (row.read, row.write),
            (Rule::Native, Rule::Answer(Answer::Ve))
        );
    }
}
