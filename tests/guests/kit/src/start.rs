//! The path from the reset vector to Rust: 32-bit protected mode to long mode. The initial registers are recorded.
//!
//! Every vCPU starts here. vCPU 0 continues with the program; the others wait, without a stack, until the mailbox
//! names them ([`crate::vcpu`]).
//!
//! Initial state: TDX Module ABI 1.5, "Initial state of TD vCPUs".
#![expect(unsafe_code, reason = "contains the program's first instructions")]

use core::arch::naked_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use td_base::{long_mode, to_long_mode};

use crate::layout::{MAX_VCPUS, VCPU_AREA, VCPU_AREA_BYTES};
use crate::vcpu;

/// A register of [`Initial`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
#[expect(missing_docs, reason = "the names are the registers'")]
pub enum Initial {
    Eax,
    Ebx,
    Ecx,
    Edx,
    Esi,
    Edi,
    Ebp,
    Cr0,
    Cr3,
    Cr4,
    EferLow,
    Dr6,
    Dr7,
    GdtLimit,
    IdtLimit,
    Cs,
    Ss,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

const REGISTERS: usize = Initial::R15 as usize + 1;

/// The initial values of each register, one word for each vCPU in a row, since the first instructions can only
/// multiply by eight.
static FOUND: [[AtomicU64; MAX_VCPUS]; REGISTERS] =
    [const { [const { AtomicU64::new(0) }; MAX_VCPUS] }; REGISTERS];

/// Returns the value of a register before vCPU `index` executed anything. For general-purpose registers up to EBP and
/// for control registers this is the low half.
pub fn initial(index: u32, register: Initial) -> u64 {
    FOUND[register as usize][index as usize].load(Ordering::Relaxed)
}

/// The first instruction of a TD. ESP holds its address, which the reset vector put there; everything else is as the
/// module set it.
///
/// # Safety
/// Only the reset vector comes here.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn td_start() {
    naked_asm!(
        ".code32",
        // A vCPU beyond the maximum stays here.
        "2: cmpl ${max}, %esi",
        "jae 2b",
        "movl %eax, {found} - {me} + {row}*0(%esp,%esi,8)",
        "movl %ebx, {found} - {me} + {row}*1(%esp,%esi,8)",
        "movl %ecx, {found} - {me} + {row}*2(%esp,%esi,8)",
        "movl %edx, {found} - {me} + {row}*3(%esp,%esi,8)",
        "movl %esi, {found} - {me} + {row}*4(%esp,%esi,8)",
        "movl %edi, {found} - {me} + {row}*5(%esp,%esi,8)",
        "movl %ebp, {found} - {me} + {row}*6(%esp,%esi,8)",
        "movl %cr0, %eax",
        "movl %eax, {found} - {me} + {row}*7(%esp,%esi,8)",
        "movl %cr3, %eax",
        "movl %eax, {found} - {me} + {row}*8(%esp,%esi,8)",
        "movl %cr4, %eax",
        "movl %eax, {found} - {me} + {row}*9(%esp,%esi,8)",
        "movl ${efer}, %ecx",
        "rdmsr",
        "movl %eax, {found} - {me} + {row}*10(%esp,%esi,8)",
        "movl %dr6, %eax",
        "movl %eax, {found} - {me} + {row}*11(%esp,%esi,8)",
        "movl %dr7, %eax",
        "movl %eax, {found} - {me} + {row}*12(%esp,%esi,8)",
        // Two bytes of limit, four of base.
        "sgdtl {found} - {me} + {row}*13(%esp,%esi,8)",
        "sidtl {found} - {me} + {row}*14(%esp,%esi,8)",
        "movl %cs, %eax",
        "movl %eax, {found} - {me} + {row}*15(%esp,%esi,8)",
        "movl %ss, %eax",
        "movl %eax, {found} - {me} + {row}*16(%esp,%esi,8)",
        to_long_mode!(),
        "leaq {found}(%rip), %rax",
        "movq %r8, {row}*17(%rax,%rsi,8)",
        "movq %r9, {row}*18(%rax,%rsi,8)",
        "movq %r10, {row}*19(%rax,%rsi,8)",
        "movq %r11, {row}*20(%rax,%rsi,8)",
        "movq %r12, {row}*21(%rax,%rsi,8)",
        "movq %r13, {row}*22(%rax,%rsi,8)",
        "movq %r14, {row}*23(%rax,%rsi,8)",
        "movq %r15, {row}*24(%rax,%rsi,8)",
        "xorl %ebp, %ebp",
        "testl %esi, %esi",
        "jnz 4f",
        "movl ${area}, %edi",
        "movl ${stack}, %esp",
        "call {enter}",
        "ud2",
        // The mailbox: command, id, address, stack, argument.
        "4: pause",
        "cmpw $1, {mailbox}(%rip)",
        "jne 4b",
        "cmpl %esi, {mailbox} + 4(%rip)",
        "jne 4b",
        "movq {mailbox} + 8(%rip), %rax",
        "movq {mailbox} + 16(%rip), %rsp",
        "movq {mailbox} + 24(%rip), %rdi",
        "movw $0, {mailbox}(%rip)",
        "call *%rax",
        "ud2",
        me = sym td_start,
        max = const MAX_VCPUS,
        found = sym FOUND,
        row = const MAX_VCPUS * 8,
        efer = const 0xC000_0080u32,
        cr4 = const long_mode::CR4,
        cr0 = const long_mode::CR0,
        root = sym long_mode::ROOT,
        gdt = sym long_mode::GDT_POINTER,
        far = sym long_mode::FAR,
        data = const long_mode::DATA,
        area = const VCPU_AREA,
        stack = const VCPU_AREA + VCPU_AREA_BYTES,
        enter = sym vcpu::enter,
        mailbox = sym vcpu::MAILBOX,
        options(att_syntax),
    )
}
