//! From the reset vector to Rust: 32-bit protected mode to long mode, and what the registers were before.
//!
//! Every vCPU starts here. vCPU 0 goes on with the program; the others wait, without a stack, until the mailbox names them
//! ([`crate::vcpu`]).
//!
//! Initial state: TDX Module ABI 1.5, "Initial state of TD vCPUs".
#![expect(
    unsafe_code,
    reason = "the program's first instructions, and the tables that they load"
)]

use core::arch::naked_asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

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

/// What each vCPU found, register by register: each has a row of a word per vCPU, since the first instructions can
/// only multiply by eight.
static FOUND: [[AtomicU64; MAX_VCPUS]; REGISTERS] =
    [const { [const { AtomicU64::new(0) }; MAX_VCPUS] }; REGISTERS];

/// What vCPU `index` found in a register before it executed anything. Of general-purpose registers up to EBP, and of
/// control registers, these are the low halves.
pub fn initial(index: u32, register: Initial) -> u64 {
    FOUND[register as usize][index as usize].load(Ordering::Relaxed)
}

/// Page tables: present, writable, accessed, dirty, a large page.
const TABLE: usize = 0x23;
const PAGE: u64 = 0xE3;

#[repr(C, align(4096))]
struct Root([*const u8; 512]);
// SAFETY: the pointers are never followed by the program.
unsafe impl Sync for Root {}

#[repr(C, align(4096))]
struct Directory([u64; 512]);

/// All memory at its own address, in pages of 1 GiB.
static PRIVATE: Directory = Directory({
    let mut entries = [0; 512];
    let mut i = 0;
    while i < entries.len() {
        entries[i] = (i as u64) << 30 | PAGE;
        i += 1;
    }
    entries
});

/// The same, with the SHARED bit, which depends on the width of addresses: filled in by [`map_shared`].
static SHARED: SharedDirectory = SharedDirectory([const { AtomicU64::new(0) }; 512]);

#[repr(C, align(4096))]
struct SharedDirectory([AtomicU64; 512]);

/// Maps all memory as shared, too, at [`SHARED_WINDOW`].
pub(crate) fn map_shared(shared_bit: u64) {
    for (i, entry) in (0..).zip(&SHARED.0) {
        entry.store(i << 30 | shared_bit | PAGE, Ordering::Relaxed);
    }
}

/// Where the shared memory is mapped, above the private one.
pub(crate) const SHARED_WINDOW: u64 = 1 << 39;

static ROOT: Root = Root({
    let mut entries = [core::ptr::null(); 512];
    entries[0] = (&raw const PRIVATE).cast::<u8>().wrapping_add(TABLE);
    entries[1] = (&raw const SHARED).cast::<u8>().wrapping_add(TABLE);
    entries
});

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: *const u64,
}
// SAFETY: only the CPU follows the pointer.
unsafe impl Sync for TablePointer {}

/// Code of 64 bits, data, code of 32 bits, all flat.
pub(crate) const SEGMENTS: [u64; 4] = [
    0,
    0x00AF_9B00_0000_FFFF,
    0x00CF_9300_0000_FFFF,
    0x00CF_9B00_0000_FFFF,
];
pub(crate) const CODE: u16 = 0x08;
pub(crate) const DATA: u16 = 0x10;

static GDT: [u64; 4] = SEGMENTS;
static GDT_POINTER: TablePointer = TablePointer {
    limit: size_of::<[u64; 4]>() as u16 - 1,
    base: (&raw const GDT).cast(),
};

/// Offset and selector of a far jump; every vCPU writes the same offset.
static FAR: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(CODE as u32)];

/// The first instruction of a TD. ESP holds its address, the reset vector saw to that; everything else is as the module
/// made it.
///
/// # Safety
/// Only the reset vector comes here.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn guest_start() {
    naked_asm!(
        ".code32",
        // A vCPU too many stays here.
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
        // Long mode: PAE, SSE; the tables; protection, paging. EFER.LME is set already.
        "movl %cr4, %eax",
        "orl ${cr4}, %eax",
        "movl %eax, %cr4",
        "leal {root} - {me}(%esp), %eax",
        "movl %eax, %cr3",
        "movl %cr0, %eax",
        "orl ${cr0}, %eax",
        "movl %eax, %cr0",
        "lgdtl {gdt} - {me}(%esp)",
        "leal 3f - {me}(%esp), %eax",
        "movl %eax, {far} - {me}(%esp)",
        "ljmpl *{far} - {me}(%esp)",
        ".code64",
        "3:",
        "movl ${data}, %eax",
        "movl %eax, %ds",
        "movl %eax, %es",
        "movl %eax, %ss",
        "movl %esi, %esi",
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
        me = sym guest_start,
        max = const MAX_VCPUS,
        found = sym FOUND,
        row = const MAX_VCPUS * 8,
        efer = const 0xC000_0080u32,
        // PAE, OSFXSR, OSXMMEXCPT.
        cr4 = const 1 << 5 | 1 << 9 | 1 << 10,
        // PG, WP, MP.
        cr0 = const 1u32 << 31 | 1 << 16 | 1 << 1,
        root = sym ROOT,
        gdt = sym GDT_POINTER,
        far = sym FAR,
        data = const DATA,
        area = const VCPU_AREA,
        stack = const VCPU_AREA + VCPU_AREA_BYTES,
        enter = sym vcpu::enter,
        mailbox = sym vcpu::MAILBOX,
        options(att_syntax),
    )
}
