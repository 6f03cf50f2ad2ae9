//! MapGPA: converts memory from private to shared, or back.
//!
//! The conversion proceeds in steps of 2 MiB. Between steps the host takes its interrupts. If the guest has a pending
//! interrupt, a long call returns RETRY and the address to continue from. If the host needs the CPU, or others are at
//! the memory, the vCPU leaves the CPU with the call unanswered, and continues it when it runs again: OVMF 2022.11 takes
//! RETRY for an error. The contents of the memory are lost in both directions.

use core::ops::Range;

use mm::private::{Cpu, Error, Outcome};
use mm::shared::{MirrorError, SharedError};
use seam::abi::{PAGE_2M, PAGE_4K, PageSize};
use seam::address::Gpa;

use super::{Served, TRIES, answer};
use crate::branch::Branch;
use crate::current::{Current, Stop};
use crate::end::End;
use crate::fault::is_busy;
use crate::slice::{PhysicalCpu, TimeSlice};

/// The target type of a conversion.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Shared,
    Private,
}

/// The reason why a step failed.
enum Failed {
    /// Contention: the same step may succeed later. The vCPU leaves the CPU meanwhile.
    Later(Stop),
    /// The host has no frame for the step.
    NoFrames,
    /// The TD ends.
    Over(Stop),
}

/// The failure of a single try.
const LATER: Failed = Failed::Later(Stop::Busy);

/// Number of steps after which a call is long.
const LONG: u32 = 4;

/// Serves MapGPA. R12: address, whose SHARED bit selects the target type; R13: size in bytes. Returns the address
/// of the first unconverted byte in R11.
///
/// # Errors
/// [`Served`]. If the call is not answered yet, the registers still hold it.
#[cold]
#[inline(never)]
pub(super) fn map_gpa<S: TimeSlice>(current: &mut Current<'_, S>) -> Served {
    let shared = current.vm.shared().shared_bit();
    let (from, bytes) = (current.vcpu.regs.r12, current.vcpu.regs.r13);
    let up_to = |current: &mut Current<'_, S>, at: u64, branch| {
        current.vcpu.regs.r11 = at;
        Ok(branch)
    };
    let to = if from & shared == 0 {
        To::Private
    } else {
        To::Shared
    };
    let start = from & !shared;
    let end = match start.checked_add(bytes) {
        Some(end) if bytes != 0 && end <= shared => end,
        _ => return up_to(current, from, Branch::MapInvalid),
    };
    if !start.is_multiple_of(PAGE_4K) || !bytes.is_multiple_of(PAGE_4K) {
        return up_to(current, from, Branch::MapMisaligned);
    }
    let mut at = current.vcpu.mapping.take().unwrap_or(start);
    let mut steps = 0;
    while at < end {
        // There is nothing to convert where the TD has no memory.
        let Some(next) = step_from(current, at, end) else {
            break;
        };
        match convert_patiently(current, next.clone(), to) {
            Ok(()) => at = next.end,
            Err(Failed::Later(stop)) => {
                current.vcpu.mapping = Some(next.start);
                return Err(stop);
            }
            Err(Failed::NoFrames) => {
                return up_to(current, next.start | from & shared, Branch::MapFailed);
            }
            Err(Failed::Over(stop)) => {
                current.vcpu.regs.r11 = next.start | from & shared;
                answer(current, Branch::MapFailed);
                return Err(stop);
            }
        }
        steps += 1;
        current.slice.cpu().take_interrupts();
        if at < end && steps >= LONG && has_event(current) {
            return up_to(current, at | from & shared, Branch::MapRetry);
        }
        if at < end && current.slice.must_leave() {
            current.vcpu.mapping = Some(at);
            return Err(Stop::Yield);
        }
    }
    up_to(
        current,
        0,
        match to {
            To::Shared => Branch::MapShared,
            To::Private => Branch::MapPrivate,
        },
    )
}

/// Returns whether the guest has a pending event.
fn has_event<S: TimeSlice>(current: &Current<'_, S>) -> bool {
    current.state.has_nmi() || current.state.descriptor().is_outstanding()
}

/// Returns the first memory in `at..end`, up to the next 2 MiB boundary.
fn step_from<S: TimeSlice>(current: &Current<'_, S>, at: u64, end: u64) -> Option<Range<u64>> {
    let mut ranges = current.vm.memory();
    let memory = ranges.find(|memory| memory.end > at && memory.start < end)?;
    let start = at.max(memory.start);
    let block = start / PAGE_2M * PAGE_2M + PAGE_2M;
    Some(start..block.min(memory.end).min(end))
}

