//! A guest that checks interrupts: the virtual APIC, IPIs through the host, NMIs, and HLT.
//!
//! Rows: TDX Module ABI 1.5, "x2APIC virtualization", "Interrupts", "NMI"; GHCI, Instruction.HLT.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "enables interrupts for single instructions")]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_kit::attempt::{Caught, GP};
use guest_kit::check::{Check, Checks, expect};
use guest_kit::{apic, attempt, cpu, ensure, guest, vcpu, vmcall};
use guests::tries::{Own, own, raises, rdmsr, wrmsr};
use seam::abi::x86::msr::x2apic::{IRR, ISR, PPR, SELF_IPI, TPR};

guest!("interrupts", main);

/// The vector that vCPUs send around; nothing else uses it.
const RING: u8 = 0x95;

fn main(checks: &mut Checks) {
    vcpu::start_all();
    checks.each("self-ipi-waits-for-the-flag", self_ipi);
    checks.each("task-priority-holds-back", task_priority);
    checks.each("the-highest-comes-first", order);
    checks.each("sti-blocks-for-an-instruction", shadow);
    checks.each("self-ipi-of-no-interrupt", reserved_vectors);
    checks.each("an-ipi-to-oneself-by-the-host", ipi_to_self);
    checks.each("ipis-to-the-others", ipi_to_others);
    checks.each("every-vector", every_vector);
    checks.each("hlt-wakes-for-what-came-before", hlt_race);
    checks.once("hlt-with-interrupts-blocked-wakes-for-an-nmi", hlt_blocked);
    checks.each("nmi", nmi);
    checks.each("nmis-collapse", nmi_twice);
    checks.each("nmi-waits-for-ve-information", nmi_after_ve);
    checks.together("self-ipis-all-at-once", many);
    checks.together("ipis-to-the-next-all-at-once", ring);
}

fn came(vector: u8) -> u64 {
    vcpu::current().interrupts(vector).into()
}

/// Enables interrupts for a moment.
fn open() {
    // SAFETY: every vector has a handler.
    unsafe { asm!("sti", "nop", "nop", "cli") };
}

/// Returns the bit of a vector in IRR or ISR.
fn bit(set: u32, vector: u8) -> u64 {
    rdmsr(set + u32::from(vector / 32)).unwrap_or(0) >> (vector % 32) & 1
}

fn self_ipi() -> Check {
    const VECTOR: u8 = 0x51;
    let before = came(VECTOR);
    apic::self_ipi(VECTOR);
    expect("interrupts with IF = 0", came(VECTOR), before)?;
    expect("IRR", bit(IRR, VECTOR), 1)?;
    open();
    expect("interrupts", came(VECTOR), before + 1)?;
    expect("IRR", bit(IRR, VECTOR), 0)?;
    expect("ISR after the end of interrupt", bit(ISR, VECTOR), 0)?;
    expect("PPR", rdmsr(PPR).unwrap_or(1), 0)
}

fn task_priority() -> Check {
    const VECTOR: u8 = 0x62;
    let before = came(VECTOR);
    raises("TPR", wrmsr(TPR, 0x60), None)?;
    apic::self_ipi(VECTOR);
    open();
    let held = came(VECTOR);
    raises("TPR", wrmsr(TPR, 0x5F), None)?;
    open();
    let let_through = came(VECTOR);
    // Also through CR8.
    // SAFETY: only the task priority changes.
    unsafe { asm!("mov cr8, {}", in(reg) 6u64, options(nostack)) };
    apic::self_ipi(VECTOR);
    open();
    let held_again = came(VECTOR);
    expect("TPR by CR8", rdmsr(TPR).unwrap_or(0), 0x60)?;
    // SAFETY: as before; interrupts are taken at once.
    unsafe { asm!("sti", "mov cr8, {}", "nop", "cli", in(reg) 0u64) };
    let in_the_end = came(VECTOR);
    raises("TPR", wrmsr(TPR, 0), None)?;
    ensure!(
        [held, let_through, held_again, in_the_end] == [before, before + 1, before + 1, before + 2],
        "{before}: {held}, {let_through}, {held_again}, {in_the_end}"
    );
    Ok(())
}

