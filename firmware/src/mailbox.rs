//! The mailbox in which vCPUs wait for an operating system's commands, and the reset vector by which they return to
//! it.
//!
//! A timer wakes a waiting vCPU to read the mailbox. The command Wakeup sends it to the operating system. The command
//! Test is answered by the vCPU that it names, if that vCPU waits here. An operating system that no longer needs a
//! vCPU, or hands over to another one, sends it to the reset vector.
//!
//! Source: ACPI Specification 6.6, sections 5.2.12.19 and 5.2.12.20.
#![expect(
    unsafe_code,
    reason = "the ways to the operating system and back, and the APIC's registers"
)]

use core::arch::{asm, global_asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use seam::abi::GuestLeaf;
use seam::abi::ghci::Request;
use td_base::kernel::WAITING_STACK_BYTES;
use td_base::{long_mode, vmcall};

use crate::team;

/// The timer's vector on a waiting vCPU.
const TIMER_VECTOR: u8 = 0x40;
const NMI_VECTOR: usize = 2;
/// The first vector that is not an exception.
const FIRST_INTERRUPT: usize = 32;

/// The mailbox, one page.
pub static MAILBOX: Mailbox = Mailbox([const { AtomicU64::new(0) }; 512]);

/// Command and id, then the address.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Mailbox([AtomicU64; 512]);

/// Registers of the x2APIC.
mod apic {
    pub const TASK_PRIORITY: u32 = 0x808;
    pub const EOI: u32 = 0x80B;
    pub const SPURIOUS: u32 = 0x80F;
    /// The first of eight registers, of 32 vectors each.
    pub const IN_SERVICE: u32 = 0x810;
    pub const LVT_TIMER: u32 = 0x832;
    pub const TSC_DEADLINE: u32 = 0x6E0;
    pub const MASKED: u32 = 1 << 16;
}

/// Waits for commands. EBX holds the vCPU's number, and R14 the ticks between two polls or 0 to poll continuously. The
/// stack must stay valid.
///
/// # Safety
/// All memory is identity-mapped, and interrupts are off.
#[unsafe(naked)]
pub unsafe extern "C" fn wait() {
    naked_asm!(
        "lidt {idt}(%rip)",
        // Reads command and id at once: a moment later the id may belong to another command.
        "2: movq {mailbox}(%rip), %rax",
        "movq %rax, %rdx",
        "shrq $32, %rdx",
        "cmpl %ebx, %edx",
        "jne 3f",
        "cmpw $1, %ax",
        "je 4f",
        "cmpw $2, %ax",
        "jne 3f",
        // Test: this vCPU is here.
        "movw $0, {mailbox}(%rip)",
        "3: pause",
        "testq %r14, %r14",
        "jz 2b",
        "rdtsc",
        "shlq $32, %rdx",
        "orq %rdx, %rax",
        "leaq (%rax,%r14), %r13",
        "movl ${deadline}, %r12d",
        "movl ${wrmsr}, %r11d",
        "call 5f",
        // HLT as if interrupts were on: a pending interrupt ends it at once.
        "xorl %r12d, %r12d",
        "movl ${hlt}, %r11d",
        "call 5f",
        "sti",
        "nop",
        "cli",
        "jmp 2b",
        // Wakeup: masks the timer and takes its pending interrupt.
        "4: movl ${masked}, %r13d",
        "movl ${timer}, %r12d",
        "movl ${wrmsr}, %r11d",
        "call 5f",
        "sti",
        "nop",
        "cli",
        "movq {mailbox} + 8(%rip), %rax",
        "movw $0, {mailbox}(%rip)",
        "jmp *%rax",
        // TDG.VP.VMCALL with R10 to R13.
        "5: movl $0x3C00, %ecx",
        "xorl %r10d, %r10d",
        "movl ${vmcall}, %eax",
        ".byte 0x66, 0x0F, 0x01, 0xCC",
        "ret",
        idt = sym IDT_POINTER,
        mailbox = sym MAILBOX,
        deadline = const apic::TSC_DEADLINE,
        timer = const apic::LVT_TIMER,
        masked = const apic::MASKED,
        vmcall = const GuestLeaf::VpVmcall.rax(),
        wrmsr = const Request::Wrmsr as u64,
        hlt = const Request::Hlt as u64,
        options(att_syntax),
    )
}

// The reset vector. An operating system jumps here in 64-bit mode. Its tables map only the page of the vector, and its
// registers are arbitrary, so there is no access to memory until this program's own tables are loaded.
global_asm!(
    ".pushsection .text.td_reset, \"ax\", @progbits",
    ".balign 64",
    ".type td_reset, @function",
    "td_reset: endbr64",
    "cli",
    "cld",
    "movq %cr4, %rax",
    "leaq {root}(%rip), %rcx",
    "btl ${la57}, %eax",
    "jnc 2f",
    "leaq {root_5}(%rip), %rcx",
    // Clears global pages and PCIDs, so that nothing of the old tables stays cached.
    "2: andl ${cr4_kept}, %eax",
    "orl ${cr4}, %eax",
    "movq %rax, %cr4",
    "movq %rcx, %cr3",
    // Assembly fails if the code exceeds the 64 bytes that can't straddle a page.
    ".org td_reset + 64, 0x90",
    "movq %cr0, %rax",
    "andl ${cr0_kept}, %eax",
    "orl ${cr0}, %eax",
    "movq %rax, %cr0",
    "xorl %eax, %eax",
    "movq %rax, %dr7",
    // TDG.VP.INFO returns the vCPU's number in R9.
    "movl ${vp_info}, %eax",
    ".byte 0x66, 0x0F, 0x01, 0xCC",
    "movl %r9d, %ebx",
    "leaq 1(%rbx), %rsp",
    "shlq ${stack_shift}, %rsp",
    "addq {stacks}(%rip), %rsp",
    // Restores the initial segments and flags. IRET unblocks NMIs, which are blocked in the handler of one.
    "lgdt {gdt}(%rip)",
    "lidt {idt}(%rip)",
    "pushq $2",
    "popfq",
    "movq %rsp, %rax",
    "pushq ${data}",
    "pushq %rax",
    "pushq $2",
    "pushq ${code}",
    "leaq 3f(%rip), %rax",
    "pushq %rax",
    "iretq",
    "3: movl ${data}, %eax",
    "movl %eax, %ds",
    "movl %eax, %es",
    "xorl %ebp, %ebp",
    "movl %ebx, %edi",
    "call {come_back}",
    "movq %rax, %rsp",
    "movq %rdx, %r14",
    "jmp {wait}",
    ".size td_reset, . - td_reset",
    ".popsection",
    root = sym long_mode::ROOT,
    root_5 = sym long_mode::ROOT_5,
    la57 = const long_mode::CR4_LA57,
    cr4_kept = const long_mode::CR4_KEPT,
    cr4 = const long_mode::CR4,
    cr0_kept = const long_mode::CR0_KEPT,
    cr0 = const long_mode::CR0,
    vp_info = const GuestLeaf::VpInfo.rax(),
    stack_shift = const WAITING_STACK_BYTES.ilog2(),
    stacks = sym team::WAITING_STACKS,
    gdt = sym long_mode::GDT_POINTER,
    idt = sym IDT_POINTER,
    data = const long_mode::DATA,
    code = const long_mode::CODE,
    come_back = sym team::come_back,
    wait = sym wait,
    options(att_syntax),
);

unsafe extern "C" {
    fn td_reset();
}

/// Returns the address to which an operating system sends a vCPU back.
pub fn reset_vector() -> u64 {
    td_reset as *const () as u64
}

/// Switches the vCPU's APIC on, with its timer in deadline mode. Returns false if the host does not offer that; the
/// vCPU spins then.
pub fn has_timer() -> bool {
    const ENABLED: u64 = 0x1FF;
    const DEADLINE: u64 = 2 << 17;
    vmcall::wrmsr(apic::SPURIOUS, ENABLED).is_ok()
        && vmcall::wrmsr(apic::LVT_TIMER, DEADLINE | u64::from(TIMER_VECTOR)).is_ok()
}

/// Ends the interrupts in whose handlers the operating system left the vCPU, and unblocks all priorities, because the
/// timer's interrupt would wait for them.
pub fn end_interrupts() {
    const REGISTERS: u32 = 8;
    const VECTORS: usize = 256;
    for _ in 0..VECTORS {
        // SAFETY: it only reads which interrupts are in service.
        let in_service = (0..REGISTERS).any(|i| unsafe { rdmsr(apic::IN_SERVICE + i) } != 0);
        if !in_service {
            break;
        }
        // SAFETY: nothing handles an interrupt on this vCPU any more.
        unsafe { wrmsr(apic::EOI, 0) };
    }
    // SAFETY: every interrupt has a handler, which does nothing.
    unsafe { wrmsr(apic::TASK_PRIORITY, 0) };
}

/// # Safety
/// The register is the TD's own: reading it raises no #VE.
unsafe fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// # Safety
/// The register is the TD's own, and the value does no harm.
unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
    }
}

