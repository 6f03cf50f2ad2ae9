//! A guest that checks memory: pending pages, sizes, shared pages, conversion, and invalid addresses.
//!
//! Rows: TDX Module ABI 1.5, TDG.MEM.PAGE.ACCEPT; EPT violations of a TD; GHCI, MapGPA.
#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "accesses page tables and memory that may be missing"
)]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_kit::attempt::{Caught, Outcome};
use guest_kit::check::{Check, Checks, Failure, expect};
use guest_kit::ve::reason;
use guest_kit::{attempt, ensure, guest, memory, tdcall, vcpu, vmcall};
use guests::tries::{Own, own, raises};
use seam::abi::{PAGE_2M, PAGE_4K, Status};

guest!("memory", main);

fn main(checks: &mut Checks) {
    vcpu::start_all();
    checks.each("a-page-waits-to-be-accepted", pending);
    checks.each("accepting-2-mib", large);
    checks.each("accepting-what-is-accepted", already);
    checks.each("accepting-2-mib-in-small-parts", mismatch);
    checks.each("accepting-4-kib-of-2-mib", split);
    checks.each("a-page-that-the-host-replaced", replaced);
    checks.each("rights-of-an-access", rights);
    checks.each("shared-and-private-again", conversion);
    checks.each("shared-memory-that-is-not-there", absent_shared);
    checks.each("mmio", mmio);
    checks.each("an-address-above-the-shared-bit", beyond);
    checks.each("executing-from-a-new-page", execution);
    checks.together("accepting-all-at-once", accept_together);
    checks.together("one-page-for-all", one_page);
}

/// Reads a private page. The first access makes the host add the page; the next finds it pending acceptance.
fn touch(at: u64) -> Outcome {
    // SAFETY: a read of memory that contains no Rust object.
    unsafe {
        attempt!("mov {o0}, [{o1}]", o0 = out(reg) _, o1 = in(reg) at, options(nostack, readonly))
    }
}

fn store(at: u64) -> Outcome {
    // SAFETY: a write to memory that contains no Rust object.
    unsafe { attempt!("mov [{o0}], {o0}", o0 = in(reg) at, options(nostack)) }
}

fn region() -> Result<u64, guest_kit::check::Failure> {
    match memory::take_unaccepted(PAGE_2M) {
        Some(at) => Ok(at),
        None => guest_kit::fail!("there is no memory left"),
    }
}

/// Checks the #VE of an access to `at`: EPT violation, with both addresses and the access type.
fn waits(what: &str, outcome: Outcome, at: u64, wanted: u64) -> Check {
    ensure!(
        matches!(outcome, Some(Caught::Ve(info)) if info.reason == reason::EPT_VIOLATION
            && info.gpa == at && info.gla == at && info.qualification & 7 == wanted),
        "{what} at {at:#x}: {outcome:?}"
    );
    Ok(())
}

fn accept(what: &str, at: u64, level: u64, expected: Status) -> Check {
    let status = tdcall::page_accept(at, level);
    ensure!(status == expected, "{what}: {status:?}, not {expected:?}");
    Ok(())
}

fn zeros(at: u64, bytes: u64) -> Check {
    (at..at + bytes)
        .step_by(8)
        .try_for_each(|at| expect("a word of a new page", memory::word(at), 0))
}

fn pending() -> Check {
    const READ: u64 = 1;
    const WRITE: u64 = 2;
    let at = region()?;
    waits("a read", touch(at + 0x10), at + 0x10, READ)?;
    waits("a write", store(at + 0x18), at + 0x18, WRITE)?;
    accept("accepting", at, 0, Status::SUCCESS)?;
    raises("a read", touch(at + 0x10), None)?;
    zeros(at, PAGE_4K)?;
    memory::set_word(at + 0x10, 0x1234);
    expect("what was written", memory::word(at + 0x10), 0x1234)?;
    // The page behind it is another one.
    waits("a read behind", touch(at + PAGE_4K), at + PAGE_4K, READ)
}

fn large() -> Check {
    let at = region()?;
    accept("accepting 2 MiB", at, 1, Status::SUCCESS)?;
    for offset in (0..PAGE_2M).step_by(PAGE_4K as usize) {
        expect("a word", memory::word(at + offset + 8), 0)?;
        memory::set_word(at + offset + 8, at + offset);
    }
    for offset in (0..PAGE_2M).step_by(PAGE_4K as usize) {
        expect("a word", memory::word(at + offset + 8), at + offset)?;
    }
    Ok(())
}

