//! S-EPT walks.

use seam::abi::level_bytes;

use super::entry::Slot;
use super::{Entry, L2Entry};
use crate::Machine;
use crate::td::Tdcs;

/// The end of a walk.
#[derive(Clone, Copy, Debug)]
pub struct Position<'m> {
    /// The entry in memory.
    pub slot: Slot<'m>,
    /// Its value when the walk reached it.
    pub entry: Entry,
    /// Its level.
    pub level: u8,
}

/// Walks the TD's S-EPT towards the entry of `gpa` at `level`. The walk ends above it where an entry is not present, is
/// blocked, or maps a page.
pub fn walk<'m, M: Machine>(
    machine: &'m M,
    tdcs: &Tdcs<'m, M>,
    gpa: u64,
    level: u8,
) -> Position<'m> {
    walk_from(machine, tdcs.sept_root(), tdcs.top_level(), gpa, level)
}

/// Walks the S-EPT of nested VM `vm` (1 to 3) in the same way.
///
/// # Errors
/// The entry at which the walk ended above `level`, and its level.
pub fn l2_walk<'m, M: Machine>(
    machine: &'m M,
    tdcs: &Tdcs<'m, M>,
    vm: u32,
    gpa: u64,
    level: u8,
) -> Result<Slot<'m>, (L2Entry, u8)> {
    let end = walk_from(machine, tdcs.l2_sept_root(vm), tdcs.top_level(), gpa, level);
    if end.level == level {
        Ok(end.slot)
    } else {
        Err((L2Entry(end.entry.0), end.level))
    }
}

/// Walks the S-EPT at `root`, whose entries are of level `top`, in the same way.
pub fn walk_from<M: Machine>(machine: &M, root: u64, top: u8, gpa: u64, level: u8) -> Position<'_> {
    let mut table = root;
    let mut at = top;
    loop {
        let index = gpa / level_bytes(at) % 512;
        let slot = Slot(&machine.page(table)[index as usize]);
        let entry = slot.load();
        if at == level || at == 0 || !entry.is_present() || entry.is_leaf() {
            return Position {
                slot,
                entry,
                level: at,
            };
        }
        table = entry.table_pa();
        at -= 1;
    }
}
