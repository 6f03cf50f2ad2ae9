//! MapGPA: memory that goes from private to shared, or back.
//!
//! It goes in steps of 2 MiB. Between two of them the host takes its interrupts, and the guest gets its own: then the call
//! ends with RETRY and the address to go on from. What the memory held is lost either way.

use core::ops::Range;

use mm::private::{Cpu, Error, Outcome};
use mm::shared;
use seam::abi::{PAGE_2M, PAGE_4K, PageSize};
use seam::address::Gpa;

use super::{Branch, TRIES};
use crate::board::End;
use crate::fault::is_busy;
use crate::host::Host;
use crate::run::{Session, Stop};

/// What memory is to become.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Shared,
    Private,
}

/// Why a step was not made.
enum Failed {
    /// The same step may succeed later.
    Later,
    /// The host has no frame for it.
    NoFrames,
    /// The TD comes to its end.
    Over(Stop),
}

impl<H: Host> Session<'_, H> {
    /// R12: address, whose SHARED bit says what it is to become; R13: bytes. Answers the address of what was not done in
    /// R11.
    pub(super) fn map_gpa(&mut self) -> (Branch, Option<Stop>) {
        let shared = self.board.shared().shared_bit();
        let (from, bytes) = (self.vcpu.regs.r12, self.vcpu.regs.r13);
        self.vcpu.regs.r11 = from;
        let to = if from & shared == 0 {
            To::Private
        } else {
            To::Shared
        };
        let start = from & !shared;
        let end = match start.checked_add(bytes) {
            Some(end) if bytes != 0 && end <= shared => end,
            _ => return (Branch::MapInvalid, None),
        };
        if !start.is_multiple_of(PAGE_4K) || !bytes.is_multiple_of(PAGE_4K) {
            return (Branch::MapMisaligned, None);
        }
        let mut at = start;
        while at < end {
            // Nothing is to be done where there is no memory.
            let Some(next) = self.step_from(at, end) else {
                break;
            };
            let goes_on = self.convert_patiently(next.clone(), to);
            let done = match goes_on {
                Ok(()) => next.end,
                Err(Failed::Later | Failed::NoFrames) => next.start,
                Err(Failed::Over(stop)) => return (Branch::MapFailed, Some(stop)),
            };
            at = done;
            self.vcpu.regs.r11 = at | (from & shared);
            if matches!(goes_on, Err(Failed::NoFrames)) {
                return (Branch::MapFailed, None);
            }
            self.host.breathe();
            if at < end && (goes_on.is_err() || self.is_wanted()) {
                return (Branch::MapRetry, None);
            }
        }
        self.vcpu.regs.r11 = 0;
        match to {
            To::Shared => (Branch::MapShared, None),
            To::Private => (Branch::MapPrivate, None),
        }
    }

    /// Whether the host or the guest has something better to do.
    fn is_wanted(&self) -> bool {
        self.host.must_leave()
            || self.station.has_nmi()
            || self.station.descriptor().is_outstanding()
    }

    /// The first memory in `at..end`, up to the next multiple of 2 MiB.
    fn step_from(&self, at: u64, end: u64) -> Option<Range<u64>> {
        let mut ranges = self.board.memory();
        let memory = ranges.find(|memory| memory.end > at && memory.start < end)?;
        let start = at.max(memory.start);
        let block = start / PAGE_2M * PAGE_2M + PAGE_2M;
        Some(start..block.min(memory.end).min(end))
    }

    fn convert_patiently(&mut self, range: Range<u64>, to: To) -> Result<(), Failed> {
        for _ in 0..TRIES {
            match self.convert(range.clone(), to) {
                Err(Failed::Later) => {
                    self.station.tally().retries.add();
                    self.host.breathe();
                    if self.is_wanted() {
                        break;
                    }
                }
                other => return other,
            }
        }
        Err(Failed::Later)
    }

    /// Converts what lies within one 2 MiB.
    fn convert(&mut self, range: Range<u64>, to: To) -> Result<(), Failed> {
        let board = self.board;
        let _alone = board.conversions.try_write().ok_or(Failed::Later)?;
        let memory = board.memory_at(range.start);
        if memory.is_none_or(|memory| memory.end < range.end) {
            // The operator took it meanwhile: the next step leaves it out.
            return Err(Failed::Later);
        }
        match to {
            To::Shared => {
                self.prepare(&range)?;
                self.take_private(range.clone())?;
                self.share(range)
            }
            To::Private => {
                let unmapped = board.shared().unmap(self.host.frames(), range, self.host);
                match unmapped {
                    Ok(_) => Ok(()),
                    Err(shared::Error::NoFrames(_)) => Err(Failed::NoFrames),
                    Err(_) => Err(Failed::Later),
                }
            }
        }
    }

    /// Makes the tables first: they stay, and would have the very frame that leaves a hole in a large page, which comes
    /// back to its place when the guest takes its memory back.
    fn prepare(&self, range: &Range<u64>) -> Result<(), Failed> {
        if range.end - range.start == PAGE_2M {
            return Ok(());
        }
        let prepared = self
            .board
            .shared()
            .prepare(self.host.frames(), Gpa(range.start));
        match prepared {
            Ok(()) | Err(shared::Error::Occupied) => Ok(()),
            Err(_) => Err(Failed::NoFrames),
        }
    }

    fn take_private(&mut self, range: Range<u64>) -> Result<(), Failed> {
        let cpu = Cpu {
            tdh: self.host.tdh(),
            pool: self.host.pool(),
        };
        match self.host.private().remove(cpu, range, self.host) {
            Ok(Outcome::Removed(_)) => Ok(()),
            Ok(Outcome::Queued | Outcome::LeftToReclaim) | Err(Error::Terminated) => {
                Err(Failed::Over(Stop::Closed))
            }
            Err(Error::Busy | Error::Blocked | Error::NoAnswer(_)) => Err(Failed::Later),
            Err(error) if is_busy(&error) => Err(Failed::Later),
            Err(Error::NoFrames(_) | Error::NoHeap) => Err(Failed::NoFrames),
            Err(error) => Err(Failed::Over(self.end(End::Memory(error)))),
        }
    }

    fn share(&self, range: Range<u64>) -> Result<(), Failed> {
        let (map, frames) = (self.board.shared(), self.host.frames());
        if range.end - range.start == PAGE_2M
            && map.map(frames, Gpa(range.start), PageSize::Size2M).is_ok()
        {
            return Ok(());
        }
        for gpa in range.step_by(PAGE_4K as usize) {
            match map.map(frames, Gpa(gpa), PageSize::Size4K) {
                Ok(()) | Err(shared::Error::Occupied) => {}
                Err(_) => return Err(Failed::NoFrames),
            }
        }
        Ok(())
    }
}
