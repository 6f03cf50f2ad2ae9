//! TDVPS: the state of a vCPU, in its TDVPR page and the TDCX pages that the host added to it.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::field::{Field, Structure};
use crate::{Machine, PageWords};

/// The management fields of a TDVPS, all in its first page.
pub mod field {
    use super::Field;

    pub const STATE: Field = Field::u8(0x100);
    pub const LAST_TD_EXIT: Field = Field::u8(0x101);
    pub const NUM_TDVPS_PAGES: Field = Field::u8(0x107);
    /// An array of fifteen. The first is the TDVPR's own address.
    pub const TDVPS_PAGE_PA: Field = Field::u64(0x108);
    pub const ASSOC_LPID: Field = Field::u32(0x1c8);
    pub const VCPU_EPOCH: Field = Field::u64(0x1d0);
}

/// "No logical processor" in ASSOC_LPID.
pub const NO_LP: u64 = 0xffff_ffff;

/// The state of a vCPU (STATE).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuState {
    /// Created, not initialised.
    Uninitialized = 0,
    /// Can be entered.
    Ready = 2,
    /// Inside the guest.
    Active = 4,
    /// Can't be entered any more.
    Disabled = 8,
    /// Being imported.
    Import = 0x10,
}

impl VcpuState {
    /// Returns the state with that number, which the module itself wrote.
    pub fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Uninitialized,
            2 => Self::Ready,
            4 => Self::Active,
            8 => Self::Disabled,
            _ => Self::Import,
        }
    }
}

/// A vCPU's TDVPS.
#[derive(Debug)]
pub struct Tdvps<'m, M> {
    machine: &'m M,
    first: &'m PageWords,
}

impl<M> Clone for Tdvps<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Tdvps<'_, M> {}

impl<'m, M: Machine> Tdvps<'m, M> {
    /// Returns the TDVPS whose TDVPR is at `pa`.
    pub fn at(machine: &'m M, pa: u64) -> Self {
        Self {
            machine,
            first: machine.page(pa),
        }
    }

    /// Returns the vCPU's state.
    #[inline(always)]
    pub fn state(&self) -> VcpuState {
        VcpuState::from_number(self.get(field::STATE))
    }

    /// Sets the vCPU's state.
    #[inline(always)]
    pub fn set_state(&self, state: VcpuState) {
        self.set(field::STATE, state as u64);
    }

    /// Returns the number of pages, including the TDVPR.
    pub fn num_pages(&self) -> u32 {
        self.get(field::NUM_TDVPS_PAGES) as u32
    }

    /// Returns the physical address of page `index`, without its KeyID.
    #[inline(always)]
    pub fn page_pa(&self, index: u32) -> u64 {
        // Reads the first page directly: `get` depends on this function.
        let field = field::TDVPS_PAGE_PA.at(index);
        let guarded = self.first[field.offset() as usize / 8].load(Ordering::Acquire);
        self.machine.platform().without_keyid(guarded)
    }
}

impl<'m, M: Machine> Structure<'m> for Tdvps<'m, M> {
    #[inline(always)]
    fn word(&self, offset: u32) -> &'m AtomicU64 {
        let page = offset / 4096;
        let words = if page == 0 {
            self.first
        } else {
            self.machine.page(self.page_pa(page))
        };
        &words[offset as usize % 4096 / 8]
    }
}
