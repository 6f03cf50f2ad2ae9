//! The switch from a vCPU's initial state, 32-bit protected mode without paging, to 64-bit mode: segments, page tables
//! and instructions.
//!
//! All memory is identity-mapped. Once the width of addresses is known, some of it is also mapped as shared in a
//! window above.
//!
//! Initial state: TDX Module ABI 1.5, "Initial state of TD vCPUs".
#![expect(
    unsafe_code,
    reason = "tables that the CPU follows hold pointers, which are shared between vCPUs"
)]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Page-table flags: present, writable, accessed, dirty, large page.
const TABLE: usize = 0x23;
const PAGE: u64 = 0xE3;

/// A table of the highest level.
#[repr(C, align(4096))]
pub struct Root([*const u8; 512]);
// SAFETY: the program never follows the pointers.
unsafe impl Sync for Root {}

#[repr(C, align(4096))]
struct Directory([u64; 512]);

/// The identity map, in pages of 1 GiB.
static PRIVATE: Directory = Directory({
    let mut entries = [0; 512];
    let mut i = 0;
    while i < entries.len() {
        entries[i] = (i as u64) << 30 | PAGE;
        i += 1;
    }
    entries
});

/// 512 GiB with the SHARED bit. The bit depends on the width of addresses, so [`map_shared`] fills in the entries.
static SHARED: SharedDirectory = SharedDirectory([const { AtomicU64::new(0) }; 512]);

#[repr(C, align(4096))]
struct SharedDirectory([AtomicU64; 512]);

/// The address at which shared memory is mapped, above the private map.
pub const SHARED_WINDOW: u64 = 1 << 39;

/// Maps 512 GiB from `from` on as shared at [`SHARED_WINDOW`]. `from` contains the SHARED bit and is a multiple of 512
/// GiB.
pub fn map_shared(from: u64) {
    for (i, entry) in (0..).zip(&SHARED.0) {
        entry.store(i << 30 | from | PAGE, Ordering::Relaxed);
    }
}

/// The value of CR3.
pub static ROOT: Root = Root({
    let mut entries = [core::ptr::null(); 512];
    entries[0] = (&raw const PRIVATE).cast::<u8>().wrapping_add(TABLE);
    entries[1] = (&raw const SHARED).cast::<u8>().wrapping_add(TABLE);
    entries
});

/// The value of CR3 if addresses have five levels; it maps the same memory.
pub static ROOT_5: Root = Root({
    let mut entries = [core::ptr::null(); 512];
    entries[0] = (&raw const ROOT).cast::<u8>().wrapping_add(TABLE);
    entries
});

/// The operand of LGDT and LIDT.
#[repr(C, packed)]
pub struct TablePointer {
    limit: u16,
    base: *const u64,
}
// SAFETY: only the CPU follows the pointer.
unsafe impl Sync for TablePointer {}

/// Flat segments: 64-bit code, data, 32-bit code.
pub const SEGMENTS: [u64; 4] = [
    0,
    0x00AF_9B00_0000_FFFF,
    0x00CF_9300_0000_FFFF,
    0x00CF_9B00_0000_FFFF,
];
/// The selector of 64-bit code.
pub const CODE: u16 = 0x08;
/// The selector of data.
pub const DATA: u16 = 0x10;

static GDT: [u64; 4] = SEGMENTS;
/// The operand of LGDT.
pub static GDT_POINTER: TablePointer = TablePointer {
    limit: size_of::<[u64; 4]>() as u16 - 1,
    base: (&raw const GDT).cast(),
};

/// Offset and selector of a far jump. Every vCPU writes the same offset.
pub static FAR: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(CODE as u32)];

/// CR4: PAE, OSFXSR, OSXMMEXCPT.
pub const CR4: u32 = 1 << 5 | 1 << 9 | 1 << 10;
/// CR4 bits that are kept: MCE, which a TD must not clear, and LA57, which does not change while paging is on.
pub const CR4_KEPT: u32 = 1 << 6 | 1 << CR4_LA57;
/// The number of the bit LA57 in CR4.
pub const CR4_LA57: u32 = 12;
/// CR0: PG, WP, MP.
pub const CR0: u32 = 1 << 31 | 1 << 16 | 1 << 1;
/// CR0 bits that are kept: CD, NW, NE, ET, PE. No program may choose them.
pub const CR0_KEPT: u32 = 1 << 30 | 1 << 29 | 1 << 5 | 1 << 4 | 1;

/// The instructions, for `naked_asm!` in AT&T syntax, with the operands `me` (the symbol whose address is in ESP),
/// `root`, `gdt` and `far` (symbols of this module), `cr4`, `cr0` and `data` (its constants). They clobber EAX;
/// EFER.LME must be set. 64-bit code with flat segments follows.
#[macro_export]
macro_rules! to_long_mode {
    () => {
        "movl %cr4, %eax
        orl ${cr4}, %eax
        movl %eax, %cr4
        leal {root} - {me}(%esp), %eax
        movl %eax, %cr3
        movl %cr0, %eax
        orl ${cr0}, %eax
        movl %eax, %cr0
        lgdtl {gdt} - {me}(%esp)
        leal 3f - {me}(%esp), %eax
        movl %eax, {far} - {me}(%esp)
        ljmpl *{far} - {me}(%esp)
        .code64
        3: movl ${data}, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        movl %esi, %esi"
    };
}
