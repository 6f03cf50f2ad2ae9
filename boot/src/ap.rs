//! From SIPI to 64-bit Rust: the page on which an application processor starts.
//!
//! A SIPI starts a CPU in real mode at the beginning of a page below 1 MiB. Here, the code on that page is data:
//! [`install`] copies it to the page and fills in its fields. Any number of CPUs may execute it at the same time,
//! because it writes nothing. A CPU finds its own [`Slot`] by its APIC id, loads its stack from there and jumps to the
//! entry point. A CPU without a slot halts permanently.
//!
//! The page must stay reserved, and identity-mapped (readable, executable) by the page tables in CR3, as long as a CPU
//! may still be executing it.
#![expect(
    unsafe_code,
    reason = "the trampoline's code is assembly, and reaching its bytes takes linker symbols"
)]

use core::arch::global_asm;

/// Size of the trampoline page in bytes.
pub const PAGE: usize = 4096;

/// The values that one CPU needs before it can run Rust.
///
/// The layout is fixed because the trampoline's assembly reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// x2APIC id (CPUID 0xB EDX; where that leaf is missing, CPUID 1 EBX 31:24).
    pub apic_id: u32,
    /// Zero.
    pub reserved: u32,
    /// End of the CPU's stack: a virtual address under [`Params::cr3`], aligned to 16 bytes.
    pub stack_top: u64,
    /// Argument for the entry point.
    pub arg: u64,
}

const _: () = assert!(size_of::<Slot>() == 24);

/// The values that all CPUs share during startup.
#[derive(Clone, Copy, Debug)]
pub struct Params {
    /// Physical address of the PML4, or of the PML5 if `cr4` has LA57. It is below 4 GiB, because it is loaded before
    /// the CPU is in 64-bit mode.
    pub cr3: u64,
    /// Initial CR4. PAE, OSFXSR and OSXMMEXCPT are added; PCIDE and CET, which need 64-bit mode or a later setup, are
    /// removed.
    pub cr4: u64,
    /// EFER bits to set, in addition to LME.
    pub efer: u64,
    /// True if the CPU must first get its execute-disable bit back (IA32_MISC_ENABLE bit 34). Only an Intel CPU can.
    pub enable_xd: bool,
    /// Virtual address of an `extern "C" fn(arg: u64) -> !`; see [`Slot::arg`].
    pub entry: u64,
    /// Virtual address of an array of [`Slot`].
    pub slots: u64,
    /// Number of entries in that array.
    pub slot_count: u32,
}

/// The reason why a trampoline can't be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The page is not 4 KiB aligned or not below 1 MiB, so SIPI can't reach it.
    Page(u64),
    /// CR3 is not below 4 GiB.
    Cr3(u64),
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Page(pa) => write!(f, "a SIPI can't start a CPU at {pa:#x}"),
            Self::Cr3(pa) => write!(f, "page tables at {pa:#x} are above 4 GiB"),
        }
    }
}

const CR0_PE_MP_ET_NE_WP_PG: u32 = 0x8001_0033;
const CR4_PAE: u64 = 1 << 5;
const CR4_OSFXSR_OSXMMEXCPT: u64 = 3 << 9;
const CR4_PCIDE: u64 = 1 << 17;
const CR4_CET: u64 = 1 << 23;
const EFER_LME: u64 = 1 << 8;

/// The fields at the end of the trampoline, as its assembly reads them.
#[repr(C, packed)]
struct Fields {
    gdt_limit: u16,
    gdt_base: u32,
    long_offset: u32,
    long_selector: u16,
    cr0: u32,
    cr3: u32,
    cr4: u32,
    efer: u32,
    mxcsr: u32,
    slot_count: u32,
    enable_xd: u32,
    slots: u64,
    entry: u64,
}

