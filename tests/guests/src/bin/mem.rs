//! A guest that uses all of its memory: it accepts the memory on every vCPU at once, writes to every page, shares
//! parts and makes them private again, and checks the rest.
#![no_std]
#![no_main]

use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arrayvec::ArrayVec;
use guest_kit::attempt::{Caught, Outcome};
use guest_kit::check::{Check, Checks, Failure, expect};
use guest_kit::{apic, attempt, cpu, ensure, fail, guest, memory, say, tdcall, vcpu, ve, vmcall};
use seam::abi::{Attributes, PAGE_2M, PAGE_4K, Status};
use spin::Mutex;

guest!("mem", main);

/// Bytes that a vCPU takes at once.
const SHARE: u64 = 8 * PAGE_2M;
/// Bytes that are shared at once in the large case.
const MUCH: u64 = 8 * PAGE_2M;
/// Number of blocks that each vCPU converts while all do.
const TOGETHER: u64 = 4;
/// Maximum percentage of small pages.
const SMALL_PERCENT: u64 = 2;
const TIMER: u8 = 0x40;

/// The ranges that the vCPUs have accepted.
static SHARES: Mutex<ArrayVec<Range<u64>, 4096>> = Mutex::new(ArrayVec::new_const());
static LARGE: AtomicU64 = AtomicU64::new(0);
static SMALL: AtomicU64 = AtomicU64::new(0);
/// The next block to hand out.
static NEXT: AtomicU32 = AtomicU32::new(0);

fn main(checks: &mut Checks) {
    vcpu::start_all();
    checks.together("accepts-all-memory-on-all-vcpus", accepts_memory);
    let rest = memory::accept_all();
    say!(
        "memory: {} pages of 2 MiB, {} of 4 KiB accepted",
        LARGE.load(Ordering::Relaxed) + rest.large,
        SMALL.load(Ordering::Relaxed) + rest.small
    );
    checks.once("all-memory-is-new", all_memory_is_new);
    checks.once("memory-is-in-large-pages", memory_is_large);
    checks.once("accepts-only-once", accepts_only_once);
    checks.once("what-is-not-shared-raises-ve", what_is_not_shared_raises_ve);
    checks.once("shares-2-mib-and-takes-them-back", shares_2_mib);
    checks.once("shares-4-kib-and-keeps-the-rest", shares_4_kib);
    checks.once(
        "what-is-not-accepted-raises-ve",
        what_is_not_accepted_raises_ve,
    );
    checks.once("shares-much-while-interrupted", shares_much);
    checks.together("all-vcpus-convert-memory", all_convert);
    checks.once("all-memory-has-its-content", all_memory_has_its_content);
    checks.once("memory-is-still-in-large-pages", memory_is_large);
}

fn refused(error: vmcall::Refused) -> Failure {
    Failure::new(format_args!("the host refuses: {error:x?}"))
}

fn accepts_memory() -> Check {
    while let Some(start) = memory::take_unaccepted(SHARE) {
        let range = start..start + SHARE;
        let accepted = match memory::accept(range.clone()) {
            Ok(accepted) => accepted,
            Err((gpa, status)) => return fail!("{gpa:#x} can't be accepted: {status:?}"),
        };
        LARGE.fetch_add(accepted.large, Ordering::Relaxed);
        SMALL.fetch_add(accepted.small, Ordering::Relaxed);
        ensure!(
            SHARES.lock().try_push(range).is_ok(),
            "a TD of more than 64 GiB"
        );
    }
    Ok(())
}

fn shares() -> impl Iterator<Item = Range<u64>> {
    (0..).map_while(|number| SHARES.lock().get(number).cloned())
}

/// Returns block `number` of the accepted ones.
fn block(number: u64) -> Option<u64> {
    let per_share = SHARE / PAGE_2M;
    let shares = SHARES.lock();
    let share = shares.get((number / per_share) as usize)?;
    Some(share.start + number % per_share * PAGE_2M)
}

fn pages(range: Range<u64>) -> impl Iterator<Item = u64> {
    range.step_by(PAGE_4K as usize)
}

/// Checks that every page reads as zero, and writes the page's own address to it.
fn all_memory_is_new() -> Check {
    for page in shares().flat_map(pages) {
        expect("a new page", memory::word(page), 0)?;
        memory::set_word(page, page);
    }
    Ok(())
}

fn all_memory_has_its_content() -> Check {
    shares().flat_map(pages).try_for_each(has_its_content)
}

fn has_its_content(page: u64) -> Check {
    expect("a page's word", memory::word(page), page)
}

/// Writes that content again.
fn write_content(range: Range<u64>) {
    pages(range).for_each(|page| memory::set_word(page, page));
}

/// Checks the level at which each page is mapped, as the module reports it.
fn memory_is_large() -> Check {
    let (mut large, mut small) = (0, 0);
    for range in shares() {
        let mut at = range.start;
        while at < range.end {
            match tdcall::page_level(at) {
                Ok(0) => {
                    small += 1;
                    at += PAGE_4K;
                }
                Ok(_) => {
                    large += PAGE_2M / PAGE_4K;
                    at += PAGE_2M;
                }
                Err(status) => return fail!("TDG.MEM.PAGE.ATTR.RD of {at:#x}: {status:?}"),
            }
        }
    }
    say!(
        "levels: {} KiB in large pages, {} KiB in small ones",
        4 * large,
        4 * small
    );
    ensure!(
        small * 100 <= SMALL_PERCENT * (large + small),
        "{small} of {} pages are small",
        large + small
    );
    Ok(())
}

