//! The first instructions of each vCPU, and the last ones before the kernel's.
//!
//! vCPU 0 boots; the others get a stack as soon as there is memory for one, help to accept the rest, and wait for the
//! kernel without doing much: a timer wakes them to look into the mailbox.
//!
//! Source of the mailbox: ACPI Specification 6.5, section 5.2.12.19.
#![expect(unsafe_code, reason = "the ways into Rust and out of it")]

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use seam::abi::GuestLeaf;
use seam::abi::ghci::Request;
use td_base::layout::{VCPU_AREA, VCPU_AREA_BYTES};
use td_base::{long_mode, to_long_mode};

use crate::places::STACK_BYTES;
use crate::{load, team};

/// The vector of the timer of a vCPU that waits.
pub const TIMER_VECTOR: u8 = 0x40;

/// The first instruction of a TD. ESP holds its address, the reset vector saw to that.
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
        // A stack for this vCPU, once there are some.
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
        // A smaller one, which it keeps, and what it knows: its number in EBX, the ticks between two looks in R14.
        "movq %rax, %rsp",
        "movq %rdx, %r14",
        "lidt {idt}(%rip)",
        "lock incl {waiting}(%rip)",
        "5: cmpw $1, {mailbox}(%rip)",
        "jne 6f",
        "cmpl %ebx, {mailbox} + 4(%rip)",
        "je 7f",
        "6: pause",
        "testq %r14, %r14",
        "jz 5b",
        // IA32_TSC_DEADLINE.
        "rdtsc",
        "shlq $32, %rdx",
        "orq %rdx, %rax",
        "leaq (%rax,%r14), %r13",
        "movl $0x6E0, %r12d",
        "movl ${wrmsr}, %r11d",
        "call 8f",
        // HLT, as if interrupts were on: one that came before ends it at once.
        "xorl %r12d, %r12d",
        "movl ${hlt}, %r11d",
        "call 8f",
        "sti",
        "nop",
        "cli",
        "jmp 5b",
        // The kernel wants it: the timer is masked, and what it left is taken.
        "7: movl $0x10000, %r13d",
        "movl $0x832, %r12d",
        "movl ${wrmsr}, %r11d",
        "call 8f",
        "sti",
        "nop",
        "cli",
        "movq {mailbox} + 8(%rip), %rax",
        "movw $0, {mailbox}(%rip)",
        "jmp *%rax",
        // TDG.VP.VMCALL with R10 to R13.
        "8: movl $0x3C00, %ecx",
        "xorl %r10d, %r10d",
        "movl ${vmcall}, %eax",
        ".byte 0x66, 0x0F, 0x01, 0xCC",
        "ret",
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
        idt = sym IDT_POINTER,
        waiting = sym team::WAITING,
        mailbox = sym team::MAILBOX,
        vmcall = const GuestLeaf::VpVmcall.rax(),
        wrmsr = const Request::Wrmsr as u64,
        hlt = const Request::Hlt as u64,
        options(att_syntax),
    )
}

/// Ends the timer's interrupt.
///
/// # Safety
/// Only an interrupt comes here.
#[unsafe(naked)]
unsafe extern "C" fn timer() {
    naked_asm!(
        "push rax",
        "push rcx",
        "push rdx",
        "mov ecx, 0x80B",
        "xor eax, eax",
        "xor edx, edx",
        "wrmsr",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "iretq",
    )
}

const GATES: usize = TIMER_VECTOR as usize + 1;

/// Interrupt gates: the timer's alone is there.
static IDT: [[AtomicU64; 2]; GATES] = [const { [const { AtomicU64::new(0) }; 2] }; GATES];

#[repr(C, packed)]
struct TablePointer<T> {
    limit: u16,
    base: *const T,
}
// SAFETY: only the CPU follows the pointer.
unsafe impl<T> Sync for TablePointer<T> {}

static IDT_POINTER: TablePointer<[[AtomicU64; 2]; GATES]> = TablePointer {
    limit: (GATES * 16 - 1) as u16,
    base: &raw const IDT,
};

/// Makes the gate of the timer, before a vCPU waits.
pub fn prepare_gate() {
    /// A present interrupt gate.
    const GATE: u64 = 0x8E00 << 32 | (long_mode::CODE as u64) << 16;
    let at = timer as *const () as u64;
    let [low, high] = &IDT[usize::from(TIMER_VECTOR)];
    low.store(
        at & 0xFFFF | (at & 0xFFFF_0000) << 32 | GATE,
        Ordering::Relaxed,
    );
    high.store(at >> 32, Ordering::Relaxed);
}

/// The segments that the boot protocol demands: code is 0x10, data 0x18.
static SEGMENTS: [u64; 4] = [0, 0, long_mode::SEGMENTS[1], long_mode::SEGMENTS[2]];
static SEGMENTS_POINTER: TablePointer<[u64; 4]> = TablePointer {
    limit: size_of::<[u64; 4]>() as u16 - 1,
    base: &raw const SEGMENTS,
};

/// Enters the kernel.
///
/// # Safety
/// It is loaded as it wants to be, and its parameters are at `parameters`.
pub unsafe fn enter(kernel: u64, parameters: u64) -> ! {
    // SAFETY: the caller's promise; nothing of this program is used by this vCPU any more.
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
