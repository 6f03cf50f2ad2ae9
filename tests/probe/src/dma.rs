//! Tables of the VT-d unit by which a device reaches memory that no device may reach. The machine has to report each
//! way once, when the queue's doorbell rings.
#![expect(unsafe_code, reason = "writes tables and the unit's registers")]

use core::arch::asm;

use seam::abi::{Gprs, Leaf, PAGE_4K};

use crate::attempt::{rdmsr, write};
use crate::tdx::{first_hkid, pages, succeed};
use crate::{Check, Failure, checks, expect, serial};

/// The registers of QEMU's unit.
const BASE: u64 = 0xFED9_0000;
const GLOBAL_COMMAND: u64 = 0x18;
const GLOBAL_STATUS: u64 = 0x1C;
const ROOT_TABLE: u64 = 0x20;
const QUEUE_TAIL: u64 = 0x88;
const QUEUE: u64 = 0x90;

const TRANSLATION: u32 = 1 << 31;
const SET_ROOT: u32 = 1 << 30;
const QUEUED_INVALIDATION: u32 = 1 << 26;

/// A second-stage entry that allows reads and writes.
const READ_WRITE: u64 = 0b11;
const PRESENT: u64 = 1;
/// 4 levels.
const WIDTH: u64 = 2;
/// A global invalidation of translations.
const FLUSH: u64 = 0x12;
const DESCRIPTOR: u64 = 16;

/// Switches translation on with sound tables, then lets a device reach the SEAM range and a TDR.
pub fn run() -> Check {
    checks::bring_up()?;
    let seam = rdmsr(0x1400).unwrap_or(0) & 0x000F_FFFF_FE00_0000;
    let private = pages(1);
    let operands = Gprs {
        rcx: private,
        rdx: first_hkid() + 1,
        ..Gprs::default()
    };
    succeed("TDH.MNG.CREATE", Leaf::MngCreate, operands)?;

    let leaves = switch_on()?;
    serial::line(format_args!("dma: on"));
    // Nothing is wrong with these yet.
    write(leaves + 8, pages(1) | READ_WRITE);
    ring(1);
    serial::line(format_args!("dma: private {private:#x}"));
    write(leaves + 16, seam | READ_WRITE);
    write(leaves + 24, private | READ_WRITE);
    ring(2);
    write(leaves + 32, (seam + PAGE_4K) | READ_WRITE);
    ring_by_addition();
    // Known by now.
    ring(4);
    command(0);
    await_status(TRANSLATION, 0)
}

/// Switches translation and the queue on. Returns the last table of a device.
fn switch_on() -> Result<u64, Failure> {
    let zeroed = || {
        let page = pages(1);
        (0..512).for_each(|word| {
            write(page + word * 8, 0);
        });
        page
    };
    let [root, context, leaves, queue] = core::array::from_fn(|_| zeroed());
    let top = (0..3).fold(leaves, |below, _| {
        let table = zeroed();
        write(table, below | READ_WRITE);
        table
    });
    // Device 01:00.0.
    write(root + 16, context | PRESENT);
    write(context, top | PRESENT);
    write(context + 8, WIDTH);
    set64(ROOT_TABLE, root);
    command(SET_ROOT);
    await_status(SET_ROOT, SET_ROOT)?;
    command(TRANSLATION);
    await_status(TRANSLATION, TRANSLATION)?;
    set64(QUEUE_TAIL, 0);
    set64(QUEUE, queue);
    command(TRANSLATION | QUEUED_INVALIDATION);
    await_status(QUEUED_INVALIDATION, QUEUED_INVALIDATION)?;
    (0..16).for_each(|index| {
        write(queue + index * DESCRIPTOR, FLUSH);
    });
    Ok(leaves)
}

/// Hands the queue's descriptors before `count` to the unit.
fn ring(count: u64) {
    set64(QUEUE_TAIL, count * DESCRIPTOR);
}

/// Hands one more descriptor to the unit, by an instruction that reads and writes the register.
fn ring_by_addition() {
    let tail = BASE + QUEUE_TAIL;
    // SAFETY: the unit's register; the descriptor flushes translations.
    unsafe { asm!("add dword ptr [{}], 16", in(reg) tail, options(nostack)) };
}

fn set64(register: u64, value: u64) {
    // SAFETY: the unit's register, which the firmware does not use.
    unsafe { ((BASE + register) as *mut u64).write_volatile(value) };
}

fn command(value: u32) {
    // SAFETY: as for `set64`; the firmware's devices are blocked from here on, and it is not used any more.
    unsafe { ((BASE + GLOBAL_COMMAND) as *mut u32).write_volatile(value) };
}

/// Fails unless the bits of the global status come.
fn await_status(mask: u32, wanted: u32) -> Check {
    // SAFETY: as for `set64`.
    let status = || unsafe { ((BASE + GLOBAL_STATUS) as *const u32).read_volatile() };
    crate::cpu::wait(10, || status() & mask == wanted);
    expect("the global status", (status() & mask).into(), wanted.into())
}