/// Copies the trampoline to `page`, the page at physical address `pa`, and fills in its fields. Returns the vector for
/// the SIPI.
///
/// # Errors
/// [`Error`]; the page is then unchanged.
pub fn install(page: &mut [u8; PAGE], pa: u64, params: &Params) -> Result<u8, Error> {
    if !pa.is_multiple_of(PAGE as u64) || pa >= 1 << 20 {
        return Err(Error::Page(pa));
    }
    let cr3 = u32::try_from(params.cr3).map_err(|_| Error::Cr3(params.cr3))?;
    let cr4 = (params.cr4 | CR4_PAE | CR4_OSFXSR_OSXMMEXCPT) & !(CR4_PCIDE | CR4_CET);
    let code = code();
    let fields = Fields {
        gdt_limit: 3 * 8 - 1,
        gdt_base: pa as u32 + offset_of(&raw const boot_ap_gdt),
        long_offset: pa as u32 + offset_of(&raw const boot_ap_long),
        long_selector: 8,
        cr0: CR0_PE_MP_ET_NE_WP_PG,
        cr3,
        cr4: cr4 as u32,
        efer: (params.efer | EFER_LME) as u32,
        mxcsr: 0x1F80,
        slot_count: params.slot_count,
        enable_xd: params.enable_xd.into(),
        slots: params.slots,
        entry: params.entry,
    };
    page.fill(0);
    page[..code.len()].copy_from_slice(code);
    let at = offset_of(&raw const boot_ap_fields) as usize;
    // SAFETY: `Fields` is packed and made of integers: all its bytes are initialised.
    let bytes = unsafe {
        core::slice::from_raw_parts((&raw const fields).cast::<u8>(), size_of::<Fields>())
    };
    page[at..at + bytes.len()].copy_from_slice(bytes);
    Ok((pa >> 12) as u8)
}

/// Returns the bytes of the trampoline, fields included.
fn code() -> &'static [u8] {
    let start = &raw const boot_ap_start;
    let len = offset_of(&raw const boot_ap_end) as usize;
    // SAFETY: the assembler lays out `len` constant bytes from the first symbol to the last.
    unsafe { core::slice::from_raw_parts(start, len) }
}

/// Returns the offset of a symbol from the start of the trampoline.
fn offset_of(symbol: *const u8) -> u32 {
    (symbol as usize - &raw const boot_ap_start as usize) as u32
}

unsafe extern "C" {
    static boot_ap_start: u8;
    static boot_ap_long: u8;
    static boot_ap_gdt: u8;
    static boot_ap_fields: u8;
    static boot_ap_end: u8;
}

// The accessed bits of the segments are already set, so that loading them writes nothing to the page.
global_asm!(
    r#"
    .pushsection .rodata.boot_ap, "a"
    .balign 16
    .global boot_ap_start, boot_ap_long, boot_ap_gdt, boot_ap_fields, boot_ap_end
    .hidden boot_ap_start, boot_ap_long, boot_ap_gdt, boot_ap_fields, boot_ap_end
    .code16
boot_ap_start:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl boot_ap_gdtr - boot_ap_start
    movl boot_ap_cr4 - boot_ap_start, %eax
    movl %eax, %cr4
    movl boot_ap_cr3 - boot_ap_start, %eax
    movl %eax, %cr3
    cmpl $0, boot_ap_enable_xd - boot_ap_start
    je 6f
    movl $0x1A0, %ecx
    rdmsr
    andl $0xFFFFFFFB, %edx
    wrmsr
6:
    movl $0xC0000080, %ecx
    rdmsr
    orl boot_ap_efer - boot_ap_start, %eax
    wrmsr
    movl boot_ap_cr0 - boot_ap_start, %eax
    movl %eax, %cr0
    ljmpl *(boot_ap_far - boot_ap_start)
    .code64
boot_ap_long:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    fninit
    ldmxcsr boot_ap_mxcsr(%rip)
    xorl %eax, %eax
    cpuid
    cmpl $0xB, %eax
    jb 1f
    movl $0xB, %eax
    xorl %ecx, %ecx
    cpuid
    movl %edx, %edi
    testl %ebx, %ebx
    jnz 2f
1:
    movl $1, %eax
    cpuid
    shrl $24, %ebx
    movl %ebx, %edi
2:
    movq boot_ap_slots(%rip), %rsi
    movl boot_ap_slot_count(%rip), %ecx
3:
    testl %ecx, %ecx
    jz 5f
    cmpl %edi, (%rsi)
    je 4f
    addq $24, %rsi
    decl %ecx
    jmp 3b
4:
    movq 8(%rsi), %rsp
    movq 16(%rsi), %rdi
    xorl %ebp, %ebp
    pushq $0
    jmpq *boot_ap_entry(%rip)
5:
    cli
    hlt
    jmp 5b
    .balign 8
boot_ap_gdt:
    .quad 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF
boot_ap_fields:
boot_ap_gdtr:
    .word 0
    .long 0
boot_ap_far:
    .long 0
    .word 0
boot_ap_cr0:
    .long 0
boot_ap_cr3:
    .long 0
boot_ap_cr4:
    .long 0
boot_ap_efer:
    .long 0
boot_ap_mxcsr:
    .long 0
boot_ap_slot_count:
    .long 0
boot_ap_enable_xd:
    .long 0
boot_ap_slots:
    .quad 0
boot_ap_entry:
    .quad 0
boot_ap_end:
    .popsection
    "#,
    options(att_syntax)
);