/// Checks that the highest of several pending interrupts is in service first, and that a lower one waits for its end.
fn order() -> Check {
    let before = [came(0x41), came(0x75), came(0x52)];
    for vector in [0x41, 0x75, 0x52] {
        apic::self_ipi(vector);
    }
    for vector in [0x41, 0x75, 0x52] {
        expect("IRR", bit(IRR, vector), 1)?;
    }
    vcpu::current().note_order();
    open();
    // A second time: each is delivered when the one before has ended.
    open();
    ensure!(
        [came(0x41), came(0x75), came(0x52)] == before.map(|n| n + 1),
        "not each came once"
    );
    expect("the order", vcpu::current().order(), 0x75_5241)
}

/// Checks that the instruction after STI is executed before any interrupt.
fn shadow() -> Check {
    const VECTOR: u8 = 0x53;
    let before = came(VECTOR);
    apic::self_ipi(VECTOR);
    // SAFETY: every vector has a handler; no interrupt must come here.
    unsafe { asm!("sti", "cli") };
    expect("interrupts between STI and CLI", came(VECTOR), before)?;
    // SAFETY: as before. CPUID exits, the module continues behind it, and the interrupt comes there.
    unsafe {
        asm!("sti", "mov {b}, rbx", "cpuid", "mov rbx, {b}", "cli", b = out(reg) _,
            inout("eax") 0x15 => _, inout("ecx") 0 => _, out("edx") _);
    }
    expect("interrupts after CPUID", came(VECTOR), before + 1)
}

fn reserved_vectors() -> Check {
    // A vector below 16 causes an APIC-write exit, which is #VE, with the register's offset; the write is done.
    for vector in [0u64, 15] {
        let outcome = wrmsr(SELF_IPI, vector);
        ensure!(
            matches!(outcome, Some(Caught::Elsewhere { .. }))
                || guest_kit::attempt::ve_reason(outcome)
                    == Some(guest_kit::ve::reason::APIC_WRITE),
            "vector {vector}: {outcome:?}"
        );
    }
    raises("a vector of nine bits", wrmsr(SELF_IPI, 0x100), GP)
}

fn ipi_to_self() -> Check {
    const VECTOR: u8 = 0x91;
    let before = came(VECTOR);
    let id = apic::id().map_err(|why| guest_kit::check::Failure::new(format_args!("{why:?}")))?;
    ensure!(apic::ipi(id, VECTOR).is_ok(), "the host refuses it");
    open();
    cpu::enable_interrupts();
    cpu::wait_until(|| came(VECTOR) != before);
    cpu::disable_interrupts();
    expect("interrupts", came(VECTOR), before + 1)
}

/// Sends an interrupt to each of the others, which spin with interrupts enabled.
fn ipi_to_others() -> Check {
    const VECTOR: u8 = 0x92;
    let own = vcpu::current().index();
    for index in (0..vcpu::count()).filter(|index| *index != own) {
        let Some(other) = vcpu::running(index) else {
            return guest_kit::fail!("vCPU {index} does not run");
        };
        if index == 0 {
            // vCPU 0 waits for this one with interrupts disabled.
            continue;
        }
        vcpu::give(index, cpu::enable_interrupts);
        vcpu::finish(index);
        let before = other.interrupts(VECTOR);
        for count in 1..=100 {
            ensure!(apic::ipi(index, VECTOR).is_ok(), "the host refuses it");
            cpu::wait_until(|| other.interrupts(VECTOR) == before + count);
        }
        vcpu::give(index, cpu::disable_interrupts);
        vcpu::finish(index);
        expect(
            "interrupts",
            other.interrupts(VECTOR).into(),
            u64::from(before) + 100,
        )?;
    }
    Ok(())
}

fn every_vector() -> Check {
    for vector in (32..255u8).filter(|vector| *vector != RING) {
        let before = came(vector);
        apic::self_ipi(vector);
        open();
        ensure!(
            came(vector) == before + 1,
            "vector {vector} did not come once"
        );
    }
    Ok(())
}

/// Checks that an interrupt pending before HLT wakes the vCPU at once, posted or in the virtual APIC.
fn hlt_race() -> Check {
    const VECTOR: u8 = 0x93;
    let id = vcpu::current().index();
    for by_host in [true, false].into_iter().cycle().take(200) {
        let before = came(VECTOR);
        if by_host {
            ensure!(apic::ipi(id, VECTOR).is_ok(), "the host refuses it");
        } else {
            apic::self_ipi(VECTOR);
        }
        ensure!(vmcall::hlt(false).is_ok(), "the host refuses HLT");
        open();
        expect("interrupts", came(VECTOR), before + 1)?;
    }
    Ok(())
}

