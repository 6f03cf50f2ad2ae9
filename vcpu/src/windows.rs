//! The memory of physical devices that a guest accesses without the host: mapped where the guest wants it.
//!
//! The guest moves it by configuration writes of any vCPU. Each vCPU that does so then makes what is mapped equal to
//! what is wanted, so that the last one leaves what the last write says. Removing waits for other CPUs, whose vCPUs may
//! wait for a device's lock: no such lock is held here.

use alloc::boxed::Box;

use devices::pci::{Bus, Piece};
use mm::shared::DeviceMemory;
use seam::address::{Gpa, Hpa};

use crate::current::{Current, Stop};
use crate::ghci::TRIES;
use crate::slice::{PhysicalCpu, TimeSlice};

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

    fn is_mapped(&self, bus: &Bus, function: usize) -> bool {
        let mut all = bus.pieces().zip(&self.mapped);
        all.any(|(piece, mapped)| piece.function == function && mapped.is_some())
    }
}

/// Maps the devices' memory where the guest wants it. If other vCPUs or CPUs are in the way for too long, the vCPU goes
/// on with this before it is entered again.
#[cold]
#[inline(never)]
pub(crate) fn move_patiently<S: TimeSlice>(current: &mut Current<'_, S>) -> Option<Stop> {
    current.vcpu.owes_windows = true;
    for _ in 0..TRIES {
        if current.vm.end().is_some() {
            return Some(Stop::Ended);
        }
        if move_windows(current).is_ok() {
            current.vcpu.owes_windows = false;
            return None;
        }
        current.state.tally().retries.add();
        current.slice.cpu().take_interrupts();
        if current.slice.must_leave() {
            return Some(Stop::Yield);
        }
    }
    Some(Stop::Busy)
}

/// Another vCPU or CPU is in the way.
struct Busy;

fn move_windows<S: TimeSlice>(current: &Current<'_, S>) -> Result<(), Busy> {
    let (vm, frames) = (current.vm, current.slice.cpu().shared_frames());
    let (map, bus) = (vm.shared(), vm.devices().pci());
    let mut windows = vm.conversions.try_write().ok_or(Busy)?;
    let Windows { mapped, is_stale } = &mut *windows;
    for (piece, mapped) in bus.pieces().zip(&mut *mapped) {
        if let Some(gpa) = *mapped
            && piece.gpa != *mapped
        {
            map.unmap_io(frames, gpa..gpa + piece.bytes);
            (*mapped, *is_stale) = (None, true);
        }
    }
    if *is_stale {
        current.slice.flush().map_err(|_| Busy)?;
        *is_stale = false;
    }
    for (piece, mapped) in bus.pieces().zip(mapped) {
        if let (None, Some(memory)) = (&mapped, memory(piece))
            // Where something else is, or without a frame for a table, the host carries out the guest's accesses.
            && map.map_io(frames, memory).is_ok()
        {
            *mapped = Some(memory.gpa.0);
        }
    }
    bus.settle(|function| windows.is_mapped(bus, function));
    Ok(())
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