fn convert_patiently<S: TimeSlice>(
    current: &mut Current<'_, S>,
    range: Range<u64>,
    to: To,
) -> Result<(), Failed> {
    for _ in 0..TRIES {
        match convert(current, range.clone(), to) {
            Err(Failed::Later(_)) => {
                current.state.tally().retries.add();
                current.slice.cpu().take_interrupts();
                if current.slice.must_leave() {
                    return Err(Failed::Later(Stop::Yield));
                }
            }
            other => return other,
        }
    }
    Err(Failed::Later(Stop::Busy))
}

/// Converts a range within one 2 MiB block.
fn convert<S: TimeSlice>(
    current: &mut Current<'_, S>,
    range: Range<u64>,
    to: To,
) -> Result<(), Failed> {
    let vm = current.vm;
    let _alone = vm.conversions.try_write().ok_or(LATER)?;
    let memory = vm.memory_at(range.start);
    if memory.is_none_or(|memory| memory.end < range.end) {
        // The operator took the memory meanwhile. The next step skips it.
        return Err(LATER);
    }
    match to {
        To::Shared => {
            prepare(current, &range)?;
            take_private(current, range.clone())?;
            share(current, range)
        }
        To::Private => {
            let unmapped =
                vm.shared()
                    .unmap(current.slice.cpu().shared_frames(), range, current.slice);
            match unmapped {
                Ok(_) => Ok(()),
                Err(SharedError::Mirror(error)) => Err(astray(current, error)),
                Err(SharedError::NoFrames(_)) => Err(Failed::NoFrames),
                Err(_) => Err(LATER),
            }
        }
    }
}

/// Allocates the shared EPT tables before the private page is removed. Tables are permanent. They must not take the
/// frame that leaves a hole in a large page, because that frame fills the hole when the guest takes the memory
/// back.
fn prepare<S: TimeSlice>(current: &Current<'_, S>, range: &Range<u64>) -> Result<(), Failed> {
    if range.end - range.start == PAGE_2M {
        return Ok(());
    }
    let prepared = current
        .vm
        .shared()
        .prepare(current.slice.cpu().shared_frames(), Gpa(range.start));
    match prepared {
        Ok(()) | Err(SharedError::Occupied) => Ok(()),
        Err(SharedError::Mirror(error)) => Err(astray(current, error)),
        Err(_) => Err(Failed::NoFrames),
    }
}

/// Returns the failure of a step that the TD's devices do not follow.
fn astray<S: TimeSlice>(current: &Current<'_, S>, error: MirrorError) -> Failed {
    match error {
        MirrorError::NoMemory => Failed::NoFrames,
        MirrorError::NoAnswer => Failed::Over(current.end(End::Devices(error))),
    }
}

fn take_private<S: TimeSlice>(
    current: &mut Current<'_, S>,
    range: Range<u64>,
) -> Result<(), Failed> {
    let cpu = Cpu {
        tdh: current.slice.tdh(),
        pool: current.slice.pool(),
    };
    match current.slice.private().remove(cpu, range, current.slice) {
        Ok(Outcome::Removed(_)) => Ok(()),
        Ok(Outcome::Queued | Outcome::LeftToReclaim) | Err(Error::Terminated) => {
            Err(Failed::Over(Stop::Closed))
        }
        Err(Error::Busy | Error::Blocked | Error::NoAnswer(_)) => Err(LATER),
        Err(error) if is_busy(&error) => Err(LATER),
        Err(Error::NoFrames(_) | Error::NoHeap) => Err(Failed::NoFrames),
        Err(error) => Err(Failed::Over(current.end(End::Memory(error)))),
    }
}

fn share<S: TimeSlice>(current: &Current<'_, S>, range: Range<u64>) -> Result<(), Failed> {
    let (map, frames) = (current.vm.shared(), current.slice.cpu().shared_frames());
    if range.end - range.start == PAGE_2M
        && map.map(frames, Gpa(range.start), PageSize::Size2M).is_ok()
    {
        return Ok(());
    }
    for gpa in range.step_by(PAGE_4K as usize) {
        match map.map(frames, Gpa(gpa), PageSize::Size4K) {
            Ok(()) | Err(SharedError::Occupied) => {}
            Err(SharedError::Mirror(error)) => return Err(astray(current, error)),
            Err(_) => return Err(Failed::NoFrames),
        }
    }
    Ok(())
}
