//! The memory of physical devices that a guest accesses without the host: mapped where the guest wants it.
//!
//! The guest moves it by configuration writes of any vCPU. Each vCPU that does so then makes what is mapped equal to
//! what is wanted ([`Current::move_windows`](crate::current::Current::move_windows)), so that the last one leaves what the
//! last write says. Removing waits for other CPUs, whose vCPUs may wait for a device's lock: no such lock is held here.

use alloc::boxed::Box;

use devices::pci::{Bus, Piece};
use mm::private::NoAnswer;
use mm::shared::{DeviceMemory, Flush, Frames, SharedMap};
use seam::address::{Gpa, Hpa};

/// What is mapped.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    /// The address of each piece, in the order of [`Bus::pieces`].
    mapped: Box<[Option<u64>]>,
    /// True while CPUs may use a mapping that was removed.
    is_stale: bool,
}

impl Windows {
    /// Returns the windows of a bus whose functions do not answer yet.
    pub fn of(bus: &Bus) -> Self {
        Self {
            mapped: bus.pieces().map(|_| None).collect(),
            is_stale: false,
        }
    }

    /// Maps the memory of the functions of `bus` where the guest wants it at this moment.
    ///
    /// # Errors
    /// [`NoAnswer`]: a CPU may still use what was removed, and nothing was mapped. The next call goes on.
    pub fn follow(
        &mut self,
        bus: &Bus,
        map: &SharedMap,
        frames: &impl Frames,
        flush: &impl Flush,
    ) -> Result<(), NoAnswer> {
        for (piece, mapped) in bus.pieces().zip(&mut *self.mapped) {
            if let Some(gpa) = *mapped
                && piece.gpa != *mapped
            {
                map.unmap_io(frames, gpa..gpa + piece.bytes);
                (*mapped, self.is_stale) = (None, true);
            }
        }
        if self.is_stale {
            flush.flush()?;
            self.is_stale = false;
        }
        for (piece, mapped) in bus.pieces().zip(&mut *self.mapped) {
            if let (None, Some(memory)) = (&mapped, memory(piece))
                // Where something else is, or without a frame for a table, the host carries out the guest's accesses.
                && map.map_io(frames, memory).is_ok()
            {
                *mapped = Some(memory.gpa.0);
            }
        }
        bus.settle(|function| self.is_mapped(bus, function));
        Ok(())
    }

    fn is_mapped(&self, bus: &Bus, function: usize) -> bool {
        let mut all = bus.pieces().zip(&self.mapped);
        all.any(|(piece, mapped)| piece.function == function && mapped.is_some())
    }
}

/// Returns what is to be mapped of a piece.
fn memory(piece: Piece) -> Option<DeviceMemory> {
    let Piece {
        hpa, bytes, gpa, ..
    } = piece;
    gpa.map(|gpa| DeviceMemory {
        gpa: Gpa(gpa),
        hpa: Hpa(hpa),
        bytes,
    })
}
