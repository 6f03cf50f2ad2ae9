//! A firmware that leaves the CPU in 5-level paging mode: the CPU is switched beneath the firmware, whose page tables
//! become the lower levels, and another program is started.
#![expect(
    unsafe_code,
    reason = "the paging mode changes only with paging off, outside 64-bit mode"
)]

use core::arch::x86_64::__cpuid_count;
use core::arch::{asm, naked_asm};

use uefi::boot::{self, AllocateType, LoadImageSource, MemoryType};

use crate::{Check, Failure, expect};

const LA57: u64 = 1 << 12;
const PRESENT_WRITABLE: u64 = 3;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// Code of 32 bits, data, and code of 64 bits, behind the null descriptor.
static DESCRIPTORS: [u64; 4] = [
    0,
    0x00CF_9B00_0000_FFFF,
    0x00CF_9300_0000_FFFF,
    0x00AF_9B00_0000_FFFF,
];

/// The operand of LGDT.
#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Switches the CPU and starts the program, which must not return.
pub fn start(program: &[u8]) -> Check {
    let has_la57 = __cpuid_count(7, 0).ecx >> 16 & 1;
    expect("CPUID 7 ECX bit 16", has_la57.into(), 1)?;
    let failure = |what| Failure {
        what,
        found: 0,
        expected: 1,
    };
    let limit = AllocateType::MaxAddress(u32::MAX.into());
    let table = boot::allocate_pages(limit, MemoryType::LOADER_DATA, 1);
    let table = table.map_err(|_| failure("a page"))?.cast::<[u64; 512]>();
    let pointer = Pointer {
        limit: size_of_val(&DESCRIPTORS) as u16 - 1,
        base: DESCRIPTORS.as_ptr() as u64,
    };
    let cr4: u64;
    // SAFETY: the page was just allocated, below 4 GiB. The new top table maps what the firmware's maps, and this
    // program and its stack are below 4 GiB, where firmware puts them in a machine of this size.
    unsafe {
        let cr3: u64;
        asm!("mov {}, cr3", out(reg) cr3);
        let mut entries = [0; 512];
        entries[0] = cr3 & ADDRESS | PRESENT_WRITABLE;
        entries[511] = entries[0];
        table.write(entries);
        switch(table.as_ptr() as u64, &raw const pointer);
        asm!("mov {}, cr4", out(reg) cr4);
    }
    expect("CR4.LA57", cr4 & LA57, LA57)?;
    start_image(program)
}

/// Starts a program, which must not return.
pub fn start_image(program: &[u8]) -> Check {
    let failure = |what| Failure {
        what,
        found: 0,
        expected: 1,
    };
    let source = LoadImageSource::FromBuffer {
        buffer: program,
        file_path: None,
    };
    let image = boot::load_image(boot::image_handle(), source);
    boot::start_image(image.map_err(|_| failure("an image that can be loaded"))?)
        .map_err(|_| failure("a program that starts"))?;
    Err(failure("a program that does not return"))
}

/// Leaves 64-bit mode, switches paging off, loads `pml5` into CR3 and sets CR4.LA57, and comes back with the segments of
/// before.
#[unsafe(naked)]
unsafe extern "sysv64" fn switch(pml5: u64, pointer: *const Pointer) {
    naked_asm!(
        "push rbx",
        "pushfq",
        "cli",
        "sub rsp, 16",
        "sgdt [rsp]",
        "mov eax, cs",
        "push rax",
        "mov eax, ss",
        "push rax",
        "mov eax, ds",
        "push rax",
        "mov eax, es",
        "push rax",
        "lgdt [rsi]",
        "lea rbx, [rip + 4f]",
        "lea rax, [rip + 3f]",
        "push 0x08",
        "push rax",
        "retfq",
        ".code32",
        "3:",
        "mov eax, 0x10",
        "mov ds, eax",
        "mov es, eax",
        "mov ss, eax",
        "mov eax, cr0",
        "and eax, 0x7fffffff",
        "mov cr0, eax",
        "mov eax, cr4",
        "or eax, 0x1000",
        "mov cr4, eax",
        "mov cr3, edi",
        "mov eax, cr0",
        "or eax, 0x80000000",
        "mov cr0, eax",
        "push 0x18",
        "push ebx",
        "retf",
        ".code64",
        "4:",
        "lgdt [rsp + 32]",
        "pop rax",
        "mov es, eax",
        "pop rax",
        "mov ds, eax",
        "pop rax",
        "mov ss, eax",
        "pop rcx",
        "add rsp, 16",
        "lea rax, [rip + 5f]",
        "push rcx",
        "push rax",
        "retfq",
        "5:",
        "popfq",
        "pop rbx",
        "ret",
    )
}
