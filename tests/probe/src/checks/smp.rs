//! Another processor: started, interrupted, reset and started again.
#![expect(
    unsafe_code,
    reason = "prepares a stack and a page for another processor"
)]

use core::sync::atomic::{AtomicU32, Ordering};

use boot::ap;
use seam::abi::x86::msr::x2apic::ICR;
use uefi::boot::{AllocateType, MemoryType, allocate_pages};

use super::personality::Vector;
use crate::attempt::{IPI, IPIS, NMIS, count, load_tables, rdmsr, wrmsr};
use crate::cpu::{cpuid, cr3, cr4, wait};
use crate::{Check, expect};

const INIT: u64 = 0x4500;
const STARTUP: u64 = 0x4600;
const NMI: u64 = 0x4400;

/// The number of times that the other processor has arrived in 64-bit mode.
static ARRIVALS: AtomicU32 = AtomicU32::new(0);
/// The x2APIC id that it found.
static ARRIVED_ID: AtomicU32 = AtomicU32::new(u32::MAX);

static mut SLOTS: [ap::Slot; 1] = [ap::Slot {
    apic_id: 0,
    reserved: 0,
    stack_top: 0,
    arg: 0x5EA,
}];

/// Where the other processor arrives: it takes interrupts for good.
extern "C" fn arrive(arg: u64) -> ! {
    load_tables();
    let software_enabled = wrmsr(0x80F, 0x1FF).is_ok();
    if arg == 0x5EA && software_enabled {
        ARRIVED_ID.store(rdmsr(0x802).unwrap_or(u64::MAX) as u32, Ordering::SeqCst);
        ARRIVALS.fetch_add(1, Ordering::SeqCst);
    }
    loop {
        // SAFETY: this program's handlers are loaded.
        unsafe { core::arch::asm!("sti", "hlt", options(nomem, nostack)) };
    }
}

/// The id of a processor that is not this one: the next thread, core or package.
fn other() -> u64 {
    u64::from(cpuid(0x1F, 0)[3] ^ 1)
}

fn send(command: u64) -> Check {
    let icr = other() << 32 | command;
    expect("writing the ICR", wrmsr(ICR, icr).unwrap_err_or_zero(), 0)
}

fn start() -> Check {
    let page = |below| {
        allocate_pages(AllocateType::MaxAddress(below), MemoryType::LOADER_DATA, 4)
            .map_or(0, |at| at.as_ptr() as u64)
    };
    let (trampoline, stack) = (page(0xA_0000), page(1 << 32));
    // SAFETY: no processor is on its way yet.
    let slots = unsafe {
        let slots = &raw mut SLOTS;
        (*slots)[0].apic_id = other() as u32;
        (*slots)[0].stack_top = stack + 4 * 4096;
        slots
    };
    let params = ap::Params {
        cr3: cr3(),
        cr4: cr4(),
        efer: 1 << 11,
        enable_xd: false,
        entry: arrive as *const () as u64,
        slots: slots as u64,
        slot_count: 1,
    };
    // SAFETY: pages that were just allocated.
    let page = unsafe { &mut *(trampoline as *mut [u8; ap::PAGE]) };
    let Ok(vector) = ap::install(page, trampoline, &params) else {
        return expect("the trampoline", trampoline, 0x8000);
    };
    let before = ARRIVALS.load(Ordering::SeqCst);
    send(INIT)?;
    send(STARTUP | u64::from(vector))?;
    send(STARTUP | u64::from(vector))?;
    wait(5, || ARRIVALS.load(Ordering::SeqCst) != before);
    expect(
        "arrivals",
        ARRIVALS.load(Ordering::SeqCst).into(),
        u64::from(before) + 1,
    )
}

pub fn starts() -> Check {
    start()?;
    expect("its id", ARRIVED_ID.load(Ordering::SeqCst).into(), other())
}

pub fn ipis() -> Check {
    for _ in 0..10 {
        let before = count(&IPIS);
        send(0x4000 | u64::from(IPI))?;
        wait(5, || count(&IPIS) != before);
        expect("IPIs", count(&IPIS).into(), u64::from(before) + 1)?;
        let before = count(&NMIS);
        send(NMI)?;
        wait(5, || count(&NMIS) != before);
        expect("NMIs", count(&NMIS).into(), u64::from(before) + 1)?;
    }
    Ok(())
}

pub fn starts_again() -> Check {
    start()?;
    ipis()
}
