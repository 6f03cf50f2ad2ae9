//! Memory of functions that the guest accesses without the host: where the guest wants it.
//!
//! The guest moves it by configuration writes. The caller of [`Effect::Windows`](crate::Effect::Windows) then maps it
//! where it is wanted, with no function's lock held, and calls [`Bus::settle`]. What is wanted may change meanwhile; the
//! vCPU that changes it does the same afterwards, so the last one leaves what the last write says.

use alloc::boxed::Box;
use sync::atomic::Ordering::Relaxed;

use super::{Bus, Slot};

/// Memory that the guest may access without the host: whole pages of a physical function's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direct {
    /// Base address register.
    pub bar: usize,
    /// Bytes from the start of its memory.
    pub offset: u64,
    /// Physical address.
    pub hpa: u64,
    /// Size in bytes.
    pub bytes: u64,
}

/// Such memory, and its address for the guest at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Index of its function; pieces of one function follow each other.
    pub function: usize,
    /// Physical address.
    pub hpa: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// Guest-physical address, if the function answers.
    pub gpa: Option<u64>,
}

impl Bus {
    /// Returns the memory that the guest may access without the host, always in the same order.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        self.direct.iter().map(|(function, direct)| {
            let start = self.slots[*function].bars[direct.bar].start.load(Relaxed);
            Piece {
                function: *function,
                hpa: direct.hpa,
                bytes: direct.bytes,
                gpa: (start != 0).then(|| start + direct.offset),
            }
        })
    }

    /// Tells the functions that the guest does not access their memory any more. `is_mapped` says of a function
    /// ([`Piece::function`]) whether it does.
    pub fn settle(&self, is_mapped: impl Fn(usize) -> bool) {
        for (function, slot) in self.slots.iter().enumerate() {
            if !is_mapped(function) {
                self.with(slot, |function| function.settled());
            }
        }
    }
}

/// Returns the memory of all functions that the guest may access without the host.
pub fn of(slots: &[Slot]) -> Box<[(usize, Direct)]> {
    let all = slots.iter().enumerate();
    all.flat_map(|(index, slot)| {
        let direct = slot.function.lock().direct();
        direct.into_iter().map(move |direct| (index, direct))
    })
    .collect()
}
