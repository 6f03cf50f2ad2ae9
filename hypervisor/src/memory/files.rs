//! Memory for files that the operator puts: frames that the direct map has, in one piece for each file.

use alloc::boxed::Box;
use core::slice;

use host::td::files::store::{FileMemory, FileSpace};
use mm::{
    frames::{FRAME, ORDER_1G, blocks_of},
    private::Ledger,
};
use seam::address::Hpa;

use super::{HostFrames, direct, ledger};

/// The machine's memory for files.
#[derive(Clone, Copy, Debug)]
pub struct HostFiles;

impl FileMemory for HostFiles {
    fn take(&self, bytes: u64) -> Option<Box<dyn FileSpace>> {
        let whole = bytes.checked_next_multiple_of(FRAME)?;
        let order = (whole / FRAME).next_power_of_two().ilog2();
        if order > ORDER_1G {
            return None;
        }
        let pa = HostFrames.with(|frames| {
            // The block shows where there is room. Then only what is needed of it is taken.
            let block = frames.alloc_for_host(order).ok()?;
            frames.free(block).ok()?;
            frames.alloc_range((block.pa, block.pa + whole)).ok()?;
            Some(block.pa)
        })?;
        let space = Space { pa, bytes };
        // A TD gets the last page as a whole.
        let last = whole - FRAME;
        // SAFETY: the frames belong to `space`, and the direct map has them.
        unsafe { (direct(pa + last) as *mut u8).write_bytes(0, FRAME as usize) };
        Some(Box::new(space))
    }

    fn total_bytes(&self) -> u64 {
        ledger().0
    }
}

/// The frames of a file.
#[derive(Debug)]
struct Space {
    pa: u64,
    /// Length of the file in bytes.
    bytes: u64,
}

impl FileSpace for Space {
    fn hpa(&self) -> Hpa {
        Hpa(self.pa)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the frames belong to this file, and the direct map has them. Only `write` changes them, with the file
        // borrowed exclusively, and a TD has them mapped read-only.
        unsafe { slice::from_raw_parts(direct(self.pa) as *const u8, self.bytes as usize) }
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        let room = self.bytes.saturating_sub(at).min(bytes.len() as u64) as usize;
        // SAFETY: as above; the part is within the file.
        let to = unsafe {
            slice::from_raw_parts_mut(direct(self.pa + at.min(self.bytes)) as *mut u8, room)
        };
        to.copy_from_slice(&bytes[..room]);
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let end = self.pa + self.bytes.next_multiple_of(FRAME);
        let freed = HostFrames.with(|frames| {
            let mut blocks = blocks_of((self.pa, end));
            blocks.try_for_each(|block| frames.free(block))
        });
        if let Err(error) = freed {
            log::error!("the memory of a file: {error}");
        }
    }
}