static HALTED: AtomicU64 = AtomicU64::new(0);

/// Checks that a vCPU that halts with interrupts blocked wakes up for an NMI from another.
fn hlt_blocked() -> Check {
    const NMI: u64 = 4 << 8;
    for index in 1..vcpu::count() {
        let before = HALTED.load(Ordering::Acquire);
        vcpu::give(index, || {
            let _ = vmcall::hlt(true);
            HALTED.fetch_add(1, Ordering::Release);
        });
        // An NMI that comes before the HLT does not count.
        cpu::wait_until(|| {
            let _ = vmcall::wrmsr(apic::msr::ICR, u64::from(index) << 32 | NMI);
            HALTED.load(Ordering::Acquire) != before
        });
        vcpu::finish(index);
    }
    Ok(())
}

fn nmi() -> Check {
    let vcpu = vcpu::current();
    for _ in 0..50 {
        let before = vcpu.nmis();
        ensure!(own(Own::Nmi, 0) == 0, "the host sends no NMI");
        cpu::wait_until(|| vcpu.nmis() != before);
        expect("NMIs", vcpu.nmis().into(), u64::from(before) + 1)?;
    }
    Ok(())
}

/// Checks that the NMI handler runs until its IRET, and that another NMI that comes meanwhile is delivered after it,
/// once.
fn nmi_twice() -> Check {
    let vcpu = vcpu::current();
    let before = vcpu.nmis();
    vcpu.call_in_next_nmi(|| {
        own(Own::Nmi, 0);
        own(Own::Nmi, 0);
    });
    ensure!(own(Own::Nmi, 0) == 0, "the host sends no NMI");
    cpu::wait_until(|| vcpu.nmis() >= before + 2);
    for _ in 0..10 {
        let _ = vmcall::cpuid(0x4000_0000, 0);
    }
    expect("NMIs", vcpu.nmis().into(), u64::from(before) + 2)?;
    expect("NMIs within an NMI", vcpu.nested_nmis().into(), 0)
}

/// Checks that an NMI waits until the information of a #VE is fetched.
fn nmi_after_ve() -> Check {
    let vcpu = vcpu::current();
    let before = vcpu.nmis();
    vcpu.call_in_next_ve(|| {
        let vcpu = vcpu::current();
        let before = vcpu.nmis();
        own(Own::Nmi, 0);
        for _ in 0..10 {
            let _ = vmcall::cpuid(0x4000_0000, 0);
        }
        vcpu.note(u64::from(vcpu.nmis() - before));
    });
    // SAFETY: raises #VE.
    let outcome = unsafe { attempt!("hlt") };
    ensure!(outcome.is_some(), "no #VE");
    cpu::wait_until(|| vcpu.nmis() != before);
    expect("NMIs before the information was fetched", vcpu.noted(), 0)?;
    expect("NMIs", vcpu.nmis().into(), u64::from(before) + 1)
}

fn many() -> Check {
    const VECTOR: u8 = 0x94;
    let before = came(VECTOR);
    for count in 1..=1000 {
        apic::self_ipi(VECTOR);
        open();
        expect("interrupts", came(VECTOR), before + count)?;
    }
    Ok(())
}

/// Each vCPU interrupts the next one, which spins, many times.
fn ring() -> Check {
    const VECTOR: u8 = RING;
    const TIMES: u32 = 200;
    let vcpu = vcpu::current();
    let next = (vcpu.index() + 1) % vcpu::count();
    let Some(other) = vcpu::running(next) else {
        return guest_kit::fail!("vCPU {next} does not run");
    };
    // The totals are those of this check only.
    cpu::enable_interrupts();
    let mut result = Ok(());
    for count in 1..=TIMES {
        if apic::ipi(next, VECTOR).is_err() {
            result = guest_kit::fail!("the host refuses it");
            break;
        }
        cpu::wait_until(|| other.interrupts(VECTOR) >= count);
    }
    cpu::wait_until(|| vcpu.interrupts(VECTOR) >= TIMES);
    cpu::disable_interrupts();
    result?;
    expect("interrupts", vcpu.interrupts(VECTOR).into(), TIMES.into())
}
