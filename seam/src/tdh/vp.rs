//! TDH.VP.*: a TD's vCPUs. `metadata` reads and writes their fields.

use super::mng::check_control_page;
use super::td::{Keyed, Tdr, Tdvpr};
use super::{Tdh, rcx, rcx_rdx};
use crate::abi::{Gprs, Leaf, Operand, Status};
use crate::call::SeamCall;
use crate::error::{Error, Handover, Rejected};
use crate::page::{Clean, Donated, Page};
use crate::retry::Wait;

/// Flags for TDH.VP.ENTER.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EnterFlags {
    /// The host has handled the last exit, which carried the host recoverability hint.
    pub host_recoverability_hint: bool,
    /// Resumes the first-level VM although the last exit was from a nested one.
    pub resume_l1: bool,
}

impl<C: SeamCall, W: Wait> Tdh<'_, C, W> {
    /// TDH.VP.CREATE: creates a vCPU with the root page `page`.
    ///
    /// # Errors
    /// OP_STATE_INCORRECT unless the TD is initialised and not yet finalised.
    pub fn vp_create(&self, tdr: &Tdr<Keyed>, page: Page<Clean>) -> Handover<Tdvpr, Page<Clean>> {
        let result = check_control_page(Leaf::VpCreate, Operand::RCX, &page)
            .and_then(|()| self.run(Leaf::VpCreate, rcx_rdx(page.hpa().0, tdr.hpa().0)));
        match result {
            Ok(_) => Ok(Tdvpr::new(page.turn(Donated))),
            Err(error) => Err(Rejected::new(error, page)),
        }
    }

    /// TDH.VP.ADDCX: adds one page to the vCPU. The metadata field TDVPS_BASE_SIZE / 4096 is the number of pages
    /// needed, the root included.
    ///
    /// # Errors
    /// TDCX_NUM_INCORRECT if the TDVPS is complete.
    pub fn vp_addcx(
        &self,
        tdvpr: &Tdvpr,
        page: Page<Clean>,
    ) -> Handover<Page<Donated>, Page<Clean>> {
        let result = check_control_page(Leaf::VpAddcx, Operand::RCX, &page)
            .and_then(|()| self.run(Leaf::VpAddcx, rcx_rdx(page.hpa().0, tdvpr.hpa().0)));
        match result {
            Ok(_) => Ok(page.turn(Donated)),
            Err(error) => Err(Rejected::new(error, page)),
        }
    }

    /// TDH.VP.INIT: initialises the vCPU, which starts with `initial_rcx` in RCX and R8, and associates it with the
    /// calling CPU. `x2apic_id` is for modules that let the host choose it (TDX_FEATURES0.TOPOLOGY_ENUM); it selects
    /// version 1 of the leaf.
    ///
    /// # Errors
    /// MAX_VCPUS_EXCEEDED if the TD has as many vCPUs as its parameters allow.
    pub fn vp_init(
        &self,
        tdvpr: &Tdvpr,
        initial_rcx: u64,
        x2apic_id: Option<u32>,
    ) -> Result<(), Error> {
        let operands = Gprs {
            r8: x2apic_id.map_or(0, u64::from),
            ..rcx_rdx(tdvpr.hpa().0, initial_rcx)
        };
        let version = u8::from(x2apic_id.is_some());
        self.run_version(Leaf::VpInit, version, operands)?;
        Ok(())
    }

    /// TDH.VP.ENTER: runs the vCPU on the calling CPU until it exits. `regs` holds the guest's answers on entry (RCX is
    /// set here), and the exit information on return. The call is never retried: the run loop decides what to do in
    /// between.
    ///
    /// Most statuses are exits, so they are returned undecoded.
    ///
    /// # Errors
    /// A fault of the instruction alone.
    pub fn vp_enter(
        &self,
        tdvpr: &Tdvpr,
        flags: EnterFlags,
        regs: &mut Gprs,
    ) -> Result<Status, Error> {
        regs.rax = Leaf::VpEnter.rax();
        regs.rcx = tdvpr.hpa().0
            | u64::from(flags.host_recoverability_hint) << 52
            | u64::from(flags.resume_l1) << 53;
        let result = self.call.seamcall(regs);
        self.count(Leaf::VpEnter, result, regs)
    }

    /// TDH.VP.FLUSH: ends the vCPU's association with the calling CPU, which must be the associated one.
    ///
    /// # Errors
    /// VCPU_NOT_ASSOCIATED if the vCPU is associated with another CPU or with none.
    pub fn vp_flush(&self, tdvpr: &Tdvpr) -> Result<(), Error> {
        self.run(Leaf::VpFlush, rcx(tdvpr.hpa().0))?;
        Ok(())
    }
}