fn already() -> Check {
    let at = region()?;
    accept("accepting 2 MiB", at, 1, Status::SUCCESS)?;
    let already = |level| Status::PAGE_ALREADY_ACCEPTED.with_detail(level);
    accept("again", at, 1, already(1))?;
    accept("4 KiB of it", at + PAGE_4K, 0, already(1))?;
    let small = region()?;
    accept("accepting 4 KiB", small, 0, Status::SUCCESS)?;
    memory::set_word(small, 7);
    accept("again", small, 0, already(0))?;
    expect("the page", memory::word(small), 7)
}

fn mismatch() -> Check {
    let at = region()?;
    accept("accepting 4 KiB", at + PAGE_4K, 0, Status::SUCCESS)?;
    memory::set_word(at + PAGE_4K, 9);
    accept(
        "accepting 2 MiB",
        at,
        1,
        Status::PAGE_SIZE_MISMATCH.with_detail(1),
    )?;
    expect("the page", memory::word(at + PAGE_4K), 9)?;
    for offset in (0..PAGE_2M).step_by(PAGE_4K as usize) {
        let expected = if offset == PAGE_4K {
            Status::PAGE_ALREADY_ACCEPTED
        } else {
            Status::SUCCESS
        };
        accept("accepting 4 KiB", at + offset, 0, expected)?;
    }
    Ok(())
}

/// Checks an acceptance for which the host must first split its page; the TDCALL is executed again.
fn split() -> Check {
    let at = region()?;
    ensure!(own(Own::AddLarge, at) == 0, "the host adds no 2 MiB");
    waits("a read", touch(at + 0x5008), at + 0x5008, 1)?;
    accept("accepting 4 KiB", at + 0x5000, 0, Status::SUCCESS)?;
    zeros(at + 0x5000, PAGE_4K)?;
    waits("the page before", touch(at + 0x4000), at + 0x4000, 1)?;
    waits("the page behind", touch(at + 0x6000), at + 0x6000, 1)?;
    accept(
        "accepting 2 MiB",
        at,
        1,
        Status::PAGE_SIZE_MISMATCH.with_detail(1),
    )
}

fn replaced() -> Check {
    let at = region()?;
    accept("accepting", at, 0, Status::SUCCESS)?;
    memory::set_word(at + 8, 0x5678);
    ensure!(own(Own::Replace, at) == 0, "the host does not replace it");
    waits("a read", touch(at + 8), at + 8, 1)?;
    accept("accepting", at, 0, Status::SUCCESS)?;
    zeros(at, PAGE_4K)
}

/// Checks that the qualification distinguishes reads, writes and fetches, and gives the entry's permissions.
fn rights() -> Check {
    const FETCH: u64 = 4;
    let at = region()?;
    // SAFETY: the call does not reach its first instruction.
    let outcome = unsafe {
        let resume: u64;
        asm!(
            "lea rax, [rip + 3f]",
            "mov gs:[{resume_at}], rax",
            "mov gs:[{attempted}], {target}",
            "call {target}",
            "3: add rsp, 8",
            "mov {r}, 1",
            resume_at = const vcpu::RESUME,
            attempted = const vcpu::ATTEMPTED,
            target = in(reg) at,
            r = out(reg) resume,
            out("rax") _,
        );
        let _ = resume;
        guest_kit::attempt::outcome()
    };
    waits("a fetch", outcome, at, FETCH)?;
    // SAFETY: as for `store`.
    let outcome = unsafe { attempt!("lock inc qword ptr [{o0}]", o0 = in(reg) at + 0x20) };
    ensure!(
        matches!(outcome, Some(Caught::Ve(info)) if info.reason == reason::EPT_VIOLATION
            && info.gpa == at + 0x20 && info.qualification & 2 != 0 && info.qualification >> 3 & 7 == 0),
        "a locked increment: {outcome:?}"
    );
    accept("accepting", at, 0, Status::SUCCESS)
}

fn conversion() -> Check {
    let at = region()?;
    accept("accepting", at, 0, Status::SUCCESS)?;
    memory::set_word(at, 0xABCD);
    let shared = at | memory::shared_bit();
    let alias = memory::shared_alias(at);
    ensure!(vmcall::map_gpa(shared, PAGE_4K).is_ok(), "MapGPA to shared");
    expect("the shared page", memory::word(alias), 0)?;
    memory::set_word(alias + 8, 0x4321);
    expect("the shared page", memory::word(alias + 8), 0x4321)?;
    ensure!(vmcall::map_gpa(at, PAGE_4K).is_ok(), "MapGPA to private");
    let outcome = touch(alias);
    ensure!(
        matches!(outcome, Some(Caught::Ve(info)) if info.reason == reason::EPT_VIOLATION && info.gpa == shared),
        "the shared page that was: {outcome:?}"
    );
    waits("the private page", touch(at + 8), at + 8, 1)?;
    accept("accepting", at, 0, Status::SUCCESS)?;
    zeros(at, PAGE_4K)
}

