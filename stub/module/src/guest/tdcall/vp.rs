//! TDG.VP.*: the vCPU itself.

use seam::abi::{ConfigFlags, Features0, Operand, Status};

use super::End;
use crate::Machine;
use crate::field::Structure;
use crate::guest::{Inside, TdExit, reason};
use crate::td::tdcs;
use crate::vcpu::{Gpr, fields};

/// RCX bits of TDG.VP.VMCALL that must be clear: RAX, RCX, RSP, and the upper half.
const NEVER_PASSED: u64 = 1 << 0 | 1 << 1 | 1 << 4 | 0xFFFF_FFFF << 32;
/// RBP, which must be clear too if the TD is configured so.
const RBP: u64 = 1 << 5;

impl<M: Machine> Inside<'_, M> {
    /// TDG.VP.VMCALL: RCX selects the registers that the host may read and change.
    #[inline(always)]
    pub fn vmcall(&mut self) -> Result<(), End> {
        let control = self.vcpu.gpr(Gpr::Rcx);
        let keeps_rbp =
            self.tdcs.get(tdcs::field::CONFIG_FLAGS) & ConfigFlags::NO_RBP_MOD.bits() != 0;
        let never = NEVER_PASSED | if keeps_rbp { RBP } else { 0 };
        if control & never != 0 {
            return Err(Status::OPERAND_INVALID.with(Operand::RCX).into());
        }
        self.advance()?;
        let mut exit = TdExit::success(reason::TDCALL).qualified(control);
        exit.vmcall = Some(control);
        Err(End::Stop(exit.into()))
    }

    /// TDG.VP.INFO.
    pub fn vp_info(&self) {
        let (vcpu, tdcs) = (&self.vcpu, &self.tdcs);
        let vcpus = tdcs.get(tdcs::field::NUM_VCPUS) | tdcs.get(tdcs::field::MAX_VCPUS) << 32;
        vcpu.set_gpr(Gpr::Rcx, if tdcs.is_wide() { 52 } else { 48 });
        vcpu.set_gpr(Gpr::Rdx, tdcs.get(tdcs::field::ATTRIBUTES));
        vcpu.set_gpr(Gpr::R8, vcpus);
        vcpu.set_gpr(Gpr::R9, vcpu.get(fields::VCPU_INDEX));
        // TDG.SYS.RD is available.
        vcpu.set_gpr(Gpr::R10, 1);
        vcpu.set_gpr(Gpr::R11, 0);
    }

    /// TDG.VP.VEINFO.GET.
    pub fn veinfo_get(&self, version: u8) -> Result<(), End> {
        let last_version = if self.cx.module.release.has(Features0::VE_INFO_INTR_STATE) {
            2
        } else {
            1
        };
        let vcpu = &self.vcpu;
        let info = |field| vcpu.get(field);
        if version > last_version || !self.has_ve_info() {
            for register in [Gpr::Rcx, Gpr::Rdx, Gpr::R8, Gpr::R9, Gpr::R10] {
                vcpu.set_gpr(register, 0);
            }
            return Err(if version > last_version {
                Status::OPERAND_INVALID.with(Operand::RAX).into()
            } else {
                Status::NO_VALID_VE_INFO.into()
            });
        }
        let instruction =
            info(fields::VE_INSTRUCTION_LENGTH) | info(fields::VE_INSTRUCTION_INFO) << 32;
        let category = if version >= 1 {
            info(fields::VE_CATEGORY) << 32
        } else {
            0
        };
        if version >= 2 {
            vcpu.set_gpr(Gpr::R11, 0);
            vcpu.set_gpr(Gpr::R12, info(fields::VE_INTERRUPTIBILITY));
        }
        vcpu.set_gpr(Gpr::Rcx, info(fields::VE_EXIT_REASON) | category);
        vcpu.set_gpr(Gpr::Rdx, info(fields::VE_QUALIFICATION));
        vcpu.set_gpr(Gpr::R8, info(fields::VE_GLA));
        vcpu.set_gpr(Gpr::R9, info(fields::VE_GPA));
        vcpu.set_gpr(Gpr::R10, instruction);
        vcpu.set(fields::VE_VALID, 0);
        Ok(())
    }

    /// TDG.VP.CPUIDVE.SET: RCX bit 0 in supervisor mode, bit 1 in user mode.
    pub fn cpuidve_set(&self) -> Result<(), End> {
        let control = self.vcpu.gpr(Gpr::Rcx);
        if control & !3 != 0 {
            return Err(Status::OPERAND_INVALID.with(Operand::RCX).into());
        }
        self.vcpu.set(fields::CPUID_SUPERVISOR_VE, control & 1);
        self.vcpu.set(fields::CPUID_USER_VE, control >> 1);
        Ok(())
    }
}
