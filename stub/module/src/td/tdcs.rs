//! TDCS: the state of a TD, in the TDCX pages that the host added to it.

use core::sync::atomic::AtomicU64;

use seam::abi::Attributes;

use super::{OpState, Tdr, tdr};
use crate::field::{Field, Structure};
use crate::lock::Lock;
use crate::{Machine, PageWords};

/// The fields of a TDCS. Page 0 holds most of them, page 1 the rest.
pub mod field {
    use super::Field;

    // Management.
    pub const NUM_VCPUS: Field = Field::u32(0x00);
    pub const NUM_ASSOC_VCPUS: Field = Field::u32(0x04);
    pub const OP_STATE: Field = Field::u32(0x08);
    /// A [`Lock`](crate::lock::Lock).
    pub const OP_STATE_LOCK: Field = Field::u16(0x0c);
    pub const NUM_L2_VMS: Field = Field::u16(0x10);

    // Execution controls.
    pub const ATTRIBUTES: Field = Field::u64(0x80);
    pub const XFAM: Field = Field::u64(0x88);
    pub const MAX_VCPUS: Field = Field::u32(0x90);
    pub const GPAW: Field = Field::u8(0x94);
    pub const EPTP: Field = Field::u64(0x98);
    /// A [`Lock`](crate::lock::Lock).
    pub const SEPT_LOCK: Field = Field::u16(0xa0);
    pub const TSC_OFFSET: Field = Field::u64(0xa8);
    pub const TSC_MULTIPLIER: Field = Field::u64(0xb0);
    pub const TSC_FREQUENCY: Field = Field::u16(0xb8);
    pub const XBUFF_SIZE: Field = Field::u32(0xdc);
    pub const NOTIFY_ENABLES: Field = Field::u64(0xe0);
    pub const HP_LOCK_TIMEOUT: Field = Field::u64(0xe8);
    /// An array of four, one for each VM.
    pub const VM_CTLS: Field = Field::u64(0xf0);
    pub const IA32_SPEC_CTRL_MASK: Field = Field::u64(0x110);
    pub const CONFIG_FLAGS: Field = Field::u64(0x118);
    pub const TD_CTLS: Field = Field::u64(0x120);

    // Page 1: what later releases added.
    /// The x2APIC id of each vCPU, as TDH.VP.INIT was given it.
    pub const X2APIC_IDS: Field = Field::u32(0x1000);
    /// The performance events that the TD may count: umask and event, in ascending order.
    pub const EVENT_FILTERS: Field = Field::u16(0x1900);
    /// CPUID(4) of the CPU: four registers for each of four caches.
    pub const CPUID4_NATIVE_VALUES: Field = Field::u32(0x1D00);
    /// Per VM, the number of events that the filters refused.
    pub const FILTERED_EVENTS_COUNT: Field = Field::u64(0x1D40);
    pub const FEATURE_PARAVIRT_CTLS: Field = Field::u64(0x1D60);
    pub const CPUID_FIXED0_BITMAP: Field = Field::u64(0x1D68);
    pub const VIRT_MAXPA: Field = Field::u8(0x1D70);
    pub const TOPOLOGY_ENUM_CONFIGURED: Field = Field::u8(0x1D71);
    pub const VE_REDUCTION_VALID: Field = Field::u8(0x1D72);
    pub const EVENT_FILTERS_NUM: Field = Field::u16(0x1D78);
    /// The module's version of the measurement in progress.
    pub const MRTD_CONTEXT: Field = Field::u16(0x1D7A);
    pub const FIELD_SUPPORT_AT_INIT: Field = Field::u32(0x1D7C);

    // TLB tracking.
    pub const TD_EPOCH: Field = Field::u64(0x200);
    /// An array of two: the vCPUs inside that entered at an even and at an odd epoch.
    pub const REFCOUNT: Field = Field::u16(0x208);
    /// A [`Lock`](crate::lock::Lock).
    pub const EPOCH_LOCK: Field = Field::u16(0x210);

    // Measurements: 48 bytes each.
    pub const MRTD: Field = Field::u64(0x240);
    pub const MRCONFIGID: Field = Field::u64(0x270);
    pub const MROWNER: Field = Field::u64(0x2a0);
    pub const MROWNERCONFIG: Field = Field::u64(0x2d0);
    /// An array of four.
    pub const RTMR: Field = Field::u64(0x300);
    /// A [`Lock`](crate::lock::Lock).
    pub const RTMR_LOCK: Field = Field::u16(0x3f0);
    /// The chaining value of MRTD under construction: eight 64-bit words.
    pub const MRTD_STATE: Field = Field::u64(0x400);
    /// Bytes that MRTD covers so far.
    pub const MRTD_LENGTH: Field = Field::u64(0x440);

    /// True from the first report until an RTMR is extended.
    pub const INFO_HASH_VALID: Field = Field::u8(0x44A);

    // Migration.
    pub const NUM_MIGS: Field = Field::u16(0x448);
}

/// Page numbers in a TDCS.
pub mod page {
    /// The MSR bitmaps of the TD's vCPUs.
    pub const MSR_BITMAPS: u32 = 2;
    /// The root of the S-EPT.
    pub const SEPT_ROOT: u32 = 3;
    /// The root of L2 VM 1's S-EPT; VM 2's and 3's follow.
    pub const L2_SEPT_ROOT: u32 = 6;
}

