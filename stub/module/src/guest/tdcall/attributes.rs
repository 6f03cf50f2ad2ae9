//! TDG.MEM.PAGE.ATTR.RD and WR: the rights of the TD's own L2 VMs to a page.

use seam::abi::{GpaLevel, Operand, PAGE_MASK, SeptState, Status, level_bytes};

use super::End;
use crate::field::Structure;
use crate::guest::ept::extended;
use crate::guest::{Check, Inside, Stop, reason};
use crate::sept::{self, Entry, L2Entry};
use crate::td::tdcs;
use crate::vcpu::Gpr;
use crate::{Machine, Point, operand};

/// Flag in RCX: the page is pending acceptance.
const PENDING: u64 = 1 << 62;
/// VM_CTLS: a missing table in an L2 VM's S-EPT exits to the host.
const EXIT_ON_L2_WALK_FAILURE: u64 = 1;

/// 16 attribute bits for each VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Attributes(u64);

/// One VM's attributes.
mod bits {
    pub const READ: u64 = 1 << 0;
    pub const WRITE: u64 = 1 << 1;
    pub const RIGHTS: u64 = 0xF;
    pub const PAGING_WRITE: u64 = 1 << 5;
    pub const SUPPRESS_VE: u64 = 1 << 7;
    pub const RESERVED: u64 = 0x7F00;
    pub const VALID: u64 = 1 << 15;
}

impl Attributes {
    const fn of(self, vm: u32) -> u64 {
        self.0 >> (16 * vm) & 0xFFFF
    }

    const fn set(&mut self, vm: u32, value: u64) {
        self.0 = self.0 & !(0xFFFF << (16 * vm)) | value << (16 * vm);
    }
}

/// Returns whether a VM may have these attributes: no write without read, no reserved bits.
const fn is_legal(attributes: u64) -> bool {
    let needs_read = attributes & (bits::WRITE | bits::PAGING_WRITE) != 0;
    attributes & bits::VALID != 0
        && attributes & (bits::RESERVED | bits::SUPPRESS_VE) == 0
        && (!needs_read || attributes & bits::READ != 0)
}

/// A planned update of a VM's entry.
#[derive(Clone, Copy)]
struct Update<'m> {
    slot: sept::Slot<'m>,
    attributes: u64,
}

