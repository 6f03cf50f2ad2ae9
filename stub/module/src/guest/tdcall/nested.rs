//! TDG.VP.ENTER, INVEPT and INVVPID, and TDG.SERVTD.*: the results for a TD without L2 VMs and without bound TDs. This
//! module enters no L2 VM: a TD can give its L2 VMs memory, but can't run them.

use seam::abi::{Operand, Status};

use super::End;
use crate::field::Structure;
use crate::guest::Inside;
use crate::td::tdcs;
use crate::vcpu::Gpr;
use crate::{Machine, Point, operand};

/// RCX of TDG.VP.ENTER and TDG.VP.INVVPID: the VM in bits 53:52.
const VM_SHIFT: u32 = 52;

impl<M: Machine> Inside<'_, M> {
    /// Checks the L2 VM in RCX. The bits in `flags` are also allowed.
    fn check_vm(&self, flags: u64) -> Result<(), End> {
        let rcx = self.vcpu.gpr(Gpr::Rcx);
        let vm = rcx >> VM_SHIFT & 3;
        let reserved = rcx & !(3 << VM_SHIFT | flags);
        if vm == 0 || vm > self.tdcs.get(tdcs::field::NUM_L2_VMS) || reserved != 0 {
            return Err(Status::OPERAND_INVALID.with(Operand::RCX).into());
        }
        Ok(())
    }

    /// TDG.VP.ENTER. An L2 VM can't be entered without a virtual APIC, and none has one.
    pub fn vp_enter(&self) -> Result<(), End> {
        let list = self.vcpu.gpr(Gpr::Rdx);
        if !list.is_multiple_of(256) || !operand::is_private_gpa(&self.tdcs, list) {
            return Err(Status::OPERAND_INVALID.with(Operand::RDX).into());
        }
        self.check_vm(3)?;
        Err(Status::OPERAND_INVALID.with(Operand::L2_VAPIC_GPA).into())
    }

    /// TDG.VP.INVEPT: RCX = L2 VMs, one bit each.
    pub fn vp_invept(&self) -> Result<(), End> {
        let vms = self.vcpu.gpr(Gpr::Rcx);
        let existing = (2 << self.tdcs.get(tdcs::field::NUM_L2_VMS)) - 2;
        if vms & !existing != 0 {
            return Err(Status::OPERAND_INVALID.with(Operand::RCX).into());
        }
        if vms != 0 {
            self.cx.reached(Point::Invept);
        }
        Ok(())
    }

    /// TDG.VP.INVVPID: RCX = L2 VM. An L2 VM that never ran has no translations to invalidate.
    pub fn vp_invvpid(&self) -> Result<(), End> {
        self.check_vm(1)
    }

    /// TDG.SERVTD.RD and WR: no TD can be bound to this one, so every handle is invalid.
    pub fn servtd(&self, reads: bool) -> Result<(), End> {
        if reads {
            self.vcpu.set_gpr(Gpr::Rdx, u64::MAX);
        }
        self.vcpu.set_gpr(Gpr::R8, 0);
        Err(Status::OPERAND_INVALID.with(Operand::RCX).into())
    }
}
