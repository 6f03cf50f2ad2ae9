//! TDH.MEM.SEPT.*: the pages of a TD's secure EPT.

use super::mem::at;
use super::td::{Keyed, Tdr};
use super::{Tdh, rcx_rdx};
use crate::abi::{Gprs, Leaf};
use crate::address::{Gpa, Level};
use crate::call::SeamCall;
use crate::error::{Error, Handover, Rejected, SeptEntry};
use crate::page::{Cached, Clean, Donated, Page};
use crate::retry::Wait;

impl<C: SeamCall, W: Wait> Tdh<'_, C, W> {
    /// TDH.MEM.SEPT.ADD: makes `page` the table under the entry of `level` at `gpa`. Level [`Level::Pd`] adds a page
    /// table.
    ///
    /// # Errors
    /// EPT_WALK_FAILED if the table above is missing; EPT_ENTRY_STATE_INCORRECT if the entry is in use.
    pub fn mem_sept_add(
        &self,
        tdr: &Tdr<Keyed>,
        gpa: Gpa,
        level: Level,
        page: Page<Clean>,
    ) -> Handover<Page<Donated>, Page<Clean>> {
        let operands = Gprs {
            r8: page.hpa().0,
            ..rcx_rdx(at(gpa, level), tdr.hpa().0)
        };
        match self.run(Leaf::MemSeptAdd, operands) {
            Ok(_) => Ok(page.turn(Donated)),
            Err(error) => Err(Rejected::new(error, page)),
        }
    }

    /// TDH.MEM.SEPT.REMOVE: removes the table under the entry of `level` at `gpa`. The table must be empty and, if the
    /// TD is finalised, its range blocked and tracked.
    ///
    /// # Errors
    /// EPT_PAGE_NOT_FREE if it still maps something; GPA_RANGE_NOT_BLOCKED, TLB_TRACKING_NOT_DONE if an earlier step is
    /// missing.
    pub fn mem_sept_remove(
        &self,
        tdr: &Tdr<Keyed>,
        gpa: Gpa,
        level: Level,
        page: Page<Donated>,
    ) -> Handover<Page<Cached>, Page<Donated>> {
        let operands = rcx_rdx(at(gpa, level), tdr.hpa().0);
        self.take_back(Leaf::MemSeptRemove, operands, tdr, page)
    }

    /// TDH.MEM.SEPT.RD: reads the entry of `level` at `gpa`, or the one where the walk ended.
    ///
    /// # Errors
    /// EPT_WALK_FAILED if the walk does not reach that level.
    pub fn mem_sept_rd(
        &self,
        tdr: &Tdr<Keyed>,
        gpa: Gpa,
        level: Level,
    ) -> Result<SeptEntry, Error> {
        let operands = rcx_rdx(at(gpa, level), tdr.hpa().0);
        let regs = self.run(Leaf::MemSeptRd, operands)?.regs;
        Ok(SeptEntry::new(regs.rcx, regs.rdx))
    }
}
