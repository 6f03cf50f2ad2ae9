//! Conversion of a vCPU's state between its VMCS fields and the VMCB.

use seam::abi::x86::{cr0, cr4, efer, vector};
use stub_module::vcpu::{Field, Gpr, Held, Vcpu};

use super::Td;
use crate::cpu::EFER_SVME;
use crate::monitor::vmcb::{Segment, misc1, misc2};

/// Interruptibility state.
pub mod blocking {
    pub const STI: u64 = 1 << 0;
    pub const MOV_SS: u64 = 1 << 1;
    pub const NMI: u64 = 1 << 3;
}

/// VM-entry, VM-exit or IDT-vectoring information holds an event.
pub const EVENT_VALID: u64 = 1 << 31;
const EVENT_HAS_ERROR: u64 = 1 << 11;
const EVENT_TYPE: u64 = 7 << 8;
const TYPE_NMI: u64 = 2 << 8;
const TYPE_EXCEPTION: u64 = 3 << 8;
const TYPE_SOFTWARE: u64 = 4 << 8;
/// Privileged and other software exceptions (INT1; INT3 and INTO), which SVM delivers as exceptions.
const TYPE_SOFTWARE_EXCEPTION: u64 = 5 << 8;

/// VMX access rights: the segment is unusable.
const UNUSABLE: u64 = 1 << 16;
const PRESENT: u64 = 1 << 7;
/// Primary controls.
const MWAIT_EXITING: u64 = 1 << 10;
const MONITOR_EXITING: u64 = 1 << 29;
/// Pending debug exceptions that are delivered: matched breakpoints, at least one of them enabled, and single step.
const PENDING_BREAKPOINTS: u64 = 0xF;
const PENDING_ENABLED: u64 = 1 << 12;
const PENDING_SINGLE_STEP: u64 = 1 << 14;

/// Returns IA32_EFER for the VMCB. While paging is off, TCG takes LME and NXE as if paging were on, and does not walk
/// the nested tables.
pub fn vmcb_efer(guest: u64, cr0: u64) -> u64 {
    const PAGING: u64 = efer::LME | efer::LMA | efer::NXE;
    EFER_SVME
        | if cr0 & cr0::PG == 0 {
            guest & !PAGING
        } else {
            guest
        }
}

/// Selector, access rights, limit and base.
type SegmentFields = (Field, Field, Field, Field);

macro_rules! segment_fields {
    ($selector:ident, $access:ident, $limit:ident, $base:ident) => {
        (
            Field::$selector,
            Field::$access,
            Field::$limit,
            Field::$base,
        )
    };
}

const ES: SegmentFields = segment_fields!(ES_SELECTOR, ES_ACCESS, ES_LIMIT, ES_BASE);
const CS: SegmentFields = segment_fields!(CS_SELECTOR, CS_ACCESS, CS_LIMIT, CS_BASE);
const SS: SegmentFields = segment_fields!(SS_SELECTOR, SS_ACCESS, SS_LIMIT, SS_BASE);
const DS: SegmentFields = segment_fields!(DS_SELECTOR, DS_ACCESS, DS_LIMIT, DS_BASE);
const FS: SegmentFields = segment_fields!(FS_SELECTOR, FS_ACCESS, FS_LIMIT, FS_BASE);
const GS: SegmentFields = segment_fields!(GS_SELECTOR, GS_ACCESS, GS_LIMIT, GS_BASE);
const LDTR: SegmentFields = segment_fields!(LDTR_SELECTOR, LDTR_ACCESS, LDTR_LIMIT, LDTR_BASE);
const TR: SegmentFields = segment_fields!(TR_SELECTOR, TR_ACCESS, TR_LIMIT, TR_BASE);

#[inline(always)]
fn load_segment(vcpu: &Vcpu<'_>, (selector, access, limit, base): SegmentFields) -> Segment {
    let access = vcpu.vmcs(access);
    let usable = if access & UNUSABLE != 0 {
        access & !PRESENT
    } else {
        access
    };
    Segment {
        selector: vcpu.vmcs(selector) as u16,
        attributes: (usable & 0xFF | usable >> 4 & 0xF00) as u16,
        limit: vcpu.vmcs(limit) as u32,
        base: vcpu.vmcs(base),
    }
}

#[inline(always)]
fn store_segment(
    vcpu: &Vcpu<'_>,
    segment: Segment,
    (selector, access, limit, base): SegmentFields,
) {
    let attributes = u64::from(segment.attributes);
    let unusable = if attributes & PRESENT == 0 {
        UNUSABLE
    } else {
        0
    };
    vcpu.set_vmcs(selector, segment.selector.into());
    vcpu.set_vmcs(
        access,
        attributes & 0xFF | (attributes & 0xF00) << 4 | unusable,
    );
    vcpu.set_vmcs(limit, segment.limit.into());
    vcpu.set_vmcs(base, segment.base);
}

