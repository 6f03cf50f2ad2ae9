//! A hostile guest. On its first two vCPUs it makes TDVMCALLs, well-formed and malformed, with registers of all kinds,
//! from a seed that it prints.
//!
//! MRCONFIGID holds three numbers: the seed, the number of calls, and the [`END`] that it makes then. Interrupts stay
//! disabled all the time, because their vectors are the hostile calls' own; NMIs wake a vCPU that halts.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guest_kit::check::{Check, Checks, Failure, expect};
use guest_kit::hostile::{Call, Ground, QUOTES, registers};
use guest_kit::numbers::Numbers;
use guest_kit::{
    apic, console, cpu, ensure, fail, guest, memory, power, say, tdcall, vcpu, vmcall, wishes,
};
use seam::abi::ghci::{self, Request};
use seam::abi::{Gprs, GuestLeaf, PAGE_2M, PAGE_4K, Status};

guest!("hostile", main, end);

/// The numbers of the parameters.
const SEED: usize = 0;
const CALLS: usize = 1;
const END: usize = 2;
/// Default number of calls.
const MANY: u64 = 1_000_000;
/// Number of lines that report progress.
const LINES: u64 = 10;
/// Size of the memory that is converted back and forth.
const GROUND_BYTES: u64 = 8 * PAGE_2M;
/// A private address that is mapped, beyond all memory of a test's TD.
const NOWHERE: u64 = 1 << 38;
/// One in this many conversions is made.
const SELDOM: u64 = 3;
/// One in this many calls during a conversion comes with an NMI for the vCPU that converts.
const OFTEN: u64 = 2;
/// Number of vCPUs that make calls.
const CALLERS: u32 = 2;

/// The address of the ground; zero before it exists.
static START: AtomicU64 = AtomicU64::new(0);
static RANDOM: AtomicU64 = AtomicU64::new(0);
/// Calls that are requested, and that were made.
static WISHED: AtomicU64 = AtomicU64::new(0);
static MADE: AtomicU64 = AtomicU64::new(0);
/// Answers by status: success, retry, operand, alignment, unsupported.
static ANSWERS: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];
const STATUSES: [u64; 5] = [
    ghci::SUCCESS,
    ghci::RETRY,
    ghci::INVALID_OPERAND,
    ghci::ALIGN_ERROR,
    ghci::SUBFUNC_UNSUPPORTED,
];
/// Count of TDCALLs that the module itself refused.
static REFUSED: AtomicU64 = AtomicU64::new(0);
/// True while a vCPU converts memory, which delays another's services.
static CONVERTS: AtomicBool = AtomicBool::new(false);
/// True while vCPU 0 halts, or is about to.
static HALTS: AtomicBool = AtomicBool::new(false);
/// True once vCPU 0 makes no more calls, so that it halts no more.
static AWAKE: AtomicBool = AtomicBool::new(false);

fn main(checks: &mut Checks) {
    let seed = match wishes::word(SEED) {
        0 => cpu::tsc(),
        seed => seed,
    };
    let calls = match wishes::word(CALLS) {
        0 => MANY,
        calls => calls,
    };
    say!("hostile: seed {seed:#x}, {calls} calls");
    RANDOM.store(seed, Ordering::Relaxed);
    WISHED.store(calls, Ordering::Relaxed);
    checks.once("has-ground-to-fight-on", has_ground);
    vcpu::start_all();
    checks.together("every-call-has-an-answer", call_without_end);
    // The calls have changed the serial port.
    console::heal();
    let [done, retry, operand, alignment, unsupported] = ANSWERS
        .each_ref()
        .map(|count| count.load(Ordering::Relaxed));
    say!(
        "hostile: {} calls: {done} done, {retry} to retry, {operand} invalid, {alignment} misaligned, {unsupported} unsupported; {} refused by the module",
        MADE.load(Ordering::Relaxed),
        REFUSED.load(Ordering::Relaxed)
    );
    checks.once("memory-comes-back", memory_comes_back);
}

fn has_ground() -> Check {
    ensure!(vcpu::count() >= CALLERS, "a TD with one vCPU");
    match memory::take_unaccepted(GROUND_BYTES + PAGE_2M) {
        Some(start) => START.store(start, Ordering::Release),
        None => return fail!("not enough memory"),
    }
    share_buffer()
}

fn ground() -> Ground {
    let start = START.load(Ordering::Acquire);
    Ground {
        shared: memory::shared_bit(),
        memory: start..start + GROUND_BYTES,
        vcpus: vcpu::count(),
    }
}

fn refused(error: vmcall::Refused) -> Failure {
    Failure::new(format_args!("the host refuses: {error:x?}"))
}