#[cfg(test)]
mod tests {
    use super::*;

    fn params() -> Params {
        Params {
            cr3: 0x12_3000,
            cr4: 1 << 17,
            efer: 1 << 11,
            enable_xd: true,
            entry: 0xFFFF_8000_0000_1000,
            slots: 0xFFFF_8000_0000_2000,
            slot_count: 3,
        }
    }

    #[test]
    fn the_sipi_vector_is_the_page_number() {
        let mut page = [0; PAGE];
        assert_eq!(install(&mut page, 0x9_0000, &params()), Ok(0x90));
    }

    #[test]
    fn the_code_fits_the_page_and_ends_with_its_fields() {
        assert!(code().len() < PAGE / 2);
        let fields = offset_of(&raw const boot_ap_fields) as usize;
        assert_eq!(code().len() - fields, size_of::<Fields>());
    }

    #[test]
    fn fields_hold_what_was_asked_for() {
        let mut page = [0xFF; PAGE];
        install(&mut page, 0x8000, &params()).unwrap();
        let at = |symbol| offset_of(symbol) as usize;
        let fields = at(&raw const boot_ap_fields);
        let u32_at = |o: usize| u32::from_le_bytes(page[o..o + 4].try_into().unwrap());
        let u64_at = |o: usize| u64::from_le_bytes(page[o..o + 8].try_into().unwrap());
        assert_eq!(
            u32_at(fields + 2),
            0x8000 + at(&raw const boot_ap_gdt) as u32
        );
        assert_eq!(
            u32_at(fields + 6),
            0x8000 + at(&raw const boot_ap_long) as u32
        );
        assert_eq!(u32_at(fields + 16), 0x12_3000);
        assert_eq!(
            u32_at(fields + 20),
            0x620,
            "PAE, OSFXSR, OSXMMEXCPT and no PCIDE"
        );
        assert_eq!(u32_at(fields + 24), 0x900, "LME and NXE");
        assert_eq!(u32_at(fields + 32), 3);
        assert_eq!(u32_at(fields + 36), 1);
        assert_eq!(u64_at(fields + 40), 0xFFFF_8000_0000_2000);
        assert_eq!(u64_at(fields + 48), 0xFFFF_8000_0000_1000);
    }

    #[test]
    fn what_sipi_or_a_32_bit_cr3_cannot_reach_is_refused() {
        let mut page = [7; PAGE];
        assert_eq!(
            install(&mut page, 0x10_0000, &params()),
            Err(Error::Page(0x10_0000))
        );
        assert_eq!(
            install(&mut page, 0x8010, &params()),
            Err(Error::Page(0x8010))
        );
        let high = Params {
            cr3: 1 << 32,
            ..params()
        };
        assert_eq!(install(&mut page, 0x8000, &high), Err(Error::Cr3(1 << 32)));
        assert!(page.iter().all(|&b| b == 7));
    }
}
