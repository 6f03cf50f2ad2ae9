//! The guest: one page of code at the end of the first 4 GiB, whose reset vector leads to 64-bit mode and to one of
//! several programs, by the number that the host passed to TDH.VP.INIT.
//!
//! Its memory: page tables that map the first 4 GiB at themselves, and the shared half's first GiB at 512 GiB, beside the code
//! so that the way to both is the same; an IDT; a stack for each vCPU. It talks to the host by TDVMCALLs of kind R11, with R12 to R15.
#![expect(unsafe_code, reason = "contains a guest in assembly")]

use core::arch::global_asm;

use super::{SHARED, Td, clear};
use crate::Check;
use crate::attempt::{read, write};
use crate::tdx::pages;

/// Programs.
pub mod program {
    /// Says 1, 2, 3 and so on.
    pub const COUNT: u64 = 0;
    /// Says what TDG.VP.INFO says, and the exit reasons of the #VE that some instructions raise.
    pub const EXCEPTIONS: u64 = 1;
}

const CODE: u64 = 0xFFFF_F000;
const PML4: u64 = 0xFFFF_E000;
const PDPT: u64 = 0xFFFF_D000;
const SHARED_PDPT: u64 = 0x2000;
const IDT: u64 = 0x3000;
const STACKS: u64 = 0x4000;

global_asm!(
    r#"
    .pushsection .text
    .balign 4096
    .globl td_guest
td_guest:
    // The operands of LGDT and LIDT, and the GDT, at places that do not move.
    .word 23
    .long 0xFFFFF020
    .org td_guest + 0x10
td_guest_idtr:
    .word 4095
    .quad 0x3000
    .org td_guest + 0x20
td_guest_gdt:
    .quad 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF

    .code32
td_guest_32:
    lgdt [0xFFFFF000]
    mov eax, cr4
    or eax, 0x40620
    mov cr4, eax
    mov eax, 0xFFFFE000
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80010000
    mov cr0, eax
    .byte 0xEA
    .long 0xFFFFF000 + (td_guest_64 - td_guest)
    .word 8

    .code64
td_guest_64:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    lidt [rip + td_guest_idtr]
    // A stack of 1 KiB for each vCPU, by its index in RSI.
    mov eax, esi
    inc eax
    shl eax, 10
    lea rsp, [rax + 0x4000]
    mov r15, rsi
    // XCR0: all that its XFAM has.
    xor ecx, ecx
    xor edx, edx
    mov eax, 7
    xsetbv
    mov rbx, 0x8000000000
    cmp r8, 1
    je td_guest_exceptions
    // The host's answers are in R10 to R15.
    xor ebp, ebp
2:  inc rbp
    mov r12, rbp
    xor eax, eax
    mov ecx, 0xFC00
    xor r10d, r10d
    mov r11d, 1
    .byte 0x66, 0x0F, 0x01, 0xCC
    jmp 2b

    // TDG.VP.VMCALL with R10 to R15.
td_guest_say:
    xor eax, eax
    mov ecx, 0xFC00
    xor r10d, r10d
    mov r11d, 1
    .byte 0x66, 0x0F, 0x01, 0xCC
    ret

td_guest_exceptions:
    mov eax, 1
    .byte 0x66, 0x0F, 0x01, 0xCC
    mov r12, rcx
    mov r13, r9
    call td_guest_say
    hlt
    mov eax, 0x40000000
    cpuid
    mov ecx, 0x1B
    rdmsr
    in al, 0x60
    wbinvd
    .byte 0x0F, 0x01, 0xC1
    // Nothing of this raises anything.
    mov eax, 7
    xor ecx, ecx
    cpuid
    mov ecx, 0xC0000080
    rdmsr
    mov r12, rax
    call td_guest_say
    rdtsc
    // An invalid opcode and a general protection fault say their vectors.
    ud2
    mov ecx, 0x98
    rdmsr
    mov r12, 0x600D
    call td_guest_say
    // A triple fault.
    lidt [rip + td_guest_gdt]
    ud2

    // Exceptions of instructions of known length: say what it was, and step over them.
td_guest_ve:
    push rax
    push rcx
    push rdx
    push r8
    push r9
    push r10
    push r11
    push r12
    mov eax, 3
    .byte 0x66, 0x0F, 0x01, 0xCC
    cmp ecx, 48
    je 3f
    add [rsp + 64], r10d
    mov r12, rcx
    call td_guest_say
2:  pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdx
    pop rcx
    pop rax
    iretq
    // A page that waits to be accepted, or that another has accepted: R9 has its address.
3:  mov rcx, r9
    and rcx, -4096
    mov eax, 6
    .byte 0x66, 0x0F, 0x01, 0xCC
    jmp 2b

td_guest_ud:
    push r12
    mov r12d, 6
    jmp 2f
td_guest_gp:
    mov [rsp], r12
    mov r12d, 13
2:  push rax
    push rcx
    push r10
    push r11
    call td_guest_say
    pop r11
    pop r10
    pop rcx
    pop rax
    pop r12
    add qword ptr [rsp], 2
    iretq

    .org td_guest + 0xFF0
    .code32
    jmp td_guest_32
    .org td_guest + 0x1000
    .code64
    .popsection
    "#
);

unsafe extern "C" {
    fn td_guest();
    fn td_guest_ve();
    fn td_guest_ud();
    fn td_guest_gp();
}

/// Fills the pages that the guest starts with, and adds them.
pub fn lay_out(td: &Td) -> Check {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let page = pages(1);
    let base = td_guest as *const () as u64;
    for offset in (0..4096).step_by(8) {
        write(page + offset, read(base + offset));
    }
    td.add_page(CODE, page)?;

    clear(page);
    write(page, PDPT | PRESENT_WRITABLE);
    write(page + 8, SHARED_PDPT | PRESENT_WRITABLE);
    td.add_page(PML4, page)?;
    clear(page);
    for i in 0..4 {
        write(page + i * 8, i << 30 | PRESENT_WRITABLE | LARGE);
    }
    td.add_page(PDPT, page)?;
    clear(page);
    write(page, SHARED | PRESENT_WRITABLE | LARGE);
    td.add_page(SHARED_PDPT, page)?;

    clear(page);
    let handlers: [(u64, unsafe extern "C" fn()); 3] =
        [(6, td_guest_ud), (13, td_guest_gp), (20, td_guest_ve)];
    for (vector, handler) in handlers {
        const INTERRUPT_GATE: u64 = 0x8E00;
        let at = CODE + (handler as *const () as u64 - base);
        let gate = page + vector * 16;
        write(
            gate,
            at & 0xFFFF | 8 << 16 | INTERRUPT_GATE << 32 | (at >> 16 & 0xFFFF) << 48,
        );
        write(gate + 8, at >> 32);
    }
    td.add_page(IDT, page)?;
    clear(page);
    for at in [STACKS, STACKS + 0x1000] {
        td.add_page(at, page)?;
    }
    Ok(())
}