/// Ends an interrupt, either the timer's or one that an operating system left pending.
///
/// # Safety
/// Only interrupts come here.
#[unsafe(naked)]
unsafe extern "C" fn interrupt() {
    naked_asm!(
        "push rax",
        "push rcx",
        "push rdx",
        "mov ecx, {eoi}",
        "xor eax, eax",
        "xor edx, edx",
        "wrmsr",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "iretq",
        eoi = const apic::EOI,
    )
}

/// Ignores an NMI.
///
/// # Safety
/// Only NMIs come here.
#[unsafe(naked)]
unsafe extern "C" fn nmi() {
    naked_asm!("iretq")
}

const GATES: usize = 256;

/// Interrupt gates. The only exception with a gate is the NMI.
static IDT: [[AtomicU64; 2]; GATES] = [const { [const { AtomicU64::new(0) }; 2] }; GATES];

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: *const [[AtomicU64; 2]; GATES],
}
// SAFETY: only the CPU follows the pointer.
unsafe impl Sync for TablePointer {}

static IDT_POINTER: TablePointer = TablePointer {
    limit: (GATES * 16 - 1) as u16,
    base: &raw const IDT,
};

/// Fills the gates, before a vCPU waits.
pub fn prepare_gates() {
    /// A present interrupt gate.
    const GATE: u64 = 0x8E00 << 32 | (long_mode::CODE as u64) << 16;
    let set = |[low, high]: &[AtomicU64; 2], at: u64| {
        low.store(
            at & 0xFFFF | (at & 0xFFFF_0000) << 32 | GATE,
            Ordering::Relaxed,
        );
        high.store(at >> 32, Ordering::Relaxed);
    };
    set(&IDT[NMI_VECTOR], nmi as *const () as u64);
    for gate in &IDT[FIRST_INTERRUPT..] {
        set(gate, interrupt as *const () as u64);
    }
}