/// Shares pages for data that the host writes.
fn share_buffer() -> Check {
    let ground = ground();
    let gpa = ground.shared | ground.buffer();
    vmcall::map_gpa(gpa, QUOTES * PAGE_4K).map_err(refused)
}

/// Makes calls until there were enough or one has the wrong answer. vCPUs that do not call have nothing to do.
fn call_without_end() -> Check {
    let made = match vcpu::current().index() {
        me if me < CALLERS => make_calls(me),
        _ => return Ok(()),
    };
    if vcpu::current().index() == 0 {
        AWAKE.store(true, Ordering::Release);
        return made;
    }
    // vCPU 0 may be halted, or about to, and nothing else wakes it.
    while !AWAKE.load(Ordering::Acquire) {
        wake()?;
    }
    made
}

/// Wakes vCPU 0 if it halts. It has APIC id 0, as everywhere, and continues, whether it has halted yet or not.
fn wake() -> Check {
    match HALTS.load(Ordering::Acquire) {
        true => apic::nmi(0).map_err(refused),
        false => Ok(()),
    }
}

/// Makes calls until all vCPUs together have made enough.
fn make_calls(me: u32) -> Check {
    let ground = ground();
    let mut numbers = Numbers::new(RANDOM.load(Ordering::Relaxed).wrapping_add(me.into()));
    let wished = WISHED.load(Ordering::Relaxed);
    while MADE.load(Ordering::Relaxed) < wished {
        if me == 0 {
            tell_of_progress(wished);
        } else {
            wake()?;
        }
        match numbers.below(32) {
            0 => call_module(&mut numbers)?,
            1 => call_with_few_registers(&mut numbers)?,
            _ => call_host(&ground, &mut numbers, me)?,
        }
    }
    Ok(())
}

/// Prints one line for each tenth.
fn tell_of_progress(wished: u64) {
    static TOLD: AtomicU64 = AtomicU64::new(0);
    let tenth = MADE.load(Ordering::Relaxed) * LINES / wished;
    if TOLD.swap(tenth, Ordering::Relaxed) != tenth {
        console::heal();
        say!("hostile: {} calls", MADE.load(Ordering::Relaxed));
    }
}

/// Returns true if the guest itself would not survive the call.
fn is_suicide(call: &Call, ground: &Ground) -> bool {
    let last = ground.buffer() + PAGE_2M;
    let elsewhere =
        |range: core::ops::Range<u64>| range.start < ground.memory.start || range.end > last;
    call.is_last() || call.converts(ground).is_some_and(elsewhere)
}

/// Makes a hostile call.
fn call_host(ground: &Ground, numbers: &mut Numbers, me: u32) -> Check {
    let mut call = ground.next(numbers);
    let other_converts = CONVERTS.load(Ordering::Relaxed);
    if other_converts && numbers.once_in(OFTEN) {
        // Makes the host interrupt the conversion. A vCPU's APIC id is its number.
        apic::nmi(CALLERS - 1 - me).map_err(refused)?;
    }
    if other_converts && numbers.once_in(2) {
        call = ask_for_service(ground, numbers);
    }
    let converts = call.converts(ground).is_some();
    let is_conflict = converts && CONVERTS.load(Ordering::Relaxed);
    // Calls that take the host a hundred times as long as others are made less often.
    if is_suicide(&call, ground) || converts && !is_conflict && !numbers.once_in(SELDOM) {
        return Ok(());
    }
    let halts = call.request() == Some(Request::Hlt);
    if halts && me != 0 {
        // Another vCPU must be able to wake the halted one, so only vCPU 0 halts.
        call.regs.r12 = 2;
    }
    if halts && me == 0 {
        HALTS.store(true, Ordering::Release);
    }
    call.regs.rcx = vmcall::REGISTERS;
    if converts {
        CONVERTS.store(true, Ordering::Relaxed);
    }
    vmcall::raw(&mut call.regs);
    if converts {
        CONVERTS.store(false, Ordering::Relaxed);
    }
    if halts && me == 0 {
        HALTS.store(false, Ordering::Release);
    }
    answered(&call.regs)
}

/// Returns a valid call that another vCPU's conversion delays.
fn ask_for_service(ground: &Ground, numbers: &mut Numbers) -> Call {
    let at = ground.shared | ground.buffer();
    let (request, operands) = match numbers.below(8) {
        0 => (
            Request::MapGpa,
            [ground.shared | ground.memory.start, PAGE_4K, 0, 0],
        ),
        _ => (Request::Service, [at, at + PAGE_4K, 0, 0]),
    };
    Call {
        regs: registers(request as u64, operands),
    }
}

