//! Entries of a nested VM's S-EPT. Such an S-EPT maps the same pages as the TD's own, with rights that the TD chooses.

use seam::abi::PAGE_MASK;

use super::entry::{
    BLOCKED, EXECUTE_USER, Entry, IGNORE_PAT, LEAF, MEMORY_TYPE, RWX, SUPPRESS_VE, Slot, WRITE_BACK,
};

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const RIGHTS: u64 = RWX | EXECUTE_USER;
/// Bits that save the rights of a blocked page.
const SAVED_READ: u64 = 1 << 3;
const SAVED_EXECUTE: u64 = 1 << 4;
const SAVED_EXECUTE_USER: u64 = 1 << 5;
const SAVED_WRITE: u64 = 1 << 59;
const VERIFY_PAGING: u64 = 1 << 57;
const PAGING_WRITE: u64 = 1 << 58;
const SHADOW_STACK: u64 = 1 << 60;

const STATE: u64 = READ | IGNORE_PAT | LEAF | BLOCKED;
/// The state bits of a page, which exclude the right to read.
const PAGE_STATE: u64 = STATE & !READ;
const MAPPED: u64 = IGNORE_PAT | LEAF;
const BLOCKED_PAGE: u64 = MAPPED | BLOCKED;

/// The value of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L2Entry(pub u64);

impl L2Entry {
    /// An unmapped entry.
    pub const FREE: Self = Self(0);

    /// Returns an entry for a page table.
    pub const fn table(pa: u64) -> Self {
        Self(pa & PAGE_MASK | RIGHTS)
    }

    /// Returns an entry for a page with these attributes, in the format of [`Self::attributes`]. It is blocked if the
    /// TD has yet to accept the page.
    pub const fn page(pa: u64, attributes: u64, blocked: bool) -> Self {
        let page = Self(pa & PAGE_MASK | WRITE_BACK | MAPPED).with_attributes(attributes);
        if blocked { page.blocked(false) } else { page }
    }

    /// Returns the same page with other attributes. A blocked page stays blocked.
    pub const fn with_attributes(self, attributes: u64) -> Self {
        const ATTRIBUTES: u64 = RIGHTS | VERIFY_PAGING | PAGING_WRITE | SHADOW_STACK | SUPPRESS_VE;
        let value = attributes & RWX
            | flag_of(attributes, 1 << 3, 10)
            | flag_of(attributes, 1 << 4, 57)
            | flag_of(attributes, 1 << 5, 58)
            | flag_of(attributes, 1 << 6, 60)
            | flag_of(attributes, 1 << 7, 63);
        let changed = Self(self.0 & !ATTRIBUTES | value);
        if self.is_page_blocked() {
            changed.blocked(false)
        } else {
            changed
        }
    }

    /// Returns the rights that the CPU sees: read, write, execute, and execute in user mode in bit 3.
    pub const fn rights(self) -> u64 {
        self.0 & RWX | flag_of(self.0, EXECUTE_USER, 3)
    }

    /// Loads the entry in `slot`.
    pub fn load(slot: Slot<'_>) -> Self {
        Self(slot.load().0)
    }

    /// Replaces the entry in `slot`.
    pub fn store(self, slot: Slot<'_>) {
        slot.store(Entry(self.0));
    }

    /// Returns whether nothing is mapped.
    pub const fn is_free(self) -> bool {
        self.0 & STATE == 0
    }

    /// Returns whether it maps a page.
    pub const fn is_leaf(self) -> bool {
        self.0 & LEAF != 0
    }

    const fn is_page_blocked(self) -> bool {
        self.0 & PAGE_STATE == BLOCKED_PAGE
    }

    /// Returns the page table's address.
    pub const fn table_pa(self) -> u64 {
        self.0 & PAGE_MASK
    }

    /// Returns the same entry for another page.
    pub const fn with_pa(self, pa: u64) -> Self {
        Self(self.0 & !PAGE_MASK | pa & PAGE_MASK)
    }

    /// Returns the entry with its range blocked. If the TD's own entry is write-blocked, the right to write is saved
    /// already.
    pub const fn blocked(self, write_blocked: bool) -> Self {
        if !self.is_leaf() {
            return Self(self.0 & !(STATE | RIGHTS) | BLOCKED);
        }
        let mut value = self.0 & !(SAVED_READ | SAVED_EXECUTE | SAVED_EXECUTE_USER);
        if !write_blocked {
            value &= !SAVED_WRITE;
            if self.0 & WRITE != 0 {
                value |= SAVED_WRITE;
            }
        }
        if self.0 & READ != 0 {
            value |= SAVED_READ;
        }
        if self.0 & EXECUTE != 0 {
            value |= SAVED_EXECUTE;
        }
        if self.0 & EXECUTE_USER != 0 {
            value |= SAVED_EXECUTE_USER;
        }
        Self(value & !(PAGE_STATE | RIGHTS) | BLOCKED_PAGE)
    }

