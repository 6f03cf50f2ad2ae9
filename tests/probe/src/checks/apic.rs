//! The local APIC in x2APIC mode.

use seam::abi::x86::msr::x2apic::{
    CURRENT_COUNT, DIVIDE, EOI, ESR, ICR, ID, INITIAL_COUNT, ISR, LDR, LVT_TIMER, SELF_IPI, SVR,
};
use seam::abi::x86::msr::{APIC_BASE as BASE, TSC_DEADLINE};

use super::personality::Vector;
use crate::attempt::{GP, IPI, IPIS, NMIS, TIMER, TIMERS, count, rdmsr, wrmsr};
use crate::cpu::{cpuid, rdtsc, wait};
use crate::{Check, expect};

const MASKED: u64 = 1 << 16;
const PERIODIC: u64 = 1 << 17;
const DEADLINE: u64 = 2 << 17;
const BY_ONE: u64 = 0b1011;

fn write(msr: u32, value: u64) -> Check {
    expect("a write", wrmsr(msr, value).unwrap_err_or_zero(), 0)
}

pub fn on_and_locked() -> Check {
    let base = rdmsr(BASE).unwrap_or(0);
    expect("EN and EXTD", base >> 10 & 3, 3)?;
    expect("BSP", base >> 8 & 1, 1)?;
    expect(
        "leaving x2APIC mode",
        wrmsr(BASE, base & !(1 << 10)).unwrap_err_or_zero(),
        GP,
    )?;
    expect(
        "disabling it",
        wrmsr(BASE, base & !(3 << 10)).unwrap_err_or_zero(),
        GP,
    )?;
    expect(
        "a reserved bit",
        wrmsr(BASE, base | 1).unwrap_err_or_zero(),
        GP,
    )?;
    write(BASE, base)
}

pub fn ids() -> Check {
    let id = u64::from(cpuid(0x1F, 0)[3]);
    expect("the id", rdmsr(ID).unwrap_or(u64::MAX), id)?;
    expect(
        "the logical id",
        rdmsr(LDR).unwrap_or(0),
        id >> 4 << 16 | 1 << (id & 15),
    )?;
    expect("LVT entries", rdmsr(0x803).unwrap_or(0) >> 16 & 0xFF, 6)
}

pub fn reserved_bits() -> Check {
    for (what, msr, value) in [
        ("EOI of 1", EOI, 1),
        ("the id", ID, 0),
        ("the logical id", LDR, 0),
        ("TPR above 8 bits", 0x808, 0x100),
        ("SVR bit 12", SVR, 1 << 12),
        ("ESR of 1", ESR, 1),
        ("ICR bit 12", ICR, 1 << 12),
        ("ICR2", 0x831, 0),
        ("the DFR", 0x80E, 0),
        ("the current count", CURRENT_COUNT, 0),
        ("the divider's bit 2", DIVIDE, 4),
        ("self IPI above 8 bits", SELF_IPI, 0x100),
        ("no register", 0x840, 0),
    ] {
        expect(what, wrmsr(msr, value).unwrap_err_or_zero(), GP)?;
    }
    expect("reading EOI", rdmsr(EOI).err().unwrap_or(0), GP)?;
    expect("reading self IPI", rdmsr(SELF_IPI).err().unwrap_or(0), GP)
}

/// Two IPIs of the same vector only arrive both if the first one's EOI did.
pub fn self_ipi() -> Check {
    let svr = rdmsr(SVR).unwrap_or(0);
    write(SVR, svr | 1 << 8)?;
    for round in 1..=2 {
        let before = count(&IPIS);
        write(SELF_IPI, IPI.into())?;
        wait(2, || count(&IPIS) != before);
        expect("IPIs by the self register", u64::from(count(&IPIS)), round)?;
    }
    let in_service = ISR + u32::from(IPI) / 32;
    expect(
        "the in-service bit",
        rdmsr(in_service).unwrap_or(1) >> (IPI % 32) & 1,
        0,
    )?;
    write(ICR, 1 << 18 | u64::from(IPI))?;
    wait(2, || count(&IPIS) == 3);
    expect("with the shorthand", count(&IPIS).into(), 3)?;
    let me = rdmsr(ID).unwrap_or(0);
    write(ICR, me << 32 | u64::from(IPI))?;
    wait(2, || count(&IPIS) == 4);
    expect("to the physical id", count(&IPIS).into(), 4)?;
    let logical = rdmsr(LDR).unwrap_or(0);
    write(ICR, logical << 32 | 1 << 11 | u64::from(IPI))?;
    wait(2, || count(&IPIS) == 5);
    expect("to the logical id", count(&IPIS).into(), 5)
}

pub fn error_status() -> Check {
    write(ESR, 0)?;
    write(SELF_IPI, 5)?;
    write(ESR, 0)?;
    expect("send illegal vector", rdmsr(ESR).unwrap_or(0), 1 << 5)?;
    write(ESR, 0)?;
    expect("ESR afterwards", rdmsr(ESR).unwrap_or(1), 0)
}

pub fn nmi_to_self() -> Check {
    for round in 1..=3 {
        let me = rdmsr(ID).unwrap_or(0);
        write(ICR, me << 32 | 0x4400)?;
        wait(2, || u64::from(count(&NMIS)) == round);
        expect("NMIs", count(&NMIS).into(), round)?;
    }
    Ok(())
}

pub fn one_shot() -> Check {
    let before = count(&TIMERS);
    write(DIVIDE, BY_ONE)?;
    write(LVT_TIMER, TIMER.into())?;
    write(INITIAL_COUNT, 1_000_000)?;
    expect("it came", wait(2, || count(&TIMERS) != before).into(), 1)?;
    wait(1, || count(&TIMERS) != before + 1);
    expect("interrupts", (count(&TIMERS) - before).into(), 1)?;
    expect("the count", rdmsr(CURRENT_COUNT).unwrap_or(1), 0)?;
    write(LVT_TIMER, MASKED)
}

pub fn periodic() -> Check {
    let before = count(&TIMERS);
    write(LVT_TIMER, PERIODIC | u64::from(TIMER))?;
    write(INITIAL_COUNT, 5_000_000)?;
    let came = wait(2, || count(&TIMERS) >= before + 3);
    write(INITIAL_COUNT, 0)?;
    write(LVT_TIMER, MASKED)?;
    expect("three interrupts", came.into(), 1)
}

pub fn deadline() -> Check {
    let before = count(&TIMERS);
    write(LVT_TIMER, DEADLINE | u64::from(TIMER))?;
    let [denominator, numerator, crystal, _] = cpuid(0x15, 0).map(u64::from);
    let at = rdtsc() + crystal * numerator / denominator / 100;
    write(TSC_DEADLINE, at)?;
    expect("the register", rdmsr(TSC_DEADLINE).unwrap_or(0), at)?;
    expect("it came", wait(2, || count(&TIMERS) != before).into(), 1)?;
    expect("it was not early", u64::from(rdtsc() >= at), 1)?;
    expect(
        "the register afterwards",
        rdmsr(TSC_DEADLINE).unwrap_or(1),
        0,
    )?;
    write(TSC_DEADLINE, rdtsc() + (1 << 40))?;
    write(TSC_DEADLINE, 0)?;
    expect("disarmed", rdmsr(TSC_DEADLINE).unwrap_or(1), 0)?;
    write(TSC_DEADLINE, 1)?;
    expect(
        "one in the past",
        wait(2, || count(&TIMERS) == before + 2).into(),
        1,
    )?;
    write(LVT_TIMER, MASKED)
}