impl Td {
    /// Performs the VM entry: loads the guest's registers and the event to deliver.
    #[inline(always)]
    pub(super) fn load(&mut self, vcpu: &Vcpu<'_>) {
        self.gprs.0 = vcpu.gprs();
        let s = &mut self.vmcb.save;
        s.es = load_segment(vcpu, ES);
        s.cs = load_segment(vcpu, CS);
        s.ss = load_segment(vcpu, SS);
        s.ds = load_segment(vcpu, DS);
        s.fs = load_segment(vcpu, FS);
        s.gs = load_segment(vcpu, GS);
        s.ldtr = load_segment(vcpu, LDTR);
        s.tr = load_segment(vcpu, TR);
        s.gdtr.base = vcpu.vmcs(Field::GDTR_BASE);
        s.gdtr.limit = vcpu.vmcs(Field::GDTR_LIMIT) as u32;
        s.idtr.base = vcpu.vmcs(Field::IDTR_BASE);
        s.idtr.limit = vcpu.vmcs(Field::IDTR_LIMIT) as u32;
        s.cpl = (vcpu.vmcs(Field::SS_ACCESS) >> 5 & 3) as u8;
        s.cr0 = vcpu.vmcs(Field::CR0) | cr0::ET;
        s.efer = vmcb_efer(vcpu.vmcs(Field::EFER), s.cr0);
        s.cr2 = vcpu.held(Held::Cr2);
        s.cr3 = vcpu.vmcs(Field::CR3);
        // A VMCB can't hold VMXE, which a TD's CR4 has.
        s.cr4 = vcpu.vmcs(Field::CR4) & !cr4::VMXE;
        s.dr6 = vcpu.held(Held::Dr6);
        s.dr7 = vcpu.vmcs(Field::DR7);
        s.rflags = vcpu.vmcs(Field::RFLAGS);
        s.rip = vcpu.vmcs(Field::RIP);
        s.rsp = self.gprs.0[Gpr::Rsp as usize];
        s.rax = self.gprs.0[Gpr::Rax as usize];
        s.star = vcpu.held(Held::Star);
        s.lstar = vcpu.held(Held::Lstar);
        s.fmask = vcpu.held(Held::Fmask);
        s.kernel_gs_base = vcpu.held(Held::KernelGsBase);
        s.sysenter_cs = vcpu.vmcs(Field::SYSENTER_CS);
        s.sysenter_esp = vcpu.vmcs(Field::SYSENTER_ESP);
        s.sysenter_eip = vcpu.vmcs(Field::SYSENTER_EIP);
        s.pat = vcpu.vmcs(Field::PAT);
        let state = vcpu.vmcs(Field::INTERRUPTIBILITY);
        self.nmi_blocked = state & blocking::NMI != 0;
        let c = &mut *self.vmcb;
        c.tsc_offset = vcpu.vmcs(Field::TSC_OFFSET);
        c.interrupt_shadow = u64::from(state & (blocking::STI | blocking::MOV_SS) != 0);
        let controls = vcpu.vmcs(Field::PROC_BASED);
        let exiting = |control: u64, bit: u32| if controls & control != 0 { bit } else { 0 };
        c.intercept_misc2 = c.intercept_misc2 & !(misc2::MONITOR | misc2::MWAIT)
            | exiting(MONITOR_EXITING, misc2::MONITOR)
            | exiting(MWAIT_EXITING, misc2::MWAIT);
        c.intercept_exceptions = vcpu.vmcs(Field::EXCEPTION_BITMAP) as u32 | 1 << vector::UD;
        self.load_event(vcpu);
        self.load_extended(vcpu);
        self.ran = true;
    }

    /// Loads the event that the module injects, or a pending debug exception.
    #[inline(always)]
    fn load_event(&mut self, vcpu: &Vcpu<'_>) {
        let event = vcpu.vmcs(Field::ENTRY_INT_INFO);
        let pending = vcpu.vmcs(Field::PENDING_DEBUG);
        self.vmcb.event_injection = 0;
        if event & EVENT_VALID != 0 || pending & (PENDING_ENABLED | PENDING_SINGLE_STEP) != 0 {
            self.inject(vcpu, event, pending);
        }
        vcpu.set_vmcs(Field::PENDING_DEBUG, 0);
        self.vmcb.intercept_misc1 &= !misc1::IRET;
        if self.nmi_blocked {
            self.vmcb.intercept_misc1 |= misc1::IRET;
        }
    }

