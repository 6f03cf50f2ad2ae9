//! A guest that uses all vCPUs at once: woken through the mailbox, they interrupt and wake each other, and then count
//! until they are told to stop.
//!
//! Every two seconds, and for an `r` on the console, a line prints each one's count; a `q` ends the guest.
#![no_std]
#![no_main]

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use guest_kit::check::{Check, Checks, Failure, expect};
use guest_kit::layout::MAX_VCPUS;
use guest_kit::{apic, console, cpu, ensure, guest, power, say, tdcall, vcpu};

guest!("smp", main, power::off);

/// Vectors: passed around the ring, sent to all others, the timer's, and sent while all count.
const RING: u8 = 0x40;
const OTHERS: u8 = 0x41;
const TIMER: u8 = 0x42;
const COUNTING: u8 = 0x43;
/// Number of times that an interrupt goes round.
const ROUNDS: u32 = 100;
/// Milliseconds between two reports, two polls of the console, two interrupts for the next vCPU.
const REPORT_MS: u64 = 2000;
const LOOK_MS: u64 = 50;
const INTERRUPT_MS: u64 = 20;

/// Each vCPU's x2APIC id.
static IDS: [AtomicU32; MAX_VCPUS] = [const { AtomicU32::new(0) }; MAX_VCPUS];
/// The count of each vCPU.
static COUNTS: [AtomicU64; MAX_VCPUS] = [const { AtomicU64::new(0) }; MAX_VCPUS];
static STOP: AtomicBool = AtomicBool::new(false);

fn main(checks: &mut Checks) {
    vcpu::start_all();
    say!("{} vCPUs run", vcpu::count());
    checks.together("every-vcpu-has-an-apic", every_vcpu_has_an_apic);
    checks.together("an-interrupt-goes-round", an_interrupt_goes_round);
    checks.each(
        "an-interrupt-reaches-all-others",
        an_interrupt_reaches_all_others,
    );
    checks.each("an-nmi-arrives", an_nmi_arrives);
    checks.together("the-timer-wakes-every-vcpu", the_timer_wakes_every_vcpu);
    checks.together("all-count", count);
    report();
    checks.once("every-vcpu-was-interrupted", every_vcpu_was_interrupted);
}

fn me() -> u32 {
    vcpu::current().index()
}

/// Returns the x2APIC id of the vCPU after this one.
fn next() -> u32 {
    IDS[((me() + 1) % vcpu::count()) as usize].load(Ordering::Acquire)
}

fn refused(error: guest_kit::vmcall::Refused) -> Failure {
    Failure::new(format_args!("the host refuses: {error:x?}"))
}

fn every_vcpu_has_an_apic() -> Check {
    expect(
        "the vCPU's number",
        tdcall::vp_info().index.into(),
        me().into(),
    )?;
    apic::enable().map_err(refused)?;
    let id = apic::id().map_err(refused)?;
    IDS[me() as usize].store(id, Ordering::Release);
    cpu::enable_interrupts();
    Ok(())
}

/// Each vCPU halts until its turn, and then wakes the next one.
fn an_interrupt_goes_round() -> Check {
    let received = || vcpu::current().interrupts(RING);
    for round in 0..ROUNDS {
        if me() != 0 {
            vcpu::sleep_until(|| received() > round).map_err(refused)?;
        }
        apic::ipi(next(), RING).map_err(refused)?;
        if me() == 0 {
            vcpu::sleep_until(|| received() > round).map_err(refused)?;
        }
    }
    expect("interrupts received", received().into(), ROUNDS.into())
}

fn an_interrupt_reaches_all_others() -> Check {
    let numbers = || (0..vcpu::count()).filter_map(vcpu::running);
    let sum = || numbers().map(|other| other.interrupts(OTHERS)).sum::<u32>();
    let (mine, before) = (vcpu::current().interrupts(OTHERS), sum());
    apic::ipi_to_others(OTHERS).map_err(refused)?;
    cpu::wait_until(|| sum() == before + vcpu::count() - 1);
    expect(
        "interrupts that the sender got",
        vcpu::current().interrupts(OTHERS).into(),
        mine.into(),
    )
}

fn an_nmi_arrives() -> Check {
    let index = (me() + 1) % vcpu::count();
    let Some(other) = vcpu::running(index) else {
        return guest_kit::fail!("vCPU {index} does not run");
    };
    let before = other.nmis();
    apic::nmi(next()).map_err(refused)?;
    cpu::wait_until(|| other.nmis() != before);
    expect("NMIs", other.nmis().into(), (before + 1).into())
}

fn the_timer_wakes_every_vcpu() -> Check {
    let ms = cpu::ticks_per_ms();
    for _ in 0..3 {
        let before = vcpu::current().interrupts(TIMER);
        let deadline = cpu::tsc() + 5 * ms;
        apic::timer(TIMER, deadline).map_err(refused)?;
        vcpu::sleep_until(|| vcpu::current().interrupts(TIMER) != before).map_err(refused)?;
        ensure!(cpu::tsc() >= deadline, "the timer went off early");
    }
    Ok(())
}

/// Counts until told to stop. vCPU 0 polls the console meanwhile.
fn count() -> Check {
    let ms = cpu::ticks_per_ms();
    let start = cpu::tsc();
    let (mut interrupt_at, mut look_at, mut report_at) = (start, start, start + REPORT_MS * ms);
    let count = &COUNTS[me() as usize];
    let mut counted = 0;
    while !STOP.load(Ordering::Relaxed) {
        for _ in 0..1000 {
            core::hint::black_box(counted);
        }
        counted += 1;
        count.store(counted, Ordering::Relaxed);
        let now = cpu::tsc();
        if now >= interrupt_at {
            apic::ipi(next(), COUNTING).map_err(refused)?;
            interrupt_at = now + INTERRUPT_MS * ms;
        }
        if me() != 0 || now < look_at {
            continue;
        }
        look_at = now + LOOK_MS * ms;
        let typed = console::typed();
        if typed == Some(b'q') {
            STOP.store(true, Ordering::Relaxed);
        }
        if typed == Some(b'r') || now >= report_at {
            report();
            report_at = now + REPORT_MS * ms;
        }
    }
    Ok(())
}

fn every_vcpu_was_interrupted() -> Check {
    for index in 0..vcpu::count() {
        let times = vcpu::running(index).map_or(0, |vcpu| vcpu.interrupts(COUNTING));
        let counted = COUNTS[index as usize].load(Ordering::Relaxed);
        ensure!(
            times > 0 && counted > 0,
            "vCPU {index}: {counted}, {times} interrupts"
        );
    }
    Ok(())
}

/// Prints one line: each vCPU's count, and the interrupts that it got.
fn report() {
    let ms = cpu::tsc() / cpu::ticks_per_ms();
    let interrupts =
        |index| vcpu::running(index).map_or(0, |vcpu| vcpu.interrupts(COUNTING).into());
    say!(
        "smp: {ms} ms counts {} interrupts {}",
        Each(&|index| COUNTS[index as usize].load(Ordering::Relaxed)),
        Each(&interrupts)
    );
}

/// Formats a number of each vCPU.
struct Each<'a>(&'a dyn Fn(u32) -> u64);

impl fmt::Display for Each<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for index in 0..vcpu::count() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}", (self.0)(index))?;
        }
        Ok(())
    }
}