fn accepts_only_once() -> Check {
    let Some(at) = block(0) else {
        return fail!("no memory was accepted");
    };
    let again = tdcall::page_accept(at, 1);
    ensure!(
        again.code() == Status::PAGE_ALREADY_ACCEPTED,
        "again: {again:?}"
    );
    let part = tdcall::page_accept(at + PAGE_4K, 0);
    ensure!(
        part.code() == Status::PAGE_ALREADY_ACCEPTED,
        "a part: {part:?}"
    );
    has_its_content(at)
}

/// A load that may fault.
#[expect(unsafe_code, reason = "executes an instruction that may fault")]
fn load(at: u64) -> Outcome {
    // SAFETY: it loads a word of memory that nobody has a reference to.
    unsafe { attempt!("mov rax, [rcx]", in("rcx") at, out("rax") _, options(nostack, readonly)) }
}

fn is_violation(outcome: Outcome, gpa: u64) -> Check {
    match outcome {
        Some(Caught::Ve(info)) if info.reason == ve::reason::EPT_VIOLATION => {
            expect("the #VE's address", info.gpa & !(PAGE_4K - 1), gpa)
        }
        other => fail!("not #VE but {other:?}"),
    }
}

fn what_is_not_shared_raises_ve() -> Check {
    let Some(at) = block(0) else {
        return fail!("no memory was accepted");
    };
    is_violation(load(memory::shared_alias(at)), at | memory::shared_bit())
}

fn shares_2_mib() -> Check {
    let Some(at) = block(1) else {
        return fail!("no memory was accepted");
    };
    let range = at..at + PAGE_2M;
    vmcall::map_gpa(at | memory::shared_bit(), PAGE_2M).map_err(refused)?;
    for page in pages(range.clone()) {
        let alias = memory::shared_alias(page);
        expect("a page that was just shared", memory::word(alias), 0)?;
        memory::set_word(alias, !page);
        expect("a shared page", memory::word(alias), !page)?;
    }
    take_back(range)
}

/// Makes a range private again, which makes it new memory, and restores its content.
fn take_back(range: Range<u64>) -> Check {
    let bytes = range.end - range.start;
    vmcall::map_gpa(range.start, bytes).map_err(refused)?;
    match memory::accept(range.clone()) {
        Ok(accepted) => expect(
            "bytes of large pages",
            accepted.large * PAGE_2M,
            bytes / PAGE_2M * PAGE_2M,
        )?,
        Err((gpa, status)) => return fail!("{gpa:#x} can't be accepted: {status:?}"),
    }
    for page in pages(range.clone()) {
        expect("a page that came back", memory::word(page), 0)?;
    }
    write_content(range);
    Ok(())
}

fn shares_4_kib() -> Check {
    let Some(at) = block(2) else {
        return fail!("no memory was accepted");
    };
    let page = at + 7 * PAGE_4K;
    vmcall::map_gpa(page | memory::shared_bit(), PAGE_4K).map_err(refused)?;
    let alias = memory::shared_alias(page);
    expect("a page that was just shared", memory::word(alias), 0)?;
    memory::set_word(alias, 7);
    let others = || pages(at..at + PAGE_2M).filter(|other| *other != page);
    others().try_for_each(has_its_content)?;
    let whole = tdcall::page_accept(at, 1);
    ensure!(
        whole.code() == Status::PAGE_SIZE_MISMATCH,
        "the 2 MiB: {whole:?}"
    );
    take_back(page..page + PAGE_4K)?;
    others().try_for_each(has_its_content)
}

/// Checks that a TD without SEPT_VE_DISABLE gets #VE for memory that it has not accepted. Any other TD would end.
fn what_is_not_accepted_raises_ve() -> Check {
    if tdcall::vp_info()
        .attributes
        .contains(Attributes::SEPT_VE_DISABLE)
    {
        return Ok(());
    }
    let Some(at) = block(3) else {
        return fail!("no memory was accepted");
    };
    let shared = at | memory::shared_bit();
    vmcall::map_gpa(shared, PAGE_2M).map_err(refused)?;
    vmcall::map_gpa(at, PAGE_2M).map_err(refused)?;
    is_violation(load(at), at)?;
    match memory::accept(at..at + PAGE_2M) {
        Ok(accepted) => expect("large pages", accepted.large, 1)?,
        Err((gpa, status)) => return fail!("{gpa:#x} can't be accepted: {status:?}"),
    }
    write_content(at..at + PAGE_2M);
    Ok(())
}

/// The timer fires all the time, so that the host returns RETRY now and then.
fn shares_much() -> Check {
    let (Some(at), Some(last)) = (block(8), block(8 + MUCH / PAGE_2M - 1)) else {
        say!("not enough memory to share much");
        return Ok(());
    };
    ensure!(last - at == MUCH - PAGE_2M, "the share is not in one piece");
    apic::enable().map_err(refused)?;
    let soon = || apic::timer(TIMER, cpu::tsc() + cpu::ticks_per_ms());
    soon().map_err(refused)?;
    let steps = vmcall::map_gpa_in_steps(at | memory::shared_bit(), MUCH).map_err(refused)?;
    soon().map_err(refused)?;
    for page in pages(at..at + MUCH) {
        expect("a shared page", memory::word(memory::shared_alias(page)), 0)?;
    }
    say!("{} MiB were shared in {} steps", MUCH >> 20, steps + 1);
    take_back(at..at + MUCH)
}

/// Each vCPU has blocks of its own, next to the others'.
fn all_convert() -> Check {
    const FIRST: u32 = 16;
    for _ in 0..TOGETHER {
        let number = FIRST + NEXT.fetch_add(1, Ordering::Relaxed);
        let Some(at) = block(number.into()) else {
            break;
        };
        vmcall::map_gpa(at | memory::shared_bit(), PAGE_2M).map_err(refused)?;
        memory::set_word(memory::shared_alias(at), 1);
        take_back(at..at + PAGE_2M)?;
    }
    Ok(())
}
