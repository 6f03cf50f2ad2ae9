//! Access of devices to the memory that the guest shares.
//!
//! The guest changes this memory at any time. Each byte is read once. Memory that is not shared is never touched.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use devices::{NotShared, SharedMemory, fw_cfg::Outcome};
use mm::shared::{Frames, SharedMap, Words};
use seam::abi::PAGE_4K;
use seam::address::Gpa;

use super::TRIES;
use crate::branch::Branch;
use crate::current::Current;
use crate::slice::{PhysicalCpu, TimeSlice};

/// Bytes of a word of shared memory.
const WORD: u64 = 8;
/// Number of tries while another vCPU converts memory, a step of 2 MiB at a time.
const PATIENCE: u32 = 64 * TRIES;

/// Carries out a transfer of the firmware configuration device, whose descriptor is at `at`.
#[cold]
#[inline(never)]
pub(super) fn carry_out<S: TimeSlice>(current: &Current<'_, S>, at: u64) -> Branch {
    let cpu = current.slice.cpu();
    // The CPU that converts memory may wait for this CPU, so this loop must not block with interrupts disabled. No
    // device is locked meanwhile.
    let same = (0..PATIENCE).find_map(|_| {
        let same = current.vm.conversions.try_read();
        if same.is_none() {
            cpu.take_interrupts();
        }
        same
    });
    if same.is_none() {
        return Branch::IoTransferRefused;
    }
    let memory = Shared {
        map: current.vm.shared(),
        frames: cpu.shared_frames(),
    };
    match current.vm.devices().transfer(at, &memory) {
        Outcome::Done => Branch::IoTransfer,
        Outcome::Refused => Branch::IoTransferRefused,
    }
}

/// The memory that a TD shares. No memory is converted meanwhile.
struct Shared<'a, F> {
    map: &'a SharedMap,
    frames: &'a F,
}

impl<F: Frames> SharedMemory for Shared<'_, F> {
    fn read(&self, gpa: u64, to: &mut [u8]) -> Result<(), NotShared> {
        self.each_page(gpa, to.len(), |words, at, range| {
            read(words, at, &mut to[range]);
        })
    }

    fn write(&self, gpa: u64, from: &[u8]) -> Result<(), NotShared> {
        self.each_page(gpa, from.len(), |words, at, range| {
            write(words, at, &from[range]);
        })
    }
}

impl<F: Frames> Shared<'_, F> {
    /// Runs `work` for each page of `bytes` bytes from `gpa` on, with the offset in the page and the range of the bytes
    /// that are there. An address may have the SHARED bit, as the CPU's have, or lack it, as a device's do.
    fn each_page(
        &self,
        gpa: u64,
        bytes: usize,
        mut work: impl FnMut(&Words, u64, Range<usize>),
    ) -> Result<(), NotShared> {
        let shared = self.map.shared_bit();
        let start = gpa & !shared;
        let end = start.checked_add(bytes as u64).ok_or(NotShared)?;
        if end > shared {
            return Err(NotShared);
        }
        let mut at = start;
        while at < end {
            let page = at / PAGE_4K * PAGE_4K;
            let next = end.min(page + PAGE_4K);
            let range = (at - start) as usize..(next - start) as usize;
            let done = self.map.with_page(self.frames, Gpa(page), |words| {
                work(words, at - page, range);
            });
            done.map_err(|_| NotShared)?;
            at = next;
        }
        Ok(())
    }
}

/// Copies the bytes from offset `at` on out of a page.
fn read(words: &Words, at: u64, to: &mut [u8]) {
    let mut at = at;
    let mut rest = to;
    while !rest.is_empty() {
        let (word, from) = place(words, at);
        let bytes = &word.load(SeqCst).to_le_bytes()[from..];
        let count = bytes.len().min(rest.len());
        let (now, later) = rest.split_at_mut(count);
        now.copy_from_slice(&bytes[..count]);
        at += count as u64;
        rest = later;
    }
}

/// Copies bytes into a page from offset `at` on. The other bytes of a word are written back as they were: the guest
/// must not change them meanwhile.
fn write(words: &Words, at: u64, from: &[u8]) {
    let mut at = at;
    let mut rest = from;
    while !rest.is_empty() {
        let (word, to) = place(words, at);
        let count = (WORD as usize - to).min(rest.len());
        let (now, later) = rest.split_at(count);
        let mut bytes = match count as u64 {
            WORD => [0; WORD as usize],
            _ => word.load(SeqCst).to_le_bytes(),
        };
        bytes[to..to + count].copy_from_slice(now);
        word.store(u64::from_le_bytes(bytes), SeqCst);
        at += count as u64;
        rest = later;
    }
}

/// Returns the word of a byte in a page, and the byte's place in the word.
fn place(words: &Words, at: u64) -> (&AtomicU64, usize) {
    (&words[(at / WORD) as usize], (at % WORD) as usize)
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    proptest::proptest! {
        #[test]
        fn bytes_are_copied_and_their_neighbours_kept(
            start in 0usize..4096,
            bytes in proptest::collection::vec(1u8.., 0..64),
        ) {
            let bytes = &bytes[..bytes.len().min(4096 - start)];
            let words: Words = [const { AtomicU64::new(0) }; 512];
            write(&words, start as u64, bytes);
            let mut page = [0; 4096];
            read(&words, 0, &mut page);
            let end = start + bytes.len();
            assert_eq!(&page[start..end], bytes);
            assert!(page[..start].iter().chain(&page[end..]).all(|byte| *byte == 0));
            let mut part = vec![0; bytes.len()];
            read(&words, start as u64, &mut part);
            assert_eq!(part, bytes);
        }
    }
}
