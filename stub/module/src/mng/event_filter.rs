//! The list of performance events that a TD may count, which TDH.MNG.INIT takes.

use seam::abi::{Operand, PAGE_4K, PAGE_MASK, Status};

use crate::call::Call;
use crate::field::Structure;
use crate::td::{Tdcs, tdcs::field};
use crate::{Machine, memory, operand};

/// Maximum number of entries of the list (MAX_EVENT_FILTERS).
pub const MAX: u16 = 512;

/// An entry of the host's list: event in bits 7:0, "negative" in bit 31, umask in 47:32, umask mask in 63:48.
#[derive(Clone, Copy)]
struct Entry(u64);

impl Entry {
    /// Returns the umask and the event, if the entry has a form that the module supports.
    const fn key(self) -> Option<u16> {
        const RESERVED_AND_NEGATIVE: u64 = 0xFFFF_FF00;
        const UMASK_MASK: u64 = 0xFFFF;
        let (event, umask) = (self.0 & 0xFF, self.0 >> 32 & 0xFFFF);
        let supported = self.0 & RESERVED_AND_NEGATIVE == 0 && self.0 >> 48 == UMASK_MASK;
        if supported && umask <= 0xFF {
            Some((umask << 8 | event) as u16)
        } else {
            None
        }
    }
}

/// Copies the list whose address and length `info` holds into the TDCS.
///
/// # Errors
/// OPERAND_INVALID with R8; EVENT_FILTER_INVALID and EVENT_FILTER_ORDER_INVALID with the index of the entry.
pub fn copy<M: Machine>(cx: Call<'_, M>, tdcs: &Tdcs<'_, M>, info: u64) -> Result<(), Status> {
    let invalid = Status::OPERAND_INVALID.with(Operand::R8);
    let (count, address) = ((info & 0xFFF) as u16, info & !0xFFF);
    if address & !PAGE_MASK != 0 || !(1..=MAX).contains(&count) {
        return Err(invalid);
    }
    let list = operand::shared_buffer(cx, address, PAGE_4K, Operand::R8)?;
    tdcs.set(field::EVENT_FILTERS_NUM, count.into());
    let mut last = None;
    for index in 0..count {
        let entry = Entry(memory::read(cx.machine, list + 8 * u64::from(index)));
        let about = |status: Status| status.with_detail(index.into());
        let key = entry.key().ok_or(about(Status::EVENT_FILTER_INVALID))?;
        if last.is_some_and(|last| last >= key) {
            return Err(about(Status::EVENT_FILTER_ORDER_INVALID));
        }
        tdcs.set(field::EVENT_FILTERS.at(index.into()), key.into());
        last = Some(key);
    }
    Ok(())
}

/// Returns whether a TD may count an event of this umask and number.
pub fn allows<M: Machine>(tdcs: &Tdcs<'_, M>, key: u16) -> bool {
    let count = tdcs.get(field::EVENT_FILTERS_NUM) as u32;
    (0..count).any(|index| tdcs.get(field::EVENT_FILTERS.at(index)) == key.into())
}
