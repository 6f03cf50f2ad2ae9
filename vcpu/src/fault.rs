//! Private memory on demand. A page that a guest touches or accepts is mapped, as a 2 MiB page where possible. A 2 MiB
//! page that the guest accepts as 4 KiB pages is split.
//!
//! Contention with another CPU is retried here, not by entering the guest. The module takes a guest that keeps faulting
//! at one instruction for a guest that is being single-stepped, and then does not run it until the page is mapped.

use mm::private::{Cpu, Error};
use seam::abi::{PAGE_2M, PageSize};
use seam::address::{Gpa, Level};
use seam::error::Recovery;

use crate::board::End;
use crate::exit::{Fault, Wants};
use crate::host::Host;
use crate::run::{Session, Stop};

/// Number of tries at contended memory before the vCPU yields its CPU.
const TRIES: u32 = 64;

impl<H: Host> Session<'_, H> {
    /// Serves a fault on a private address. Returns the reason if the vCPU must not be entered again at once.
    #[cold]
    pub(crate) fn serve_fault(&mut self, fault: Fault) -> Option<Stop> {
        self.station.tally().faults.add();
        if fault.wants == Wants::Unaccepted && self.board.memory_at(fault.gpa.0).is_some() {
            return Some(self.end(End::Unaccepted(fault.gpa)));
        }
        for _ in 0..TRIES {
            match self.provide(fault) {
                Ok(()) => return None,
                Err(Error::Busy | Error::NoAnswer(_)) => {}
                Err(error) if is_busy(&error) => {}
                Err(Error::Terminated) => return Some(Stop::Closed),
                Err(error) => return Some(self.end(End::Memory(error))),
            }
            self.station.tally().retries.add();
            self.host.breathe();
            if self.host.must_leave() {
                return Some(Stop::Yield);
            }
        }
        Some(Stop::Busy)
    }

    fn provide(&mut self, fault: Fault) -> Result<(), Error> {
        let board = self.board;
        // Held for reading while memory is mapped, so that it is not converted at the same time.
        let _same = board.conversions.try_read().ok_or(Error::Busy)?;
        let gpa = fault.gpa;
        // The operator may have taken the memory meanwhile.
        if board.memory_at(gpa.0).is_none() {
            self.end(End::NoMemory(gpa));
            return Ok(());
        }
        if board.shared().has(self.host.frames(), gpa) {
            self.end(End::UsedShared(gpa));
            return Ok(());
        }
        match fault.wants {
            Wants::Accept {
                requested: Level::Pt,
                found: Some(Level::Pd),
            } => match self.split(gpa) {
                // The page was not mapped at all.
                Err(Error::NotMapped) => self.map(gpa),
                other => other,
            },
            _ => self.map(gpa),
        }
    }

    fn cpu(&self) -> Cpu<'_, H::Call, H::Wait, H::Pool> {
        Cpu {
            tdh: self.host.tdh(),
            pool: self.host.pool(),
        }
    }

    fn split(&self, gpa: Gpa) -> Result<(), Error> {
        let block = Gpa(gpa.0 / PAGE_2M * PAGE_2M);
        let map = self.host.private();
        map.demote(self.cpu(), block, PageSize::Size2M, self.host)?;
        self.station.tally().splits.add();
        Ok(())
    }

    /// Maps the 2 MiB block around `gpa` if all of it is private memory of the guest and none of it is mapped. Maps the
    /// 4 KiB page otherwise.
    fn map(&self, gpa: Gpa) -> Result<(), Error> {
        let map = self.host.private();
        let block = gpa.0 / PAGE_2M * PAGE_2M;
        let memory = self.board.memory_at(block);
        let is_whole = memory.is_some_and(|memory| memory.end - block >= PAGE_2M);
        if is_whole && !self.board.shared().has_block(self.host.frames(), gpa) {
            match map.map(self.cpu(), Gpa(block), PageSize::Size2M) {
                // Parts of the block or all of it are mapped, or no 2 MiB frame is free.
                Err(Error::Occupied | Error::NoFrames(PageSize::Size2M)) => {}
                other => return self.unblocked(gpa, other),
            }
        }
        match map.map(self.cpu(), gpa, PageSize::Size4K) {
            // Another vCPU mapped it first, or the page is not usable yet: the guest tries again.
            Err(Error::Occupied) => Ok(()),
            Ok(()) => {
                self.station.tally().small.add();
                Ok(())
            }
            other => self.unblocked(gpa, other),
        }
    }

    /// Unblocks a page that a failed operation left blocked.
    fn unblocked(&self, gpa: Gpa, result: Result<(), Error>) -> Result<(), Error> {
        match result {
            Err(Error::Blocked) => self.host.private().unblock(self.cpu(), gpa, self.host),
            other => other,
        }
    }
}

/// Returns whether the call failed because the module was busy on every try.
pub(crate) fn is_busy(error: &Error) -> bool {
    matches!(error, Error::Seam(error) if error.recovery() == Recovery::Retry)
}