    #[inline(never)]
    fn inject(&mut self, vcpu: &Vcpu<'_>, event: u64, pending: u64) {
        if event & EVENT_VALID != 0 {
            let kind = match event & EVENT_TYPE {
                kind if kind >= TYPE_SOFTWARE_EXCEPTION => TYPE_EXCEPTION,
                kind => kind,
            };
            if kind == TYPE_NMI {
                self.nmi_blocked = true;
            }
            let error = if event & EVENT_HAS_ERROR != 0 {
                EVENT_HAS_ERROR | vcpu.vmcs(Field::ENTRY_INT_ERROR) << 32
            } else {
                0
            };
            self.vmcb.event_injection = EVENT_VALID | kind | error | event & 0xFF;
            vcpu.set_vmcs(Field::ENTRY_INT_INFO, event & !EVENT_VALID);
        } else {
            self.vmcb.save.dr6 |= pending & (PENDING_BREAKPOINTS | PENDING_SINGLE_STEP);
            self.vmcb.inject_exception(vector::DB, None);
        }
    }

    /// Performs the VM exit: stores the guest's registers where the module reads them.
    #[inline(always)]
    pub(super) fn store(&mut self, vcpu: &Vcpu<'_>) {
        vcpu.set_gprs(&self.gprs.0);
        let s = &self.vmcb.save;
        store_segment(vcpu, s.es, ES);
        store_segment(vcpu, s.cs, CS);
        store_segment(vcpu, s.ss, SS);
        store_segment(vcpu, s.ds, DS);
        store_segment(vcpu, s.fs, FS);
        store_segment(vcpu, s.gs, GS);
        store_segment(vcpu, s.ldtr, LDTR);
        store_segment(vcpu, s.tr, TR);
        // VMX keeps the privilege level in SS.
        let ss = vcpu.vmcs(Field::SS_ACCESS);
        vcpu.set_vmcs(Field::SS_ACCESS, ss & !(3 << 5) | u64::from(s.cpl & 3) << 5);
        let mut state = if self.vmcb.interrupt_shadow & 1 != 0 {
            blocking::STI
        } else {
            0
        };
        if self.nmi_blocked {
            state |= blocking::NMI;
        }
        vcpu.set_vmcs(Field::GDTR_BASE, s.gdtr.base);
        vcpu.set_vmcs(Field::GDTR_LIMIT, s.gdtr.limit.into());
        vcpu.set_vmcs(Field::IDTR_BASE, s.idtr.base);
        vcpu.set_vmcs(Field::IDTR_LIMIT, s.idtr.limit.into());
        vcpu.set_vmcs(
            Field::EFER,
            vcpu.vmcs(Field::EFER) & !efer::LMA | s.efer & efer::LMA,
        );
        vcpu.set_vmcs(Field::CR0, s.cr0);
        vcpu.set_vmcs(Field::CR3, s.cr3);
        vcpu.set_vmcs(Field::CR4, s.cr4 | cr4::VMXE);
        vcpu.set_vmcs(Field::DR7, s.dr7);
        vcpu.set_vmcs(Field::RFLAGS, s.rflags);
        vcpu.set_vmcs(Field::RIP, s.rip);
        vcpu.set_vmcs(Field::SYSENTER_CS, s.sysenter_cs);
        vcpu.set_vmcs(Field::SYSENTER_ESP, s.sysenter_esp);
        vcpu.set_vmcs(Field::SYSENTER_EIP, s.sysenter_eip);
        vcpu.set_vmcs(Field::INTERRUPTIBILITY, state);
        vcpu.set_held(Held::Cr2, s.cr2);
        vcpu.set_held(Held::Dr6, s.dr6);
        vcpu.set_held(Held::Star, s.star);
        vcpu.set_held(Held::Lstar, s.lstar);
        vcpu.set_held(Held::Fmask, s.fmask);
        vcpu.set_held(Held::KernelGsBase, s.kernel_gs_base);
        self.store_extended(vcpu);
    }

    /// Returns the event whose delivery the last exit interrupted, as IDT-vectoring information and error code.
    ///
    /// A software interrupt is not reported: its instruction is executed again. Neither is a virtual interrupt that is
    /// still offered. TCG reports interrupts and NMIs as exceptions there.
    pub(super) fn vectoring(&self) -> (u64, u64) {
        const FIRST_INTERRUPT: u64 = 32;
        let event = self.vmcb.exit_interrupt_info;
        let number = event & 0xFF;
        if event & EVENT_VALID == 0
            || event & EVENT_TYPE == TYPE_SOFTWARE
            || number >= FIRST_INTERRUPT && self.is_offered(number as u8)
        {
            return (0, 0);
        }
        let kind = match number {
            FIRST_INTERRUPT.. => 0,
            2 => TYPE_NMI,
            _ => TYPE_EXCEPTION,
        };
        let error = event & EVENT_HAS_ERROR;
        (EVENT_VALID | kind | error | number, event >> 32)
    }

    /// Delivers the event again whose delivery the last exit interrupted.
    pub(super) fn redeliver(&mut self) {
        let (event, error) = self.vectoring();
        if event & EVENT_VALID != 0 {
            self.vmcb.event_injection = event | error << 32;
        }
    }
}
