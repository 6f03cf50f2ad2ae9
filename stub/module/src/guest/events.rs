//! Events that the module delivers to a guest: exceptions, #VE with its information, NMIs. It also steps past emulated
//! instructions.

use seam::abi::{Features0, Status};

use super::exit::{Check, Stop, TdExit};
use super::{Inside, reason};
use crate::Machine;
use crate::field::Structure;
use crate::vcpu::{Field, Held, fields};

/// VM-entry interruption information of the exceptions that the module raises: vector, hardware exception, error code
/// if any, valid.
mod info {
    pub const UD: u64 = 0x8000_0306;
    pub const DF: u64 = 0x8000_0B08;
    pub const GP: u64 = 0x8000_0B0D;
    pub const PF: u64 = 0x8000_0B0E;
    pub const VE: u64 = 0x8000_0314;
    pub const NMI: u64 = 0x8000_0202;
    /// Vector, type and validity.
    pub const EVENT: u64 = 0x8000_07FF;
    pub const VALID: u64 = 1 << 31;
    /// The bits of IDT-vectoring information that are reinjected, without undefined bits.
    pub const REINJECT: u64 = 0x8000_0FFF;
    pub const HAS_ERROR: u64 = 1 << 11;
    pub const TYPE: u64 = 7 << 8;
    pub const TYPE_NMI: u64 = 2 << 8;
}

/// The reason for a #VE (VE_CATEGORY).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Category {
    /// The TD has yet to accept a page.
    Pending = 0x01,
    /// The guest-physical address has reserved bits.
    Reserved = 0x02,
    /// The host did not configure the feature, or the guest asked for the #VE.
    Configurable = 0x10,
    /// The host emulates the instruction.
    Paravirtual = 0x11,
    /// The TD uses a feature that no TD has.
    Unsupported = 0x80,
}

/// #VE information not yet fetched.
const VE_VALID: u64 = 0xFFFF_FFFF;
/// RFLAGS.TF, RFLAGS.RF.
const TRAP_FLAG: u64 = 1 << 8;
const RESUME_FLAG: u64 = 1 << 16;
/// DEBUGCTL.BTF.
const BRANCH_TRAP: u64 = 1 << 1;
/// Pending debug exceptions: single step.
const SINGLE_STEP: u64 = 1 << 14;
/// Interruptibility: blocking by STI, by MOV SS, by NMI.
const BLOCKED_BY_STI_OR_MOV_SS: u64 = 3;
const BLOCKED_BY_MOV_SS: u64 = 1 << 1;
const BLOCKED_BY_NMI: u64 = 1 << 3;
/// Primary controls: NMI-window exiting.
const NMI_WINDOW: u64 = 1 << 22;
/// EPT violation bit: an IRET had unblocked NMIs.
const NMI_UNBLOCKED_BY_IRET: u64 = 1 << 12;

/// The #VE information about a VM exit.
#[derive(Clone, Copy, Debug)]
pub struct VeInfo {
    /// The exit reason.
    pub reason: u32,
    /// The exit qualification.
    pub qualification: u64,
    /// The guest-physical address, or 0.
    pub gpa: u64,
    /// The guest-linear address, or 0.
    pub gla: u64,
}

impl VeInfo {
    /// Returns the information about an exit that has a reason and nothing else.
    pub const fn of(reason: u32) -> Self {
        Self {
            reason,
            qualification: 0,
            gpa: 0,
            gla: 0,
        }
    }
}

