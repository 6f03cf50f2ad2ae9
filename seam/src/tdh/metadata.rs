//! TDH.SYS.RD, TDH.SYS.RDALL, TDH.MNG.RD, TDH.MNG.WR, TDH.VP.RD, TDH.VP.WR: fields of the module, a TD, a vCPU.

use super::td::{Keyed, Tdr, Tdvpr};
use super::{Tdh, rcx_rdx};
use crate::abi::metadata::FieldId;
use crate::abi::{Gprs, Leaf};
use crate::address::Hpa;
use crate::call::SeamCall;
use crate::error::Error;
use crate::retry::Wait;

/// What a read that also walks gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// The field's value; meaningless when [`FieldId::NULL`] was asked for, which gives the first one as the next.
    pub value: u64,
    /// The field that follows; `None` after the last one.
    pub next: Option<FieldId>,
}

impl<C: SeamCall, W: Wait> Tdh<'_, C, W> {
    /// TDH.SYS.RD: reads a field of the module, on a CPU that has done TDH.SYS.LP.INIT.
    ///
    /// # Errors
    /// METADATA_FIELD_ID_INCORRECT for a field that this module does not have; whether it has one, its fields
    /// TDX_FEATURES0 or a walk with [`Self::sys_rd_next`] tell.
    pub fn sys_rd(&self, field: FieldId) -> Result<u64, Error> {
        Ok(self.sys_rd_next(field)?.value)
    }

    /// TDH.SYS.RD: reads a field of the module, and which one follows.
    ///
    /// # Errors
    /// As [`Self::sys_rd`].
    pub fn sys_rd_next(&self, field: FieldId) -> Result<Next, Error> {
        let operands = Gprs {
            rdx: field.0,
            ..Gprs::default()
        };
        let regs = self.run(Leaf::SysRd, operands)?.regs;
        Ok(Next {
            value: regs.r8,
            next: present(regs.rdx),
        })
    }

    /// TDH.SYS.RDALL: writes a list of the module's fields from `first` on into the 4 KiB page at `list`, in the host's own
    /// memory. Returns the field with which to go on, `None` when there are no more.
    ///
    /// # Errors
    /// OPERAND_INVALID on RDX when `list` will not do.
    pub fn sys_rdall(&self, list: Hpa, first: FieldId) -> Result<Option<FieldId>, Error> {
        let operands = Gprs {
            rdx: list.0,
            r8: first.0,
            ..Gprs::default()
        };
        let regs = self.run(Leaf::SysRdall, operands)?.regs;
        Ok(present(regs.r8))
    }

    /// TDH.MNG.RD: reads a field of the TD.
    ///
    /// # Errors
    /// METADATA_FIELD_NOT_READABLE for what only the TD, or the owner of a debuggable one, may see.
    pub fn mng_rd(&self, tdr: &Tdr<Keyed>, field: FieldId) -> Result<u64, Error> {
        let done = self.run(Leaf::MngRd, rcx_rdx(tdr.hpa().0, field.0))?;
        Ok(done.regs.r8)
    }

    /// TDH.MNG.WR: writes the bits `mask` of a field of the TD and returns what it was.
    ///
    /// # Errors
    /// METADATA_FIELD_NOT_WRITABLE, METADATA_WR_MASK_NOT_VALID, METADATA_FIELD_VALUE_NOT_VALID.
    pub fn mng_wr(
        &self,
        tdr: &Tdr<Keyed>,
        field: FieldId,
        value: u64,
        mask: u64,
    ) -> Result<u64, Error> {
        self.write_field(Leaf::MngWr, tdr.hpa(), field, value, mask)
    }

    /// TDH.VP.RD: reads a field of the vCPU. Associates the vCPU with the calling CPU.
    ///
    /// # Errors
    /// VCPU_ASSOCIATED when it is associated with another CPU.
    pub fn vp_rd(&self, tdvpr: &Tdvpr, field: FieldId) -> Result<u64, Error> {
        let done = self.run_here(Leaf::VpRd, 0, rcx_rdx(tdvpr.hpa().0, field.0))?;
        Ok(done.regs.r8)
    }

    /// TDH.VP.WR: writes the bits `mask` of a field of the vCPU and returns what it was. Associates the vCPU with the
    /// calling CPU.
    ///
    /// # Errors
    /// As [`Self::mng_wr`]; VCPU_ASSOCIATED when it is associated with another CPU.
    pub fn vp_wr(
        &self,
        tdvpr: &Tdvpr,
        field: FieldId,
        value: u64,
        mask: u64,
    ) -> Result<u64, Error> {
        self.write_field(Leaf::VpWr, tdvpr.hpa(), field, value, mask)
    }

    fn write_field(
        &self,
        leaf: Leaf,
        of: Hpa,
        field: FieldId,
        value: u64,
        mask: u64,
    ) -> Result<u64, Error> {
        let operands = Gprs {
            r8: value,
            r9: mask,
            ..rcx_rdx(of.0, field.0)
        };
        Ok(self.run(leaf, operands)?.regs.r8)
    }
}

fn present(id: u64) -> Option<FieldId> {
    Some(FieldId(id)).filter(|id| !id.is_null())
}
