//! TDG.MEM.PAGE.ACCEPT: the guest accepts a page that the host added, and the page is zeroed.

use seam::abi::{GpaLevel, Operand, SeptState, Status};

use super::End;
use crate::guest::ept::extended;
use crate::guest::{Inside, reason};
use crate::lock::Busy;
use crate::sept::{self, Entry, L2Entry, LockedSlot, Slot};
use crate::vcpu::Gpr;
use crate::{Machine, Point, operand};

/// 4 KiB pages per 2 MiB page.
const PAGES: u64 = 512;

impl<M: Machine> Inside<'_, M> {
    /// TDG.MEM.PAGE.ACCEPT: RCX = address and level, 0 or 1.
    pub fn page_accept(&self) -> Result<(), End> {
        let target = operand::gpa_level(self.vcpu.gpr(Gpr::Rcx), 0..=1)?;
        if !operand::is_private_gpa(&self.tdcs, target.gpa()) {
            return Err(Status::OPERAND_INVALID.with(Operand::RCX).into());
        }
        let end = sept::walk(self.cx.machine, &self.tdcs, target.gpa(), target.level());
        if end.level != target.level() {
            return Err(if is_accessible(end.entry) {
                Status::PAGE_ALREADY_ACCEPTED
                    .with_detail(end.level.into())
                    .into()
            } else {
                self.needs_host(target, end.entry, end.level, extended::ACCEPT)
            });
        }
        let slot = self.lock_entry(end.slot)?;
        let entry = slot.load().unlocked();
        let is_free = entry.state() == SeptState::Free;
        if !is_free && !entry.is_leaf() {
            return Err(Status::PAGE_SIZE_MISMATCH
                .with_detail(end.level.into())
                .into());
        }
        if is_accessible(entry) {
            return Err(Status::PAGE_ALREADY_ACCEPTED
                .with_detail(end.level.into())
                .into());
        }
        if entry.state() != SeptState::Pending {
            drop(slot);
            return Err(self.needs_host(target, entry, end.level, extended::ACCEPT));
        }
        let page = entry.page_pa(target.level());
        let mut done = entry.accept_counter(target.level());
        loop {
            self.cx.reached(Point::Movdir64b);
            self.cx.machine.fill_page(page + done * 0x1000, 0);
            done += 1;
            if target.level() == 0 || done == PAGES {
                break;
            }
            if self.cx.interrupt_pending() {
                slot.store(entry.with_accept_counter(done));
                return Err(End::Interrupted);
            }
        }
        for vm in self.tdcs.l2_vms().filter(|vm| entry.is_aliased(*vm)) {
            // A page shared with an L2 VM also has an entry in the S-EPT of that VM.
            if let Ok(l2) = sept::l2_walk(
                self.cx.machine,
                &self.tdcs,
                vm,
                target.gpa(),
                target.level(),
            ) {
                L2Entry::load(l2).unblocked().store(l2);
            }
        }
        slot.store(entry.accepted(target.level()));
        Ok(())
    }

    /// Locks an S-EPT entry. The host has priority.
    pub(super) fn lock_entry<'s>(&self, slot: Slot<'s>) -> Result<LockedSlot<'s>, End> {
        slot.lock_for_guest().map_err(|busy| {
            let code = match busy {
                Busy::Held => Status::OPERAND_BUSY,
                Busy::HostPriority => Status::OPERAND_BUSY_HOST_PRIORITY,
            };
            End::Status(code.with(Operand::RCX))
        })
    }

    /// Leaves the guest because the host must first act on the page. `kind` is the type of the extended exit
    /// qualification.
    pub(super) fn needs_host(&self, target: GpaLevel, entry: Entry, level: u8, kind: u64) -> End {
        const WRITE: u64 = 1 << 1;
        let (shown, _) = entry.describe(self.cx.module.release, level);
        let qualification = WRITE | (shown & 7) << 3;
        let info = u64::from(target.level())
            | u64::from(level) << 3
            | (entry.state() as u64) << 6
            | u64::from(entry.is_leaf()) << 14;
        let extended = kind | info << 32;
        let exit =
            self.violation_exit(reason::EPT_VIOLATION, target.gpa(), qualification, extended);
        End::Stop(exit.into())
    }
}

/// Returns whether the guest can already use the page that an entry maps.
fn is_accessible(entry: Entry) -> bool {
    use SeptState::{BlockedW, ExportedBlockedW, ExportedDirty, ExportedDirtyBlockedW, Mapped};
    matches!(
        entry.state(),
        Mapped | BlockedW | ExportedBlockedW | ExportedDirty | ExportedDirtyBlockedW
    )
}
