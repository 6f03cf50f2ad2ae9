//! The monitor's own GDT and IDT, one set for each processor. The task register holds the guest's value. Nothing here
//! needs one, because interrupts and exceptions of the monitor use its current stack.
//!
//! While the monitor runs, the global interrupt flag is clear. The monitor takes an NMI at the one place where it
//! enables it, and an interrupt that made a TD exit. Every exception is a fault of the monitor itself.
#![expect(
    unsafe_code,
    reason = "loads descriptor tables and contains exception handlers"
)]

use core::arch::{asm, naked_asm};
use core::mem::offset_of;

use stub_rom::lost::Limits;

use super::anchor::{ANCHOR, Anchor, STACK};
use super::{machine, panic};
use crate::cpu::{TableRegister, interrupt_gate};
use crate::memory;

const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
const EXCEPTIONS: usize = 32;
const VECTORS: usize = 256;

/// The targets of a processor's descriptor registers.
#[repr(C, align(16))]
pub struct Tables {
    gdt: [u64; 3],
    idt: [[u64; 2]; VECTORS],
}

impl Tables {
    /// Builds the tables.
    pub fn new() -> &'static mut Self {
        let tables = memory::leak(Self {
            gdt: [0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF],
            idt: [[0; 2]; VECTORS],
        });
        let mut set = |(vector, stub): (usize, Stub)| {
            let handler = stub as *const () as u64;
            tables.idt[vector] = interrupt_gate(CODE, handler);
        };
        (0..).zip(STUBS).for_each(&mut set);
        machine::install_vectors(set);
        tables
    }

    /// Loads the tables into this processor, with these limits, and reloads all segment registers.
    ///
    /// # Safety
    /// The processor is in 64-bit mode with interrupts off, under page tables that map the monitor.
    pub unsafe fn load(&'static self, limits: Limits) {
        let gdt = TableRegister {
            limit: limits.gdt,
            base: (&raw const self.gdt) as u64,
        };
        let idt = TableRegister {
            limit: limits.idt,
            base: (&raw const self.idt) as u64,
        };
        // SAFETY: the tables are never freed and describe flat 64-bit segments; no selector or vector refers to the
        // part beyond them that the limits cover. The far return reloads CS in place.
        unsafe {
            asm!(
                "lgdt [{gdt}]",
                "lidt [{idt}]",
                "push {code}",
                "lea {tmp}, [rip + 2f]",
                "push {tmp}",
                "retfq",
                "2:",
                "mov ds, {data:e}",
                "mov es, {data:e}",
                "mov ss, {data:e}",
                "mov fs, {zero:e}",
                "mov gs, {zero:e}",
                "lldt {zero:x}",
                gdt = in(reg) &gdt,
                idt = in(reg) &idt,
                code = in(reg) u64::from(CODE),
                data = in(reg) u64::from(DATA),
                zero = in(reg) 0u64,
                tmp = out(reg) _,
            );
        }
    }
}

/// The stack frame that an exception's entry code leaves.
#[repr(C)]
struct Frame {
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
}

extern "C" fn exception(frame: &Frame) -> ! {
    let cr2: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack)) };
    panic::stop(format_args!(
        "exception {} error {:#x} at {:#x}, rsp {:#x}, cr2 {cr2:#x}",
        frame.vector, frame.error, frame.rip, frame.rsp
    ))
}

#[unsafe(naked)]
unsafe extern "C" fn nmi() {
    naked_asm!(
        "push rax",
        "mov rax, rsp",
        "or rax, {stack} - 1",
        "mov dword ptr [rax - {anchor} + 1 + {at}], 1",
        "pop rax",
        "iretq",
        stack = const STACK,
        anchor = const ANCHOR,
        at = const offset_of!(Anchor, took_nmi),
    )
}

#[unsafe(naked)]
unsafe extern "C" fn common() {
    naked_asm!("mov rdi, rsp", "and rsp, -16", "call {}", "ud2", sym exception)
}

#[unsafe(naked)]
unsafe extern "C" fn stub<const VECTOR: u8, const HAS_ERROR: bool>() {
    naked_asm!(
        ".if {has_error} == 0",
        "push 0",
        ".endif",
        "push {vector}",
        "jmp {common}",
        has_error = const HAS_ERROR as u8,
        vector = const VECTOR,
        common = sym common,
    )
}

type Stub = unsafe extern "C" fn();

const STUBS: [Stub; EXCEPTIONS] = [
    stub::<0, false>,
    stub::<1, false>,
    nmi,
    stub::<3, false>,
    stub::<4, false>,
    stub::<5, false>,
    stub::<6, false>,
    stub::<7, false>,
    stub::<8, true>,
    stub::<9, false>,
    stub::<10, true>,
    stub::<11, true>,
    stub::<12, true>,
    stub::<13, true>,
    stub::<14, true>,
    stub::<15, false>,
    stub::<16, false>,
    stub::<17, true>,
    stub::<18, false>,
    stub::<19, false>,
    stub::<20, false>,
    stub::<21, true>,
    stub::<22, false>,
    stub::<23, false>,
    stub::<24, false>,
    stub::<25, false>,
    stub::<26, false>,
    stub::<27, false>,
    stub::<28, false>,
    stub::<29, true>,
    stub::<30, true>,
    stub::<31, false>,
];
