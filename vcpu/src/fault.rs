//! Private memory on demand: what a guest touches or accepts is mapped, 2 MiB at a time where that can be; a page that the
//! guest accepts in parts is split.
//!
//! What another CPU is at is tried again here, not by entering the guest: the module takes a guest that keeps faulting at
//! one instruction for one that is being stepped, and then runs it no more until the page is really there.

use mm::private::{Cpu, Error};
use seam::abi::{PAGE_2M, PageSize};
use seam::address::{Gpa, Level};
use seam::error::Recovery;

use crate::board::End;
use crate::exit::{Fault, Wants};
use crate::host::Host;
use crate::run::{Session, Stop};

/// How often memory is tried that another CPU is at, before others get their turn.
const TRIES: u32 = 64;

impl<H: Host> Session<'_, H> {
    /// Serves a fault on a private address, and says whether the vCPU must not be entered again at once.
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
        // Held by readers while memory is mapped, so that it is not shared at the same time.
        let _same = board.conversions.try_read().ok_or(Error::Busy)?;
        let gpa = fault.gpa;
        // The operator may have taken it meanwhile.
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
                // It was not mapped at all.
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

    /// Maps what is around `gpa`: the 2 MiB, if all of it is the guest's private memory and nothing of it is mapped, or else
    /// the 4 KiB.
    fn map(&self, gpa: Gpa) -> Result<(), Error> {
        let map = self.host.private();
        let block = gpa.0 / PAGE_2M * PAGE_2M;
        let memory = self.board.memory_at(block);
        let is_whole = memory.is_some_and(|memory| memory.end - block >= PAGE_2M);
        if is_whole && !self.board.shared().has_block(self.host.frames(), gpa) {
            match map.map(self.cpu(), Gpa(block), PageSize::Size2M) {
                // Parts of it are there, or all of it by now; or there is no frame so large.
                Err(Error::Occupied | Error::NoFrames(PageSize::Size2M)) => {}
                other => return self.unblocked(gpa, other),
            }
        }
        match map.map(self.cpu(), gpa, PageSize::Size4K) {
            // Another vCPU was faster, or what is there can't be used yet: the guest tries again.
            Err(Error::Occupied) => Ok(()),
            Ok(()) => {
                self.station.tally().small.add();
                Ok(())
            }
            other => self.unblocked(gpa, other),
        }
    }

    /// What failed work left blocked is made usable.
    fn unblocked(&self, gpa: Gpa, result: Result<(), Error>) -> Result<(), Error> {
        match result {
            Err(Error::Blocked) => self.host.private().unblock(self.cpu(), gpa, self.host),
            other => other,
        }
    }
}

/// Whether the module did not do something because others were at it for all the time that a call is tried.
pub(crate) fn is_busy(error: &Error) -> bool {
    matches!(error, Error::Seam(error) if error.recovery() == Recovery::Retry)
}