    /// Returns the entry with its range unblocked. An entry that is not blocked is unchanged.
    pub const fn unblocked(self) -> Self {
        if self.0 & STATE == BLOCKED {
            return Self(self.0 & !(STATE | MEMORY_TYPE | SAVED_WRITE) | RIGHTS);
        }
        if !self.is_page_blocked() {
            return self;
        }
        Self(
            self.0 & !(PAGE_STATE | RIGHTS | MEMORY_TYPE | SAVED_WRITE)
                | MAPPED
                | WRITE_BACK
                | self.saved_rights(),
        )
    }

    const fn saved_rights(self) -> u64 {
        let mut rights = 0;
        if self.0 & SAVED_READ != 0 {
            rights |= READ;
        }
        if self.0 & SAVED_WRITE != 0 {
            rights |= WRITE;
        }
        if self.0 & SAVED_EXECUTE != 0 {
            rights |= EXECUTE;
        }
        if self.0 & SAVED_EXECUTE_USER != 0 {
            rights |= EXECUTE_USER;
        }
        rights
    }

    /// Returns the attributes of the range for this VM, as TDH.MEM.SEPT.RD reports them in 16 bits of R8: R, W, Xs, Xu
    /// in bits 3:0, VGP, PWA, SSS, SVE in bits 7:4, VALID in bit 15.
    pub const fn attributes(self, write_blocked: bool) -> u64 {
        const VALID: u64 = 1 << 15;
        let sve = self.0 >> 63 << 7;
        if self.is_free() {
            return sve;
        }
        if !self.is_leaf() {
            return VALID | 0xf;
        }
        let mut rights = self.0 & RIGHTS;
        if self.is_page_blocked() {
            let saved = self.saved_rights();
            rights = if write_blocked {
                rights & !WRITE | saved & WRITE
            } else {
                saved
            };
        }
        VALID
            | rights & RWX
            | (rights >> 10 & 1) << 3
            | flag_of(self.0, VERIFY_PAGING, 4)
            | flag_of(self.0, PAGING_WRITE, 5)
            | flag_of(self.0, SHADOW_STACK, 6)
            | sve
    }

    /// Returns RCX and RDX as the module describes an entry of `level` to the host.
    pub const fn describe(self, vm: u32, level: u8, debug: bool) -> (u64, u64) {
        const PAGE: u64 = MEMORY_TYPE | PAGE_MASK | IGNORE_PAT | LEAF | SUPPRESS_VE;
        const ATTRIBUTES: u64 = RIGHTS | VERIFY_PAGING | PAGING_WRITE | SHADOW_STACK;
        let (shown, state) = if self.is_free() {
            (SUPPRESS_VE, 0x40)
        } else if self.is_leaf() {
            let state = if self.is_page_blocked() { 0x41 } else { 0x44 };
            let shown = if debug {
                self.0 & (PAGE | ATTRIBUTES)
            } else if self.is_page_blocked() {
                self.0 & PAGE
            } else {
                self.0 & PAGE | RIGHTS
            };
            (shown, state)
        } else {
            let state = if self.0 & BLOCKED != 0 { 0xc1 } else { 0xc4 };
            (self.0 & (RIGHTS | LEAF), state)
        };
        (shown, level as u64 | state << 8 | (vm as u64) << 16)
    }
}

const fn flag_of(value: u64, bit: u64, to: u32) -> u64 {
    if value & bit != 0 { 1 << to } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_page_keeps_its_rights() {
        let page = L2Entry(0x20_0000 | READ | EXECUTE | WRITE_BACK | MAPPED);
        let blocked = page.blocked(false);
        assert_eq!(blocked.0 & RIGHTS, 0);
        assert_eq!(blocked.attributes(false), page.attributes(false));
        assert_eq!(blocked.unblocked(), page);
    }

    #[test]
    fn a_blocked_table_opens_again() {
        let table = L2Entry::table(0x20_0000);
        assert!(!table.is_free() && !table.is_leaf());
        assert_eq!(table.blocked(false).unblocked(), table);
        assert_eq!(table.describe(2, 1, false).1, 0x2_c401);
    }
}
