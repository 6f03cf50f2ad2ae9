//! TDG.VM.RD/WR, TDG.VP.RD/WR and TDG.SYS.RD/RDALL: metadata as a TD sees it.

use core::sync::atomic::Ordering;

use seam::abi::metadata::FieldId;
use seam::abi::{Operand, PAGE_4K, Status};

use super::End;
use crate::Machine;
use crate::guest::Inside;
use crate::metadata::{
    Fields, SysFields, TdFields, VpFields, Who, dump, first_id, next_id, read, write,
};
use crate::vcpu::Gpr;

impl<M: Machine> Inside<'_, M> {
    /// Reads the field in RDX into R8. Stores the next id in RDX if the caller wants it.
    fn rd(&self, fields: &impl Fields, id: FieldId, wants_next: bool) -> Result<(), End> {
        let vcpu = &self.vcpu;
        if wants_next && id.is_null() {
            vcpu.set_gpr(Gpr::Rdx, first_id(fields, Who::Guest).0);
            return Err(Status::METADATA_FIRST_FIELD_ID_IN_CONTEXT.into());
        }
        vcpu.set_gpr(Gpr::R8, read(fields, id, Who::Guest)?);
        if wants_next {
            vcpu.set_gpr(Gpr::Rdx, next_id(fields, id, Who::Guest).0);
        }
        Ok(())
    }

    /// Returns the field id in RDX, and sets the output registers to their values on error.
    fn take_id(&self, wants_next: bool) -> FieldId {
        let id = FieldId(self.vcpu.gpr(Gpr::Rdx));
        if wants_next {
            self.vcpu.set_gpr(Gpr::Rdx, FieldId::NULL.0);
        }
        self.vcpu.set_gpr(Gpr::R8, 0);
        id
    }

    fn check_rcx(&self) -> Result<(), End> {
        if self.vcpu.gpr(Gpr::Rcx) != 0 {
            return Err(Status::OPERAND_INVALID.with(Operand::RCX).into());
        }
        Ok(())
    }

    /// TDG.VM.RD.
    pub fn vm_rd(&self, version: u8) -> Result<(), End> {
        let id = self.take_id(version > 0);
        if version > 1 {
            return Err(Status::OPERAND_INVALID.with(Operand::RAX).into());
        }
        self.check_rcx()?;
        self.rd(&TdFields::new(self.cx, self.tdcs), id, version > 0)
    }

    /// TDG.VM.WR.
    pub fn vm_wr(&self) -> Result<(), End> {
        let (wanted, mask) = (self.vcpu.gpr(Gpr::R8), self.vcpu.gpr(Gpr::R9));
        let id = self.take_id(false);
        self.check_rcx()?;
        let old = write(
            &TdFields::new(self.cx, self.tdcs),
            id,
            Who::Guest,
            wanted,
            mask,
        )?;
        self.vcpu.set_gpr(Gpr::R8, old);
        Ok(())
    }

    fn vp_fields(&self) -> VpFields<'_, M> {
        VpFields::new(self.cx, self.tdcs, self.tdvps)
    }

    /// TDG.VP.RD.
    pub fn vp_rd(&self) -> Result<(), End> {
        let id = self.take_id(true);
        self.check_rcx()?;
        self.rd(&self.vp_fields(), id, true)
    }

    /// TDG.VP.WR.
    pub fn vp_wr(&self) -> Result<(), End> {
        let (wanted, mask) = (self.vcpu.gpr(Gpr::R8), self.vcpu.gpr(Gpr::R9));
        let id = self.take_id(false);
        self.check_rcx()?;
        let old = write(&self.vp_fields(), id, Who::Guest, wanted, mask)?;
        self.vcpu.set_gpr(Gpr::R8, old);
        Ok(())
    }

    /// TDG.SYS.RD.
    pub fn sys_rd(&self) -> Result<(), End> {
        let id = self.take_id(true);
        self.rd(&SysFields::new(self.cx), id, true)
    }

    /// TDG.SYS.RDALL: RDX = list page, R8 = first field.
    pub fn sys_rdall(&self) -> Result<(), End> {
        let (gpa, first) = (self.vcpu.gpr(Gpr::Rdx), FieldId(self.vcpu.gpr(Gpr::R8)));
        self.vcpu.set_gpr(Gpr::R8, FieldId::NULL.0);
        if !gpa.is_multiple_of(PAGE_4K) {
            return Err(Status::OPERAND_INVALID.with(Operand::RDX).into());
        }
        let pa = self
            .translate(gpa, true, true)
            .map_err(|no| no.into_end(Operand::RDX))?;
        let page = self.cx.machine.page(pa);
        let put = |word: usize, value| page[word].store(value, Ordering::Relaxed);
        let next = dump(&SysFields::new(self.cx), first, Who::Guest, put)?;
        self.vcpu.set_gpr(Gpr::R8, next.0);
        if next.is_null() {
            Ok(())
        } else {
            Err(Status::METADATA_LIST_OVERFLOW.into())
        }
    }
}