/// Counts the host's answer in R10.
fn answered(regs: &Gprs) -> Check {
    MADE.fetch_add(1, Ordering::Relaxed);
    expect("RAX", regs.rax, 0)?;
    let known = STATUSES.iter().position(|status| *status == regs.r10);
    match known {
        Some(at) => _ = ANSWERS[at].fetch_add(1, Ordering::Relaxed),
        None => return fail!("an answer of {:#x}", regs.r10),
    }
    Ok(())
}

/// Makes TDCALLs that the module must refuse.
fn call_module(numbers: &mut Numbers) -> Check {
    let any = numbers.next();
    let (rax, rcx) = match numbers.below(5) {
        // No such leaf, or reserved bits set.
        0 => (64 + any % 1000, any),
        1 => (any | 1 << 40, any),
        // Registers that TDG.VP.VMCALL does not pass, or that do not exist.
        2 => (
            GuestLeaf::VpVmcall.rax(),
            any | numbers.of(&[1, 2, 0x10, 1 << 32]),
        ),
        // An invalid address.
        3 => (GuestLeaf::MemPageAccept.rax(), any | 1 << 60),
        _ => (GuestLeaf::MrReport.rax(), any | 1),
    };
    let mut regs = Gprs {
        rax,
        rcx,
        rdx: numbers.next(),
        r8: numbers.next(),
        ..Gprs::default()
    };
    tdcall::raw(&mut regs);
    REFUSED.fetch_add(1, Ordering::Relaxed);
    ensure!(
        Status(regs.rax).code() == Status::OPERAND_INVALID,
        "TDCALL {rax:#x} with RCX {rcx:#x}: {:?}",
        Status(regs.rax)
    );
    Ok(())
}

/// Passes few registers to the host: the others must be zero for it, and its answers in them must not come back.
fn call_with_few_registers(numbers: &mut Numbers) -> Check {
    const R10: u64 = 1 << 10;
    const R11: u64 = 1 << 11;
    let mut regs = registers(Request::Cpuid as u64, [0xB, 1, 0, 0]);
    // Never RSP, which the module refuses.
    regs.rcx = numbers.next() & 0xFFFF_0000 | numbers.of(&[R10 | R11, R10, 0, 0xFC00, 0xFFCC]);
    let (asked, sees_function) = (regs, regs.rcx & R11 != 0);
    vmcall::raw(&mut regs);
    if asked.rcx & R10 == 0 {
        expect("R10, which was not passed", regs.r10, asked.r10)?;
        regs.r10 = ghci::SUCCESS;
    } else if !sees_function {
        expect(
            "the status of function 0",
            regs.r10,
            ghci::SUBFUNC_UNSUPPORTED,
        )?;
    }
    for (bit, was, is) in [(12, asked.r12, regs.r12), (14, asked.r14, regs.r14)] {
        ensure!(asked.rcx >> bit & 1 != 0 || was == is, "R{bit} has changed");
    }
    answered(&regs)
}

/// Makes all of the ground private again, and checks that it can be used.
fn memory_comes_back() -> Check {
    let ground = ground();
    let range = ground.memory.start..ground.buffer() + PAGE_2M;
    vmcall::map_gpa(range.start, range.end - range.start).map_err(refused)?;
    if let Err((gpa, status)) = memory::accept(range.clone()) {
        return fail!("{gpa:#x} can't be accepted: {status:?}");
    }
    for page in range.step_by(PAGE_4K as usize) {
        expect("a page that came back", memory::word(page), 0)?;
        memory::set_word(page, page);
    }
    Ok(())
}

/// Ends the guest in the requested way.
fn end() -> ! {
    let wish = wishes::word(END);
    say!("hostile: end {wish}");
    let ground = ground();
    let page = ground.memory.start;
    match wish {
        1 => power::off(),
        2 => power::reset(),
        3 => vmcall::report_fatal_error(3, "hostile to the end"),
        4 => triple_fault(),
        // Private memory that does not exist.
        5 => _ = memory::word(NOWHERE),
        6 => _ = tdcall::page_accept(NOWHERE, 0),
        // Shared memory, used as private.
        7 => {
            let _ = vmcall::map_gpa(page | ground.shared, PAGE_2M);
            _ = memory::word(page);
        }
        // Memory that was not accepted, in a TD that gets no #VE for it.
        8 => {
            let _ = vmcall::map_gpa(page | ground.shared, PAGE_2M);
            let _ = vmcall::map_gpa(page, PAGE_2M);
            _ = memory::word(page);
        }
        _ => {}
    }
    vcpu::finish_all()
}

/// Raises an exception without a handler, twice.
#[expect(unsafe_code, reason = "destroys the guest's own state")]
fn triple_fault() -> ! {
    let nothing = [0u64; 2];
    // SAFETY: nothing of the guest is executed after it.
    unsafe {
        core::arch::asm!("lidt [{}]", "ud2", in(reg) &nothing, options(noreturn));
    }
}
