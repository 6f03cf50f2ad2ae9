//! Calls other than instructions: call information, quotes, errors, and the Service channel.

use core::sync::atomic::Ordering::SeqCst;

use mm::shared::Words;
use seam::abi::PAGE_4K;
use seam::address::Gpa;
use spin::RwLockReadGuard;

use super::{Served, TRIES, answer};
use crate::branch::Branch;
use crate::current::Current;
use crate::end::End;
use crate::fatal::FatalError;
use crate::quotes::{Buffer, NotTaken};
use crate::serve::{TdMemory, now};
use crate::slice::{PhysicalCpu, TimeSlice};
use crate::state::Event;
use crate::windows::Windows;

/// The lowest vector that a guest may request for notification.
const FIRST_EVENT_VECTOR: u64 = 32;

/// The header of a Service response, in words of 8 bytes: a GUID, then length and status in one word.
///
/// Source: GHCI 1.5, TDG.VP.VMCALL, Service.
mod service {
    pub const LENGTH_AND_STATUS: usize = 2;
    pub const HEADER_BYTES: u64 = 24;
    pub const UNSUPPORTED: u64 = 0xFFFF_FFFE;
}

/// Serves GetTdVmCallInfo. R12: leaf. Returns the answer in R11 to R14.
#[cold]
pub(super) fn call_info<S: TimeSlice>(current: &mut Current<'_, S>) -> Branch {
    let regs = &mut current.vcpu.regs;
    // Leaf 0: all base calls are supported. Leaf 1: the set of supported optional calls, which is empty.
    let branch = match regs.r12 {
        0 => Branch::InfoBase,
        1 => Branch::InfoOptional,
        _ => return Branch::InfoInvalid,
    };
    (regs.r11, regs.r12, regs.r13, regs.r14) = (0, 0, 0, 0);
    branch
}

/// Serves GetQuote. R12: shared buffer, R13: its size in bytes. Without a quoting service, the call itself fails, as in
/// KVM when no service is connected. Linux checks the call's status alone: after a success it takes the buffer for a
/// quote, whatever the buffer's own status is.
///
/// Source: Linux drivers/virt/coco/tdx-guest/tdx-guest.c, tdx_report_new.
#[cold]
pub(super) fn get_quote<S: TimeSlice>(current: &mut Current<'_, S>) -> Branch {
    let bytes = current.vcpu.regs.r13;
    let gpa = match shared_buffer(current, current.vcpu.regs.r12, bytes) {
        Ok(Gpa(gpa)) => gpa,
        Err(Unfit::Misaligned) => return Branch::QuoteMisaligned,
        Err(Unfit::Invalid | Unfit::Busy) => return Branch::QuoteInvalid,
    };
    let Some(quotes) = current.vm.quotes() else {
        return Branch::QuoteUnavailable;
    };
    let Some(_same) = unconverted(current) else {
        return Branch::QuoteBusy;
    };
    let (cpu, bus) = (current.slice.cpu(), current.vm.devices().pci());
    let reader = current.vm.shared().reader(cpu.shared_frames());
    let memory = TdMemory::new(current.vm.shared(), &reader);
    match quotes.take(&memory, Buffer { gpa, bytes }, bus, now(cpu)) {
        Ok(()) => Branch::QuoteTaken,
        Err(NotTaken::Invalid) => Branch::QuoteInvalid,
        Err(NotTaken::Full) => Branch::QuoteBusy,
        Err(NotTaken::NoService) => Branch::QuoteUnavailable,
    }
}

/// Serves ReportFatalError and ends the TD. R12: code, and whether there is more; R13: address of the rest; the
/// message is in eight registers.
#[cold]
pub(super) fn fatal_error<S: TimeSlice>(current: &mut Current<'_, S>) -> Served {
    let mut error = FatalError::decode(&current.vcpu.regs);
    if let Some(more) = error.more {
        let page = shared_buffer(current, more.0, PAGE_4K);
        // If the rest can't be read, it is left out: the TD ends in any case.
        _ = page.and_then(|page| with_shared(current, page, |words| error.go_on(words)));
    }
    answer(current, Branch::FatalError);
    Err(current.end(End::Fatal(error)))
}

/// Serves Service. R12: command, R13: response, both shared pages; R14: notification vector, or 0. No service is
/// offered, and the response says so.
#[cold]
pub(super) fn service<S: TimeSlice>(current: &mut Current<'_, S>) -> Branch {
    let regs = &current.vcpu.regs;
    let (command, response, vector) = (regs.r12, regs.r13, regs.r14);
    if vector != 0 && !(FIRST_EVENT_VECTOR..=0xFF).contains(&vector) {
        return Branch::ServiceInvalid;
    }
    match refuse_service(current, command, response) {
        Ok(()) => {}
        Err(Unfit::Invalid) => return Branch::ServiceInvalid,
        Err(Unfit::Misaligned) => return Branch::ServiceMisaligned,
        Err(Unfit::Busy) => return Branch::ServiceBusy,
    }
    if vector != 0 {
        let event = Event::Interrupt(vector as u8);
        current.waker().wake(current.vcpu.index, event);
    }
    Branch::ServiceUnsupported
}

fn refuse_service<S: TimeSlice>(
    current: &Current<'_, S>,
    command: u64,
    response: u64,
) -> Result<(), Unfit> {
    let command = shared_buffer(current, command, PAGE_4K)?;
    let response = shared_buffer(current, response, PAGE_4K)?;
    with_shared(current, command, |_| ())?;
    with_shared(current, response, |words| {
        let answer = service::UNSUPPORTED << 32 | service::HEADER_BYTES;
        words[service::LENGTH_AND_STATUS].store(answer, SeqCst);
    })
}

/// Checks a shared buffer and returns its address without the SHARED bit.
fn shared_buffer<S: TimeSlice>(
    current: &Current<'_, S>,
    gpa: u64,
    bytes: u64,
) -> Result<Gpa, Unfit> {
    let shared = current.vm.shared().shared_bit();
    let start = gpa & !shared;
    let fits = start.checked_add(bytes).is_some_and(|end| end <= shared);
    if gpa & shared == 0 || bytes == 0 || !fits {
        return Err(Unfit::Invalid);
    }
    if !gpa.is_multiple_of(PAGE_4K) || !bytes.is_multiple_of(PAGE_4K) {
        return Err(Unfit::Misaligned);
    }
    Ok(Gpa(start))
}

/// Runs `work` on a shared page.
fn with_shared<S: TimeSlice, R>(
    current: &Current<'_, S>,
    gpa: Gpa,
    work: impl FnOnce(&Words) -> R,
) -> Result<R, Unfit> {
    let _same = unconverted(current).ok_or(Unfit::Busy)?;
    let map = current.vm.shared();
    let done = map.with_page(current.slice.cpu().shared_frames(), gpa, work);
    done.map_err(|_| Unfit::Invalid)
}

/// Keeps other CPUs from converting the TD's memory. Returns `None` if one does.
fn unconverted<'a, S: TimeSlice>(current: &Current<'a, S>) -> Option<RwLockReadGuard<'a, Windows>> {
    // The CPU that converts memory may wait for this CPU, so this loop must not block with interrupts disabled.
    (0..TRIES).find_map(|_| {
        let same = current.vm.conversions.try_read();
        if same.is_none() {
            current.slice.cpu().take_interrupts();
        }
        same
    })
}

/// The reason why a buffer is not usable.
enum Unfit {
    /// The buffer is not in the TD's shared memory.
    Invalid,
    /// The buffer does not start or end at a page boundary.
    Misaligned,
    /// Another vCPU is converting the TD's memory.
    Busy,
}
