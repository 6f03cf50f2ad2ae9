//! Single steps of the guest: over the IRET that ends an NMI handler, for the monitor trap flag, and over an
//! instruction that blocks interrupts, because TCG loses that block when it enters a guest.

use seam::abi::x86::{dr6, rflags, vector};
use stub_module::vcpu::{Field, Vcpu};
use stub_rom::vapic::VirtualApic;

use super::{Next, Td, VmExit, reason};
use crate::monitor::vmcb::{exit, misc1};

/// Primary controls.
const NMI_WINDOW: u64 = 1 << 22;
const MONITOR_TRAP: u64 = 1 << 27;
/// DR6: breakpoints that were hit, and debug-register access.
const DR6_OTHERS: u64 = dr6::BREAKPOINTS | dr6::ACCESS;

/// The purpose of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// The end of an NMI handler.
    Iret,
    /// The monitor trap flag.
    Trap,
    /// The instruction after STI or MOV SS.
    Shadow,
}

/// A step in progress.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    purpose: Purpose,
    /// The guest's own trap flag.
    traps: bool,
    dr6: u64,
    intercepts: u32,
}

impl Td {
    /// Starts a step if the module requests one.
    #[inline(always)]
    pub(super) fn begin_step(&mut self, vcpu: &Vcpu<'_>) {
        let controls = vcpu.vmcs(Field::PROC_BASED);
        // Not during the step over the IRET that ends an NMI handler: it would be intercepted forever.
        if is_window_wanted(vcpu) && self.step.is_none() {
            self.vmcb.intercept_misc1 |= misc1::IRET;
        }
        if controls & MONITOR_TRAP != 0 {
            self.step(Purpose::Trap);
        }
        let injects = self.vmcb.is_injecting();
        if self.vmcb.interrupt_shadow & 1 != 0
            && !injects
            && VirtualApic::of(vcpu).deliverable().is_some()
        {
            self.step(Purpose::Shadow);
        }
    }

    #[inline(never)]
    fn step(&mut self, purpose: Purpose) {
        if self.step.is_some() {
            return;
        }
        let save = &mut self.vmcb.save;
        self.step = Some(Step {
            purpose,
            traps: save.rflags & rflags::TF != 0,
            dr6: save.dr6,
            intercepts: self.vmcb.intercept_exceptions,
        });
        save.rflags |= rflags::TF;
        self.vmcb.intercept_exceptions |= 1 << vector::DB;
    }

    /// Handles the IRET exit: an NMI handler ends, and NMIs are unblocked after the IRET.
    #[inline(never)]
    pub(super) fn iret(&mut self, vcpu: &Vcpu<'_>) -> Next {
        if !self.nmi_blocked && is_window_wanted(vcpu) {
            return Next::Exit(VmExit::of(reason::NMI_WINDOW));
        }
        self.vmcb.intercept_misc1 &= !misc1::IRET;
        self.step(Purpose::Iret);
        Next::Resume
    }

    /// Ends the step in progress, if there is one, at an exit with this code. Returns the outcome if the step was its
    /// only cause.
    #[inline(always)]
    pub(super) fn end_step(&mut self, vcpu: &Vcpu<'_>, code: u64) -> Option<Next> {
        let step = self.step.take()?;
        self.stepped(step, vcpu, code)
    }

    #[inline(never)]
    fn stepped(&mut self, step: Step, vcpu: &Vcpu<'_>, code: u64) -> Option<Next> {
        self.vmcb.intercept_exceptions = step.intercepts;
        let stepped = code == exit::EXCEPTION + u64::from(vector::DB);
        let save = &mut self.vmcb.save;
        if !stepped {
            if !step.traps {
                save.rflags &= !rflags::TF;
            }
            if step.purpose == Purpose::Iret {
                self.vmcb.intercept_misc1 |= misc1::IRET;
            }
            return None;
        }
        // IRET has loaded its own flags.
        if !step.traps && step.purpose != Purpose::Iret {
            save.rflags &= !rflags::TF;
        }
        let others = save.dr6 & DR6_OTHERS & !step.dr6 != 0;
        if !step.traps {
            save.dr6 = save.dr6 & !dr6::SINGLE_STEP | step.dr6 & dr6::SINGLE_STEP;
        }
        self.vmcb.event_injection = 0;
        if step.traps || others {
            self.vmcb.inject_exception(vector::DB, None);
        }
        Some(match step.purpose {
            Purpose::Trap => Next::Exit(VmExit::of(reason::MONITOR_TRAP)),
            Purpose::Shadow => Next::Resume,
            Purpose::Iret => {
                self.nmi_blocked = false;
                if is_window_wanted(vcpu) && !self.vmcb.is_injecting() {
                    Next::Exit(VmExit::of(reason::NMI_WINDOW))
                } else {
                    Next::Resume
                }
            }
        })
    }
}

/// Returns whether the module requests an NMI-window exit.
fn is_window_wanted(vcpu: &Vcpu<'_>) -> bool {
    vcpu.vmcs(Field::PROC_BASED) & NMI_WINDOW != 0
}