/// A TD's TDCS.
#[derive(Debug)]
pub struct Tdcs<'m, M> {
    machine: &'m M,
    tdr: Tdr<'m>,
    first: &'m PageWords,
}

impl<M> Clone for Tdcs<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Tdcs<'_, M> {}

impl<'m, M: Machine> Tdcs<'m, M> {
    /// Returns the TDCS of the TD of `tdr`, which has all its base pages.
    pub fn of(machine: &'m M, tdr: Tdr<'m>) -> Self {
        Self {
            machine,
            tdr,
            first: machine.page(page_pa(machine, &tdr, 0)),
        }
    }

    /// Returns the TD's root.
    pub const fn tdr(&self) -> Tdr<'m> {
        self.tdr
    }

    /// Returns the physical address of page `index`.
    pub fn page_pa(&self, index: u32) -> u64 {
        page_pa(self.machine, &self.tdr, index)
    }

    /// Returns the TD's op-state.
    pub fn op_state(&self) -> OpState {
        OpState::from_number(self.get(field::OP_STATE) as u32)
    }

    /// Sets the TD's op-state.
    pub fn set_op_state(&self, state: OpState) {
        self.set(field::OP_STATE, state as u64);
    }

    /// Returns the lock of the op-state.
    pub fn op_state_lock(&self) -> Lock<'m> {
        Lock::with_host_priority(self.word(field::OP_STATE_LOCK.offset()), 32)
    }

    /// Returns the lock of the S-EPT tree.
    pub fn sept_lock(&self) -> Lock<'m> {
        Lock::new(self.word(field::SEPT_LOCK.offset()), 0)
    }

    /// Returns the lock of the TLB-tracking epoch.
    pub fn epoch_lock(&self) -> Lock<'m> {
        Lock::new(self.word(field::EPOCH_LOCK.offset()), 0)
    }

    /// Returns the lock of the RTMRs.
    pub fn rtmr_lock(&self) -> Lock<'m> {
        Lock::with_host_priority(self.word(field::RTMR_LOCK.offset()), 0)
    }

    /// Returns whether the TD is a debug TD, which the host may inspect.
    pub fn is_debug(&self) -> bool {
        self.get(field::ATTRIBUTES) & Attributes::DEBUG.bits() != 0
    }

    /// Returns whether guest-physical addresses have 52 bits instead of 48.
    pub fn is_wide(&self) -> bool {
        self.get(field::GPAW) != 0
    }

    /// Returns the width of the TD's guest-physical addresses, with the shared bit.
    pub fn gpa_width(&self) -> u32 {
        if self.is_wide() { 52 } else { 48 }
    }

    /// Returns the physical address width that limits the TD's addresses apart from the shared bit.
    fn max_pa(&self) -> u32 {
        match self.get(field::VIRT_MAXPA) {
            0 => MAX_PA,
            width => width as u32,
        }
    }

    /// Returns whether a guest-physical address has no bits beyond its width. The shared bit may be set.
    pub fn is_valid_gpa(&self, gpa: u64) -> bool {
        let shared = 1 << (self.gpa_width() - 1);
        (gpa & !shared) >> self.max_pa().min(self.gpa_width()) == 0
    }

    /// Returns whether a guest-physical address has bits set that the guest's CPU treats as reserved.
    pub fn has_reserved_bits(&self, gpa: u64) -> bool {
        let (width, max_pa) = (self.gpa_width(), self.max_pa());
        let beyond_width = max_pa > width && gpa & bits(width, max_pa) != 0;
        let shared = 1 << (width - 1);
        beyond_width || gpa & bits(max_pa, MAX_PA) & !shared != 0
    }

    /// Returns the physical address of the S-EPT's root.
    pub fn sept_root(&self) -> u64 {
        self.page_pa(page::SEPT_ROOT)
    }

    /// Returns the physical address of the root of the S-EPT of nested VM `vm` (1 to 3).
    pub fn l2_sept_root(&self, vm: u32) -> u64 {
        self.page_pa(page::L2_SEPT_ROOT + vm - 1)
    }

    /// Returns the numbers of the nested VMs that the TD may have.
    pub fn l2_vms(&self) -> core::ops::RangeInclusive<u32> {
        1..=self.get(field::NUM_L2_VMS) as u32
    }

    /// Returns the level of the S-EPT's root entries: 3 or 4.
    pub fn top_level(&self) -> u8 {
        (self.get(field::EPTP) >> 3 & 7) as u8
    }
}

/// The widest physical address of any CPU.
const MAX_PA: u32 = 52;

/// Returns the bits from `low` to below `high`; none if there are none between.
const fn bits(low: u32, high: u32) -> u64 {
    if low < high {
        (1 << high) - (1 << low)
    } else {
        0
    }
}

/// Returns the address of a TDCS page. The TDR holds it with the TD's KeyID.
#[inline(always)]
fn page_pa<M: Machine>(machine: &M, tdr: &Tdr<'_>, index: u32) -> u64 {
    machine
        .platform()
        .without_keyid(tdr.get(tdr::field::TDCX_PA.at(index)))
}

impl<'m, M: Machine> Structure<'m> for Tdcs<'m, M> {
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
