//! Private memory on demand. A page that a guest touches or accepts is mapped, as a 2 MiB page where possible. A 2 MiB
//! page that the guest accepts as 4 KiB pages is split.
//!
//! Contention with another CPU is retried here, not by entering the guest. The module takes a guest that keeps faulting
//! at one instruction for a guest that is being single-stepped, and then does not run it until the page is mapped.

use mm::private::{Cpu, Error};
use seam::abi::{PAGE_2M, PageSize};
use seam::address::{Gpa, Level};
use seam::error::Recovery;

use crate::current::{Current, Stop};
use crate::end::End;
use crate::exit::{Fault, Wants};
use crate::slice::{PhysicalCpu, TimeSlice};

/// Number of tries at contended memory before the vCPU yields its CPU.
const TRIES: u32 = 64;

/// Serves a fault on a private address. Returns the reason if the vCPU must not be entered again at once.
#[cold]
pub(crate) fn serve<S: TimeSlice>(current: &mut Current<'_, S>, fault: Fault) -> Option<Stop> {
    current.state.tally().faults.add();
    if fault.wants == Wants::Unaccepted && current.vm.memory_at(fault.gpa.0).is_some() {
        return Some(current.end(End::Unaccepted(fault.gpa)));
    }
    for _ in 0..TRIES {
        match provide(current, fault) {
            Ok(()) => return None,
            Err(Error::Busy | Error::NoAnswer(_)) => {}
            Err(error) if is_busy(&error) => {}
            Err(Error::Terminated) => return Some(Stop::Closed),
            Err(error) => return Some(current.end(End::Memory(error))),
        }
        current.state.tally().retries.add();
        current.slice.cpu().take_interrupts();
        if current.slice.must_leave() {
            return Some(Stop::Yield);
        }
    }
    Some(Stop::Busy)
}

fn provide<S: TimeSlice>(current: &mut Current<'_, S>, fault: Fault) -> Result<(), Error> {
    let vm = current.vm;
    // Held for reading while memory is mapped, so that it is not converted at the same time.
    let _same = vm.conversions.try_read().ok_or(Error::Busy)?;
    let gpa = fault.gpa;
    // The operator may have taken the memory meanwhile.
    if vm.memory_at(gpa.0).is_none() {
        current.end(End::NoMemory(gpa));
        return Ok(());
    }
    if vm.shared().has(current.slice.cpu().shared_frames(), gpa) {
        current.end(End::UsedShared(gpa));
        return Ok(());
    }
    match fault.wants {
        Wants::Accept {
            requested: Level::Pt,
            found: Some(Level::Pd),
        } => match split(current, gpa) {
            // The page was not mapped at all.
            Err(Error::NotMapped) => map(current, gpa),
            other => other,
        },
        _ => map(current, gpa),
    }
}

fn cpu<'a, S: TimeSlice>(current: &'a Current<'_, S>) -> Cpu<'a, S::Call, S::Wait, S::Pool> {
    Cpu {
        tdh: current.slice.tdh(),
        pool: current.slice.pool(),
    }
}

fn split<S: TimeSlice>(current: &Current<'_, S>, gpa: Gpa) -> Result<(), Error> {
    let block = Gpa(gpa.0 / PAGE_2M * PAGE_2M);
    let map = current.slice.private();
    map.demote(cpu(current), block, PageSize::Size2M, current.slice)?;
    current.state.tally().splits.add();
    Ok(())
}

/// Maps the 2 MiB block around `gpa` if all of it is private memory of the guest and none of it is mapped. Maps the
/// 4 KiB page otherwise.
fn map<S: TimeSlice>(current: &Current<'_, S>, gpa: Gpa) -> Result<(), Error> {
    let map = current.slice.private();
    let block = gpa.0 / PAGE_2M * PAGE_2M;
    let memory = current.vm.memory_at(block);
    let is_whole = memory.is_some_and(|memory| memory.end - block >= PAGE_2M);
    if is_whole
        && !current
            .vm
            .shared()
            .has_block(current.slice.cpu().shared_frames(), gpa)
    {
        match map.map(cpu(current), Gpa(block), PageSize::Size2M) {
            // Parts of the block or all of it are mapped, or no 2 MiB frame is free.
            Err(Error::Occupied | Error::NoFrames(PageSize::Size2M)) => {}
            other => return unblocked(current, gpa, other),
        }
    }
    match map.map(cpu(current), gpa, PageSize::Size4K) {
        // Another vCPU mapped it first, or the page is not usable yet: the guest tries again.
        Err(Error::Occupied) => Ok(()),
        Ok(()) => {
            current.state.tally().small.add();
            Ok(())
        }
        other => unblocked(current, gpa, other),
    }
}

/// Unblocks a page that a failed operation left blocked.
fn unblocked<S: TimeSlice>(
    current: &Current<'_, S>,
    gpa: Gpa,
    result: Result<(), Error>,
) -> Result<(), Error> {
    match result {
        Err(Error::Blocked) => current
            .slice
            .private()
            .unblock(cpu(current), gpa, current.slice),
        other => other,
    }
}

/// Returns whether the call failed because the module was busy on every try.
pub(crate) fn is_busy(error: &Error) -> bool {
    matches!(error, Error::Seam(error) if error.recovery() == Recovery::Retry)
}
