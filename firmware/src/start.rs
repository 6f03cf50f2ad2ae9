//! The first instructions of each vCPU, and the last ones before the kernel's.
//!
//! vCPU 0 boots. The others get a stack as soon as there is memory for one, help to accept the rest, and wait for the
//! kernel in the mailbox.
#![expect(unsafe_code, reason = "the ways into Rust and out of it")]

use core::arch::{asm, naked_asm};

use td_base::layout::{VCPU_AREA, VCPU_AREA_BYTES};
use td_base::{long_mode, to_long_mode};

use crate::places::STACK_BYTES;
use crate::{load, mailbox, team};

/// The first instruction of a TD. ESP holds its address, which the reset vector put there.
///
/// # Safety
/// Only the reset vector comes here.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn td_start() {
    naked_asm!(
        ".code32",
        to_long_mode!(),
        "xorl %ebp, %ebp",
        "testl %esi, %esi",
        "jnz 4f",
        "movl ${stack}, %esp",
        "call {main}",
        "ud2",
        // Waits for this vCPU's stack.
        "4: pause",
        "movq {stacks}(%rip), %rax",
        "testq %rax, %rax",
        "jz 4b",
        "leaq 1(%rsi), %rsp",
        "shlq ${stack_shift}, %rsp",
        "addq %rax, %rsp",
        "movl %esi, %ebx",
        "movl %esi, %edi",
        "call {join}",
        // Switches to a smaller stack, which the vCPU keeps. EBX holds the vCPU's number, R14 the ticks between two
        // polls.
        "movq %rax, %rsp",
        "movq %rdx, %r14",
        "lock incl {waiting}(%rip)",
        "jmp {wait}",
        me = sym td_start,
        cr4 = const long_mode::CR4,
        cr0 = const long_mode::CR0,
        root = sym long_mode::ROOT,
        gdt = sym long_mode::GDT_POINTER,
        far = sym long_mode::FAR,
        data = const long_mode::DATA,
        stack = const VCPU_AREA + VCPU_AREA_BYTES,
        main = sym load::main,
        stacks = sym team::STACKS,
        stack_shift = const STACK_BYTES.ilog2(),
        join = sym team::join,
        waiting = sym team::WAITING,
        wait = sym mailbox::wait,
        options(att_syntax),
    )
}

#[repr(C, packed)]
struct TablePointer<T> {
    limit: u16,
    base: *const T,
}
// SAFETY: only the CPU follows the pointer.
unsafe impl<T> Sync for TablePointer<T> {}

/// The segments that the boot protocol demands: code is 0x10, data 0x18.
static SEGMENTS: [u64; 4] = [0, 0, long_mode::SEGMENTS[1], long_mode::SEGMENTS[2]];
static SEGMENTS_POINTER: TablePointer<[u64; 4]> = TablePointer {
    limit: size_of::<[u64; 4]>() as u16 - 1,
    base: &raw const SEGMENTS,
};

/// Enters the kernel.
///
/// # Safety
/// The kernel is loaded at its address, and its parameters are at `parameters`.
pub unsafe fn enter(kernel: u64, parameters: u64) -> ! {
    // SAFETY: the caller's promise; this vCPU uses nothing of this program any more.
    unsafe {
        asm!(
            "lgdt [rip + {segments}]",
            "push 0x10",
            "push {kernel}",
            "mov eax, 0x18",
            "mov ds, eax",
            "mov es, eax",
            "mov ss, eax",
            "xor ebp, ebp",
            "xor edi, edi",
            "xor ebx, ebx",
            "retfq",
            segments = sym SEGMENTS_POINTER,
            kernel = in(reg) kernel,
            in("rsi") parameters,
            options(noreturn),
        )
    }
}