fn absent_shared() -> Check {
    let at = region()?;
    let alias = memory::shared_alias(at);
    for (outcome, wanted) in [(touch(alias + 8), 1), (store(alias + 8), 2)] {
        ensure!(
            matches!(outcome, Some(Caught::Ve(info)) if info.reason == reason::EPT_VIOLATION
                && info.gpa == (at + 8) | memory::shared_bit() && info.gla == alias + 8
                && info.qualification & 7 == wanted),
            "a shared page that is not there: {outcome:?}"
        );
    }
    Ok(())
}

/// Checks a device register as Linux accesses it on #VE: it asks the host, with the address from the #VE.
fn mmio() -> Check {
    use seam::abi::ghci::Request;
    const REGISTER: u64 = 0xFED0_0000;
    let alias = memory::shared_alias(REGISTER + 0x20);
    let Some(Caught::Ve(info)) = touch(alias) else {
        return guest_kit::fail!("no #VE");
    };
    expect(
        "the address",
        info.gpa,
        (REGISTER + 0x20) | memory::shared_bit(),
    )?;
    match vmcall::request(Request::Mmio, [8, 0, info.gpa, 0]) {
        Ok(_) => Ok(()),
        Err(why) => guest_kit::fail!("MMIO: {why:?}"),
    }
}

/// Checks physical address bits above the SHARED bit: #PF with the bit for reserved bits, no exit.
fn beyond() -> Check {
    const PRESENT_WRITABLE_LARGE: u64 = 0x83;
    const TABLE: u64 = 3;
    const SLOT: u64 = 300;
    if tdcall::vp_info().gpa_width != 48 {
        return Ok(());
    }
    let cr3: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack)) };
    // All vCPUs have the same root, and make the same entries one after the other.
    let directory = memory::take(PAGE_4K, PAGE_4K);
    for (entry, bit) in (48..52).enumerate() {
        memory::set_word(
            directory + entry as u64 * 8,
            1 << bit | PRESENT_WRITABLE_LARGE,
        );
    }
    let slot = cr3 + SLOT * 8;
    memory::set_word(slot, directory | TABLE);
    // SAFETY: flushes translations.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack)) };
    let base = SLOT << 39 | 0xFFFF << 48;
    let mut result = Ok(());
    for entry in 0..4u64 {
        const PRESENT: u64 = 1;
        const RESERVED: u64 = 8;
        let at = base + (entry << 30) + 0x40;
        let outcome = touch(at);
        // TCG omits the bit for a present entry.
        if result.is_ok()
            && !matches!(outcome, Some(Caught::Exception { vector: 14, error, cr2 }) if cr2 == at && error | PRESENT == RESERVED | PRESENT)
        {
            result = guest_kit::fail!("bit {}: {outcome:?}", 48 + entry);
        }
    }
    memory::set_word(slot, 0);
    // SAFETY: as before.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack)) };
    result
}

fn execution() -> Check {
    /// MOV EAX, 42; RET.
    const CODE: u64 = 0xC300_0000_2AB8;
    let at = memory::take(PAGE_4K, PAGE_4K);
    memory::set_word(at, CODE);
    let answer: u64;
    // SAFETY: the code returns, and changes only RAX.
    unsafe { asm!("call {}", in(reg) at, out("rax") answer) };
    expect("what the new code gives", answer, 42)
}

fn accept_together() -> Check {
    let at = region()?;
    memory::accept(at..at + PAGE_2M)
        .map(drop)
        .map_err(|(at, status)| Failure::new(format_args!("{at:#x}: {status:?}")))?;
    for offset in (0..PAGE_2M).step_by(PAGE_4K as usize) {
        expect("a word", memory::word(at + offset), 0)?;
        memory::set_word(at + offset, at);
    }
    Ok(())
}

static SAME: AtomicU64 = AtomicU64::new(0);

/// All vCPUs access one pending page: it is accepted once, and no write is lost.
fn one_page() -> Check {
    if vcpu::current().index() == 0 {
        SAME.store(region()?, Ordering::Release);
    }
    guest_kit::cpu::wait_until(|| SAME.load(Ordering::Acquire) != 0);
    let own = SAME.load(Ordering::Acquire) + 64 * u64::from(vcpu::current().index());
    // The handler of the #VE accepts it.
    for value in 1..1000 {
        memory::set_word(own, value);
        expect("one's own word", memory::word(own), value)?;
    }
    Ok(())
}
