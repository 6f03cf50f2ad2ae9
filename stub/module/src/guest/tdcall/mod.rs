//! TDCALL: the functions that the module provides to a TD.

mod accept;
mod attributes;
mod metadata;
mod nested;
mod report;
mod vp;

use seam::abi::{Operand, Status};

use super::{Inside, TdExit};
pub use report::check_report;

use super::exit::Stop;
use crate::field::Structure;
use crate::td::tdcs;
use crate::vcpu::{Gpr, fields};
use crate::{Change, Machine};

/// The end of a TDCALL, other than success.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// The call ends with this status in RAX.
    Status(Status),
    /// The call does not complete: an interrupt came first, and the guest will execute it again.
    Interrupted,
    /// The call does not complete: the guest gets an exception first.
    Injected,
    /// The call leaves the guest.
    Stop(Stop),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<Stop> for End {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

/// Leafs that a TD can call.
mod leaf {
    pub const VP_VMCALL: u64 = 0;
    pub const VP_INFO: u64 = 1;
    pub const MR_RTMR_EXTEND: u64 = 2;
    pub const VP_VEINFO_GET: u64 = 3;
    pub const MR_REPORT: u64 = 4;
    pub const VP_CPUIDVE_SET: u64 = 5;
    pub const MEM_PAGE_ACCEPT: u64 = 6;
    pub const VM_RD: u64 = 7;
    pub const VM_WR: u64 = 8;
    pub const VP_RD: u64 = 9;
    pub const VP_WR: u64 = 10;
    pub const SYS_RD: u64 = 11;
    pub const SYS_RDALL: u64 = 12;
    pub const SERVTD_RD: u64 = 18;
    pub const SERVTD_WR: u64 = 20;
    pub const MR_VERIFYREPORT: u64 = 22;
    pub const MEM_PAGE_ATTR_RD: u64 = 23;
    pub const MEM_PAGE_ATTR_WR: u64 = 24;
    pub const VP_ENTER: u64 = 25;
    pub const VP_INVEPT: u64 = 26;
    pub const VP_INVVPID: u64 = 27;
}

/// Bits of RAX that must be zero.
const RAX_RESERVED: u64 = !0 << 24;

impl<M: Machine> Inside<'_, M> {
    /// Executes a TDCALL. Returns whether it was interrupted.
    ///
    /// # Errors
    /// The reason to leave the guest.
    #[inline(always)]
    pub fn tdcall(&mut self) -> Result<bool, Stop> {
        if !self.is_64_bit() {
            self.raise_gp();
            return Ok(false);
        }
        let status = match self.call_leaf() {
            Ok(()) => Status::SUCCESS,
            Err(End::Status(status)) => status,
            Err(End::Interrupted) => return Ok(true),
            Err(End::Injected) => return Ok(false),
            Err(End::Stop(stop)) => return Err(stop),
        };
        let status = self.mind_host_priority(status)?;
        self.vcpu.set_gpr(Gpr::Rax, status.0);
        Ok(false)
    }

    /// Returns BUSY to a guest whose call yielded to the host. If the host has held the call up for too long, exits to
    /// the host instead.
    fn mind_host_priority(&self, status: Status) -> Result<Status, Stop> {
        let vcpu = &self.vcpu;
        if status.code() != Status::OPERAND_BUSY_HOST_PRIORITY {
            vcpu.set(fields::HP_LOCK_BUSY, 0);
            return Ok(status);
        }
        self.stand_back(status)
    }

    #[inline(never)]
    fn stand_back(&self, status: Status) -> Result<Status, Stop> {
        let vcpu = &self.vcpu;
        let busy = Status::OPERAND_BUSY.with_detail(status.detail());
        let now = self.cx.machine.rdtsc(self.cx.lp);
        if vcpu.get(fields::HP_LOCK_BUSY) == 0 {
            vcpu.set(fields::HP_LOCK_BUSY, 1);
            vcpu.set(fields::HP_LOCK_BUSY_START, now);
            return Ok(busy);
        }
        let waited = now.wrapping_sub(vcpu.get(fields::HP_LOCK_BUSY_START));
        if waited < self.tdcs.get(tdcs::field::HP_LOCK_TIMEOUT) {
            return Ok(busy);
        }
        vcpu.set(fields::HP_LOCK_BUSY, 0);
        vcpu.set_gpr(Gpr::Rax, busy.0);
        self.advance()?;
        Err(TdExit::new(Status::HOST_PRIORITY_BUSY_TIMEOUT, 0).into())
    }

    #[inline(always)]
    fn call_leaf(&mut self) -> Result<(), End> {
        let rax = self.vcpu.gpr(Gpr::Rax);
        let (leaf, version) = (rax & 0xFFFF, (rax >> 16) as u8);
        if rax & RAX_RESERVED != 0 || version > 0 && !self.has_versions(leaf) {
            return Err(Status::OPERAND_INVALID.with(Operand::RAX).into());
        }
        match leaf {
            leaf::VP_VMCALL => self.vmcall(),
            _ => self.call_other_leaf(leaf, version),
        }
    }

    /// Returns whether a leaf has other versions than 0.
    fn has_versions(&self, leaf: u64) -> bool {
        let release = self.cx.module.release;
        leaf == leaf::VM_RD || leaf == leaf::VP_VEINFO_GET && release.does(Change::VEINFO_KIND)
    }

    #[inline(never)]
    fn call_other_leaf(&mut self, leaf: u64, version: u8) -> Result<(), End> {
        match leaf {
            leaf::VP_INFO => {
                self.vp_info();
                Ok(())
            }
            leaf::MR_RTMR_EXTEND => self.rtmr_extend(),
            leaf::VP_VEINFO_GET => self.veinfo_get(version),
            leaf::MR_REPORT => self.report(),
            leaf::VP_CPUIDVE_SET => self.cpuidve_set(),
            leaf::MEM_PAGE_ACCEPT => self.page_accept(),
            leaf::VM_RD => self.vm_rd(version),
            leaf::VM_WR => self.vm_wr(),
            leaf::VP_RD => self.vp_rd(),
            leaf::VP_WR => self.vp_wr(),
            leaf::SYS_RD => self.sys_rd(),
            leaf::SYS_RDALL => self.sys_rdall(),
            leaf::SERVTD_RD => self.servtd(true),
            leaf::SERVTD_WR => self.servtd(false),
            leaf::MR_VERIFYREPORT => self.verify_report(),
            leaf::MEM_PAGE_ATTR_RD => self.page_attr_rd(),
            leaf::MEM_PAGE_ATTR_WR => self.page_attr_wr(),
            leaf::VP_ENTER => self.vp_enter(),
            leaf::VP_INVEPT => self.vp_invept(),
            leaf::VP_INVVPID => self.vp_invvpid(),
            _ => Err(Status::OPERAND_INVALID.with(Operand::RAX).into()),
        }
    }
}