impl<M: Machine> Inside<'_, M> {
    fn raise(&self, event: u64, error_code: Option<u64>) {
        self.vcpu.set_vmcs(Field::ENTRY_INT_INFO, event);
        if let Some(error_code) = error_code {
            self.vcpu.set_vmcs(Field::ENTRY_INT_ERROR, error_code);
        }
        self.vcpu
            .set_vmcs(Field::RFLAGS, self.vcpu.vmcs(Field::RFLAGS) | RESUME_FLAG);
    }

    /// Returns whether an event will be delivered at the next entry.
    pub fn has_event(&self) -> bool {
        self.vcpu.vmcs(Field::ENTRY_INT_INFO) & info::VALID != 0
    }

    /// Raises #UD.
    #[inline(never)]
    pub fn raise_ud(&self) {
        self.raise(info::UD, None);
    }

    /// Raises #GP(0).
    #[inline(never)]
    pub fn raise_gp(&self) {
        self.raise(info::GP, Some(0));
    }

    /// Raises #VE for the current VM exit, or #DF if the guest has not fetched the previous #VE information. The guest is
    /// expected to emulate the instruction.
    pub fn raise_ve(&self, reason: u32, qualification: u64, gpa: u64, gla: u64) {
        self.raise_ve_for(
            Category::Paravirtual,
            VeInfo {
                reason,
                qualification,
                gpa,
                gla,
            },
        );
    }

    /// Raises #VE like [`Self::raise_ve`], with another reason for it.
    pub fn raise_ve_for(&self, category: Category, ve: VeInfo) {
        let VeInfo {
            reason,
            qualification,
            gpa,
            gla,
        } = ve;
        let vcpu = &self.vcpu;
        if self.has_ve_info() {
            self.raise(info::DF, Some(0));
            return;
        }
        for (field, value) in [
            (fields::VE_EXIT_REASON, reason.into()),
            (fields::VE_QUALIFICATION, qualification),
            (fields::VE_GLA, gla),
            (fields::VE_GPA, gpa),
            (fields::VE_EPTP_INDEX, 0),
            (
                fields::VE_INSTRUCTION_LENGTH,
                vcpu.vmcs(Field::EXIT_INSTRUCTION_LENGTH),
            ),
            (
                fields::VE_INSTRUCTION_INFO,
                vcpu.vmcs(Field::EXIT_INSTRUCTION_INFO),
            ),
            (fields::VE_CATEGORY, category as u64),
            (fields::VE_VALID, VE_VALID),
        ] {
            vcpu.set(field, value);
        }
        if self.cx.module.release.has(Features0::VE_INFO_INTR_STATE) {
            let state = vcpu.vmcs(Field::INTERRUPTIBILITY);
            vcpu.set(fields::VE_INTERRUPTIBILITY, state);
        }
        self.raise(info::VE, None);
    }

    /// Returns whether the guest has not fetched the #VE information yet.
    pub fn has_ve_info(&self) -> bool {
        self.vcpu.get(fields::VE_VALID) != 0
    }

    /// Raises #PF at a linear address. A pending #PF or #VE becomes #DF; a pending #DF ends the vCPU.
    ///
    /// # Errors
    /// A triple fault.
    pub fn raise_pf(&self, gla: u64, error_code: u64) -> Result<(), Stop> {
        self.vcpu.set_held(Held::Cr2, gla);
        let pending = self.vcpu.vmcs(Field::ENTRY_INT_INFO) & info::EVENT;
        if pending == info::DF & info::EVENT {
            return Err(TdExit::new(Status::NON_RECOVERABLE_VCPU, reason::TRIPLE_FAULT).into());
        }
        if pending == info::PF & info::EVENT || pending == info::VE & info::EVENT {
            self.raise(info::DF, Some(0));
        } else {
            self.raise(info::PF, Some(error_code));
        }
        Ok(())
    }

    /// Reinjects an event whose delivery the VM exit interrupted.
    #[inline(never)]
    pub fn reinject(&self, vectoring: u64) {
        let vcpu = &self.vcpu;
        if vectoring & info::TYPE == info::TYPE_NMI {
            let blocking = vcpu.vmcs(Field::INTERRUPTIBILITY);
            vcpu.set_vmcs(Field::INTERRUPTIBILITY, blocking & !BLOCKED_BY_NMI);
        }
        vcpu.set_vmcs(Field::ENTRY_INT_INFO, vectoring & info::REINJECT);
        if vectoring & info::HAS_ERROR != 0 {
            vcpu.set_vmcs(
                Field::ENTRY_INT_ERROR,
                vcpu.vmcs(Field::IDT_VECTORING_ERROR),
            );
        }
        vcpu.set_vmcs(
            Field::ENTRY_INSTRUCTION_LENGTH,
            vcpu.vmcs(Field::EXIT_INSTRUCTION_LENGTH),
        );
    }

    /// Blocks NMIs again if an IRET had unblocked them before it caused the VM exit.
    #[inline(never)]
    pub fn reblock_nmi(&self) {
        let blocking = self.vcpu.vmcs(Field::INTERRUPTIBILITY);
        self.vcpu
            .set_vmcs(Field::INTERRUPTIBILITY, blocking | BLOCKED_BY_NMI);
    }

    /// Requests an exit when an NMI can be delivered, if the host has requested an NMI. The guest must fetch #VE
    /// information first.
    pub fn ask_for_nmi_window(&self) {
        if self.vcpu.get(fields::PEND_NMI) != 0 && !self.has_ve_info() {
            let controls = self.vcpu.vmcs(Field::PROC_BASED);
            self.vcpu.set_vmcs(Field::PROC_BASED, controls | NMI_WINDOW);
        }
    }

    /// Handles the NMI window: delivers the NMI that the host requested.
    #[inline(never)]
    pub fn nmi_window(&self) {
        if self.vcpu.get(fields::PEND_NMI) != 0 && !self.has_ve_info() {
            self.vcpu.set_vmcs(Field::ENTRY_INT_INFO, info::NMI);
            self.vcpu.set(fields::PEND_NMI, 0);
        }
        let controls = self.vcpu.vmcs(Field::PROC_BASED);
        self.vcpu
            .set_vmcs(Field::PROC_BASED, controls & !NMI_WINDOW);
    }

    /// Notifies the TD by #VE of possible zero-stepping, if a #VE could have been raised at the last exit.
    #[inline(never)]
    pub fn notify_of_stepping(&self) {
        let vcpu = &self.vcpu;
        let qualification = vcpu.vmcs(Field::EXIT_QUALIFICATION);
        let reason = vcpu.vmcs(Field::EXIT_REASON) as u32;
        let gpa = vcpu.vmcs(Field::GUEST_PHYSICAL_ADDRESS);
        let interrupted = vcpu.vmcs(Field::INTERRUPTIBILITY) & BLOCKED_BY_NMI != 0
            || qualification & NMI_UNBLOCKED_BY_IRET != 0
            || vcpu.vmcs(Field::IDT_VECTORING) & info::VALID != 0;
        let was_private_fault = reason & 0xFFFF == reason::EPT_VIOLATION && !self.is_shared(gpa);
        if was_private_fault && !interrupted && !self.has_ve_info() {
            self.raise_ve_for(
                Category::Pending,
                VeInfo {
                    reason,
                    qualification,
                    gpa,
                    gla: 0,
                },
            );
        }
    }

    /// Steps past the instruction that caused the VM exit.
    ///
    /// # Errors
    /// The module shuts down if the CPU reported no instruction length.
    #[inline(always)]
    pub fn advance(&self) -> Result<(), Stop> {
        let vcpu = &self.vcpu;
        let length = vcpu.vmcs(Field::EXIT_INSTRUCTION_LENGTH);
        if length == 0 {
            return Err(Stop::Shutdown(Check::InstructionLength));
        }
        vcpu.set_vmcs(Field::RIP, vcpu.vmcs(Field::RIP).wrapping_add(length));
        let blocking = vcpu.vmcs(Field::INTERRUPTIBILITY);
        vcpu.set_vmcs(
            Field::INTERRUPTIBILITY,
            blocking & !BLOCKED_BY_STI_OR_MOV_SS,
        );
        self.note_single_step();
        Ok(())
    }

    /// Pends the #DB of a guest that single-steps itself, for an instruction that the module has stepped past.
    fn note_single_step(&self) {
        let vcpu = &self.vcpu;
        let stepping = vcpu.vmcs(Field::RFLAGS) & TRAP_FLAG != 0
            && vcpu.vmcs(Field::DEBUGCTL) & BRANCH_TRAP == 0;
        let pending = vcpu.vmcs(Field::PENDING_DEBUG) & !SINGLE_STEP;
        vcpu.set_vmcs(
            Field::PENDING_DEBUG,
            if stepping {
                pending | SINGLE_STEP
            } else {
                pending
            },
        );
    }

    /// Lets the guest execute one more instruction before anything can interrupt it.
    #[inline(never)]
    pub fn block_by_mov_ss(&self) {
        self.note_single_step();
        let blocking = self.vcpu.vmcs(Field::INTERRUPTIBILITY);
        self.vcpu
            .set_vmcs(Field::INTERRUPTIBILITY, blocking | BLOCKED_BY_MOV_SS);
    }
}