impl<M: Machine> Inside<'_, M> {
    fn num_l2_vms(&self) -> u32 {
        *self.tdcs.l2_vms().end()
    }

    fn set_attribute_outputs(&self, rcx: u64, rdx: u64) {
        self.vcpu.set_gpr(Gpr::Rcx, rcx);
        self.vcpu.set_gpr(Gpr::Rdx, rdx);
    }

    /// TDG.MEM.PAGE.ATTR.RD: RCX = address; out RCX = the page's address, level and state, RDX = attributes.
    pub fn page_attr_rd(&self) -> Result<(), End> {
        let gpa = self.vcpu.gpr(Gpr::Rcx);
        let read = self.read_attributes(gpa);
        let (rcx, rdx) = *read.as_ref().unwrap_or(&(0, 0));
        if !matches!(read, Err(End::Stop(_))) {
            self.set_attribute_outputs(rcx, rdx);
        }
        read.map(drop)
    }

    fn read_attributes(&self, gpa: u64) -> Result<(u64, u64), End> {
        if !operand::is_private_gpa(&self.tdcs, gpa) {
            return Err(Status::OPERAND_INVALID.with(Operand::RCX).into());
        }
        let end = sept::walk(self.cx.machine, &self.tdcs, gpa, 0);
        let slot = self.lock_entry(end.slot)?;
        let entry = slot.load().unlocked();
        if !has_attributes(entry) {
            drop(slot);
            return Err(End::Stop(
                self.violation_exit(reason::EPT_VIOLATION, gpa, 0, 0).into(),
            ));
        }
        let mut attributes = Attributes(0);
        for vm in (1..=self.num_l2_vms()).filter(|vm| entry.is_aliased(*vm)) {
            let l2 = self
                .l2_slot(vm, gpa, end.level)
                .map_err(|_| Stop::Shutdown(Check::L2Sept))?;
            attributes.set(vm, L2Entry::load(l2).attributes(entry.is_write_blocked()));
        }
        let page = gpa & PAGE_MASK & !(level_bytes(end.level) - 1) | u64::from(end.level);
        Ok((page | pending_flag(entry), attributes.0))
    }

    fn l2_slot(&self, vm: u32, gpa: u64, level: u8) -> Result<sept::Slot<'_>, (L2Entry, u8)> {
        sept::l2_walk(self.cx.machine, &self.tdcs, vm, gpa, level)
    }

    /// TDG.MEM.PAGE.ATTR.WR: RCX = address and level, RDX = attributes, R8 = mask of attributes to change, and flags.
    pub fn page_attr_wr(&self) -> Result<(), End> {
        let written = self.write_attributes();
        match &written {
            Ok((rcx, rdx)) => self.set_attribute_outputs(*rcx, *rdx),
            // RDX already holds the invalid attributes.
            Err(End::Status(Status::PAGE_ATTR_INVALID)) => self.vcpu.set_gpr(Gpr::Rcx, 0),
            Err(End::Status(_)) => self.set_attribute_outputs(0, 0),
            Err(_) => {}
        }
        written.map(drop)
    }

    fn write_attributes(&self) -> Result<(u64, u64), End> {
        let wanted = Attributes(self.vcpu.gpr(Gpr::Rdx));
        let flags = Attributes(self.vcpu.gpr(Gpr::R8));
        let vms = self.num_l2_vms();
        for vm in 0..4 {
            let exists = vm != 0 && vm <= vms;
            let attributes = wanted.of(vm);
            if attributes != 0 && (!exists || attributes & bits::VALID == 0) {
                return Err(Status::OPERAND_INVALID.with(Operand::RDX).into());
            }
            if !exists && flags.of(vm) != 0 {
                return Err(Status::OPERAND_INVALID.with(Operand::R8).into());
            }
        }
        let rcx = self.vcpu.gpr(Gpr::Rcx);
        let target = operand::gpa_level(rcx, 0..=2)?;
        if !operand::is_private_gpa(&self.tdcs, target.gpa()) {
            return Err(Status::OPERAND_INVALID.with(Operand::RCX).into());
        }
        let end = sept::walk(self.cx.machine, &self.tdcs, target.gpa(), target.level());
        if end.level != target.level() {
            return Err(self.needs_host(target, end.entry, end.level, extended::ATTR_WR));
        }
        let slot = self.lock_entry(end.slot)?;
        let mut entry = slot.load().unlocked();
        if !entry.is_leaf() && entry.state() != SeptState::Free {
            return Err(Status::PAGE_SIZE_MISMATCH
                .with_detail(end.level.into())
                .into());
        }
        if !has_attributes(entry) {
            drop(slot);
            return Err(self.needs_host(target, entry, end.level, extended::ATTR_WR));
        }
        let mut result = wanted;
        let updates = self.plan(target, entry, flags, &mut result)?;
        for (vm, update) in (1..).zip(updates) {
            let Some(Update { slot, attributes }) = update else {
                continue;
            };
            if attributes & bits::RIGHTS == 0 {
                L2Entry::FREE.store(slot);
                entry = entry.without_alias(vm);
                result.set(vm, bits::VALID);
            } else if entry.is_aliased(vm) {
                L2Entry::load(slot).with_attributes(attributes).store(slot);
            } else {
                L2Entry::page(entry.page_pa(end.level), attributes, entry.is_pending()).store(slot);
                entry = entry.with_alias(vm);
            }
        }
        slot.store(entry);
        self.cx.reached(Point::Invept);
        Ok((rcx | pending_flag(entry), result.0))
    }

    /// Determines the update of each L2 VM's entry, before any entry changes.
    fn plan(
        &self,
        target: GpaLevel,
        entry: Entry,
        flags: Attributes,
        result: &mut Attributes,
    ) -> Result<[Option<Update<'_>>; 3], End> {
        let mut updates = [None; 3];
        let mut invalid = false;
        for (vm, update) in (1..=self.num_l2_vms()).zip(&mut updates) {
            // The lowest flag bits of a VM are for INVEPT. The other flags are a mask in the positions of the
            // attributes.
            let mask = flags.of(vm) | bits::VALID;
            let chosen = result.of(vm) & mask;
            if chosen & bits::VALID == 0 {
                continue;
            }
            if entry.is_aliased(vm) {
                let slot = self
                    .l2_slot(vm, target.gpa(), target.level())
                    .map_err(|_| Stop::Shutdown(Check::L2Sept))?;
                let now = L2Entry::load(slot).attributes(entry.is_write_blocked());
                let attributes = now & !mask | chosen;
                if attributes & bits::RIGHTS != 0 && !is_legal(attributes) {
                    invalid = true;
                    result.set(vm, now);
                } else {
                    result.set(vm, attributes);
                    *update = Some(Update { slot, attributes });
                }
            } else if chosen & bits::RIGHTS != 0 {
                if !is_legal(chosen) {
                    invalid = true;
                    result.set(vm, 0);
                    continue;
                }
                result.set(vm, chosen);
                let slot = self
                    .l2_slot(vm, target.gpa(), target.level())
                    .map_err(|(l2, level)| self.l2_walk_failed(target, vm, l2, level))?;
                *update = Some(Update {
                    slot,
                    attributes: chosen,
                });
            }
        }
        if invalid {
            self.vcpu.set_gpr(Gpr::Rdx, result.0);
            return Err(Status::PAGE_ATTR_INVALID.into());
        }
        Ok(updates)
    }

    fn l2_walk_failed(&self, target: GpaLevel, vm: u32, entry: L2Entry, level: u8) -> End {
        const WRITE: u64 = 1 << 1;
        const GPA_DETAILS: u64 = 2;
        let controls = self.tdcs.get(tdcs::field::VM_CTLS.at(vm));
        if controls & EXIT_ON_L2_WALK_FAILURE == 0 {
            return Status::L2_SEPT_WALK_FAILED
                .with_detail(vm << 16 | u32::from(level))
                .into();
        }
        let rights = entry.rights();
        let info = u64::from(level) << 3 | u64::from(vm) << 20;
        let exit = self.violation_exit(
            reason::EPT_VIOLATION,
            target.gpa(),
            WRITE | rights << 3,
            GPA_DETAILS | info << 32,
        );
        End::Stop(exit.into())
    }
}

fn pending_flag(entry: Entry) -> u64 {
    if entry.is_pending() { PENDING } else { 0 }
}

/// Returns whether an entry maps a page of the TD, accepted or not.
fn has_attributes(entry: Entry) -> bool {
    use SeptState::{Blocked, Free, NonLeafBlocked, NonLeafMapped, PendingBlocked, Removed};
    !matches!(
        entry.state(),
        Free | Removed | Blocked | PendingBlocked | NonLeafBlocked | NonLeafMapped
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_needs_reading() {
        assert!(is_legal(bits::VALID | bits::READ | bits::WRITE));
        assert!(!is_legal(bits::VALID | bits::WRITE));
        assert!(!is_legal(bits::READ));
        assert!(!is_legal(bits::VALID | bits::READ | bits::SUPPRESS_VE));
    }

    #[test]
    fn each_vm_has_16_bits() {
        let mut attributes = Attributes(0);
        attributes.set(1, 0x8007);
        attributes.set(3, 0x8001);
        assert_eq!(attributes.0, 0x8001_0000_8007_0000);
        assert_eq!(attributes.of(1), 0x8007);
    }
}
