//! Instructions that may fault: each is executed with a net, and says which exception it raised.
#![expect(
    unsafe_code,
    reason = "executes privileged instructions and handles their exceptions"
)]

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use seam::abi::x86::{rflags, vector};
use seam::abi::{Gprs, Leaf};

use crate::td::TDCALL;

/// #UD as an [`Outcome`].
pub const UD: u64 = vector::UD as u64;
/// #GP as an [`Outcome`].
pub const GP: u64 = vector::GP as u64;

/// The vector of the exception that the instruction raised, or how it left the flags.
pub type Outcome = Result<u64, u64>;

/// The vectors that this program takes for itself.
pub const IPI: u8 = 0xE1;
/// The APIC timer's.
pub const TIMER: u8 = 0xE2;

/// The number of [`IPI`], [`TIMER`] and NMIs that came.
pub static IPIS: AtomicU32 = AtomicU32::new(0);
/// See [`IPIS`].
pub static TIMERS: AtomicU32 = AtomicU32::new(0);
/// See [`IPIS`].
pub static NMIS: AtomicU32 = AtomicU32::new(0);

/// Where a faulting instruction goes on; zero outside attempts.
static RECOVERY: AtomicU64 = AtomicU64::new(0);
/// Firmware's code and data segments.
static CODE: AtomicU32 = AtomicU32::new(0);
static DATA: AtomicU32 = AtomicU32::new(0);
static mut GDT: Pointer = Pointer { limit: 0, base: 0 };
static mut IDT: [[u64; 2]; 256] = [[0; 2]; 256];

#[repr(C, packed)]
#[derive(Default)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Switches interrupts off, and firmware's IDT for a copy with this program's handlers.
pub fn install() {
    let mut pointer = Pointer::default();
    // SAFETY: this program is the only one that runs; the table is a copy of firmware's, and lives as long.
    unsafe {
        asm!("cli");
        asm!("sidt [{}]", in(reg) &mut pointer);
        asm!("sgdt [{}]", in(reg) &raw mut GDT);
        let entries = (usize::from(pointer.limit) + 1) / 16;
        let idt = &raw mut IDT;
        core::ptr::copy_nonoverlapping(
            pointer.base as *const [u64; 2],
            idt.cast(),
            entries.min(256),
        );
        let (selector, data): (u16, u16);
        asm!("mov {:x}, cs", "mov {:x}, ss", out(reg) selector, out(reg) data);
        DATA.store(data.into(), Ordering::Relaxed);
        CODE.store(selector.into(), Ordering::Relaxed);
        let gate = |vector: usize, handler: unsafe extern "C" fn()| {
            let at = handler as usize as u64;
            (*idt)[vector] = [
                at & 0xFFFF | u64::from(selector) << 16 | 0x8E00 << 32 | (at >> 16 & 0xFFFF) << 48,
                at >> 32,
            ];
        };
        gate(UD as usize, invalid_opcode);
        gate(GP as usize, protection);
        gate(2, nmi);
        gate(usize::from(IPI), ipi);
        gate(usize::from(TIMER), timer);
    }
    load_tables();
}

/// Loads this program's IDT, and firmware's GDT, whose segments its gates and frames name.
pub fn load_tables() {
    let idt = Pointer {
        limit: 256 * 16 - 1,
        base: &raw const IDT as u64,
    };
    // SAFETY: the tables were filled by `install`, and live as long as the program; the far return reloads CS with the
    // 64-bit code segment that firmware executes in.
    unsafe {
        asm!(
            "lgdt [{gdt}]",
            "lidt [{idt}]",
            "push {code}",
            "lea {tmp}, [rip + 2f]",
            "push {tmp}",
            "retfq",
            "2:",
            "mov ss, {data:e}",
            "mov ds, {data:e}",
            "mov es, {data:e}",
            gdt = in(reg) &raw const GDT,
            idt = in(reg) &idt,
            code = in(reg) u64::from(CODE.load(Ordering::Relaxed)),
            data = in(reg) DATA.load(Ordering::Relaxed),
            tmp = out(reg) _,
        );
    }
}

#[unsafe(naked)]
unsafe extern "C" fn invalid_opcode() {
    naked_asm!(
        "mov rax, [rip + {recovery}]",
        "mov [rsp], rax",
        "mov eax, 6",
        "iretq",
        recovery = sym RECOVERY,
    )
}

#[unsafe(naked)]
unsafe extern "C" fn protection() {
    naked_asm!(
        "add rsp, 8",
        "mov rax, [rip + {recovery}]",
        "mov [rsp], rax",
        "mov eax, 13",
        "iretq",
        recovery = sym RECOVERY,
    )
}

macro_rules! counting_handler {
    ($name:ident, $counter:ident, $($end_of_interrupt:literal),*) => {
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            naked_asm!(
                "push rax",
                "push rcx",
                "push rdx",
                "lock inc dword ptr [rip + {counter}]",
                $($end_of_interrupt,)*
                "pop rdx",
                "pop rcx",
                "pop rax",
                "iretq",
                counter = sym $counter,
            )
        }
    };
}

counting_handler!(nmi, NMIS,);
counting_handler!(
    ipi,
    IPIS,
    "mov ecx, 0x80B",
    "xor eax, eax",
    "xor edx, edx",
    "wrmsr"
);
counting_handler!(
    timer,
    TIMERS,
    "mov ecx, 0x80B",
    "xor eax, eax",
    "xor edx, edx",
    "wrmsr"
);

/// Defines a function that executes instructions on the operands RDI and RSI, and a place for results in R8.
macro_rules! attempt {
    ($name:ident, $($instruction:literal),+) => {
        #[unsafe(naked)]
        unsafe extern "C" fn $name(a: u64, b: u64, out: *mut u64) -> u64 {
            naked_asm!(
                "mov r8, rdx",
                "lea rax, [rip + 9f]",
                "mov [rip + {recovery}], rax",
                $($instruction,)+
                "xor eax, eax",
                "9:",
                "ret",
                recovery = sym RECOVERY,
            )
        }
    };
}

attempt!(
    raw_rdmsr,
    "mov ecx, edi",
    "rdmsr",
    "mov [r8], eax",
    "mov [r8 + 4], edx"
);
attempt!(
    raw_wrmsr,
    "mov ecx, edi",
    "mov eax, esi",
    "mov rdx, rsi",
    "shr rdx, 32",
    "wrmsr"
);
attempt!(raw_cr0, "mov cr0, rdi");
attempt!(raw_cr4, "mov cr4, rdi");
attempt!(
    raw_vmxon,
    "vmxon [rdi]",
    "pushfq",
    "pop rax",
    "mov [r8], rax"
);
attempt!(raw_vmxoff, "vmxoff", "pushfq", "pop rax", "mov [r8], rax");
attempt!(
    raw_vmclear,
    "vmclear [rdi]",
    "pushfq",
    "pop rax",
    "mov [r8], rax"
);
attempt!(
    raw_vmptrld,
    "vmptrld [rdi]",
    "pushfq",
    "pop rax",
    "mov [r8], rax"
);
attempt!(raw_vmptrst, "vmptrst [r8]");
attempt!(raw_vmread, "vmread rax, rdi", "mov [r8], rax");
attempt!(
    raw_vmwrite,
    "vmwrite rdi, rsi",
    "pushfq",
    "pop rax",
    "mov [r8], rax"
);
attempt!(
    raw_invept,
    "invept rdi, [rsi]",
    "pushfq",
    "pop rax",
    "mov [r8], rax"
);
attempt!(
    raw_invvpid,
    "invvpid rdi, [rsi]",
    "pushfq",
    "pop rax",
    "mov [r8], rax"
);
attempt!(raw_movdir64b, "movdir64b rdi, [rsi]");
attempt!(raw_vmmcall, "vmmcall");
attempt!(raw_tdcall, ".byte 0x66, 0x0f, 0x01, 0xcc");
attempt!(
    raw_seamcall,
    "mov rax, [r8]",
    "mov rcx, [r8 + 8]",
    "mov rdx, [r8 + 16]",
    "mov r9, [r8 + 32]",
    "mov r11, r8",
    "mov r8, [r8 + 24]",
    ".byte 0x66, 0x0f, 0x01, 0xcf",
    "mov [r11], rax",
    "mov [r11 + 8], rcx",
    "mov [r11 + 16], rdx",
    "mov [r11 + 24], r8",
    "mov [r11 + 32], r9",
    "pushfq",
    "pop rax",
    "mov [r11 + 40], rax"
);
attempt!(
    raw_clear,
    "2:",
    "movdir64b rdi, [rsi]",
    "add rdi, 64",
    "dec qword ptr [r8]",
    "jnz 2b"
);
attempt!(
    raw_clear_counted,
    "mov rcx, [r8]",
    "2:",
    "movdir64b rdi, [rsi]",
    "add rdi, 64",
    "dec rcx",
    "jnz 2b",
    "mov [r8], rcx"
);

/// SEAMCALL with all registers in and out; the vector of its exception, or zero.
#[unsafe(naked)]
unsafe extern "C" fn raw_seamcall_all(registers: *mut Gprs) -> u64 {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "lea rax, [rip + 9f]",
        "mov [rip + {recovery}], rax",
        "mov rax, [rdi]",
        "mov rcx, [rdi + 1*8]",
        "mov rdx, [rdi + 2*8]",
        "mov rbx, [rdi + 3*8]",
        "mov rbp, [rdi + 4*8]",
        "mov rsi, [rdi + 5*8]",
        "mov r8, [rdi + 7*8]",
        "mov r9, [rdi + 8*8]",
        "mov r10, [rdi + 9*8]",
        "mov r11, [rdi + 10*8]",
        "mov r12, [rdi + 11*8]",
        "mov r13, [rdi + 12*8]",
        "mov r14, [rdi + 13*8]",
        "mov r15, [rdi + 14*8]",
        "mov rdi, [rdi + 6*8]",
        ".byte 0x66, 0x0f, 0x01, 0xcf",
        "xchg rdi, [rsp]",
        "mov [rdi], rax",
        "mov [rdi + 1*8], rcx",
        "mov [rdi + 2*8], rdx",
        "mov [rdi + 3*8], rbx",
        "mov [rdi + 4*8], rbp",
        "mov [rdi + 5*8], rsi",
        "mov [rdi + 7*8], r8",
        "mov [rdi + 8*8], r9",
        "mov [rdi + 9*8], r10",
        "mov [rdi + 10*8], r11",
        "mov [rdi + 11*8], r12",
        "mov [rdi + 12*8], r13",
        "mov [rdi + 13*8], r14",
        "mov [rdi + 14*8], r15",
        "mov rax, [rsp]",
        "mov [rdi + 6*8], rax",
        "xor eax, eax",
        "9:",
        "pop rdi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        recovery = sym RECOVERY,
    )
}

/// The loop of [`enter_often`]: what it needs is in R13 to R15, which it passes to the guest and gets back.
#[unsafe(naked)]
unsafe extern "C" fn raw_enter_often(tdvpr: u64, times: u64, first: u64) -> u64 {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "lea rax, [rip + 8f]",
        "mov [rip + {recovery}], rax",
        "mov r13, rdi",
        "mov r14, rsi",
        "mov r15, rdx",
        "2:",
        "mov eax, {leaf}",
        "mov rcx, r13",
        "xor r10d, r10d",
        ".byte 0x66, 0x0f, 0x01, 0xcf",
        "cmp rax, {tdcall}",
        "jne 8f",
        "cmp r12, r15",
        "jne 8f",
        "inc r15",
        "dec r14",
        "jnz 2b",
        "xor eax, eax",
        "jmp 9f",
        "8:",
        "mov eax, 1",
        "9:",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        recovery = sym RECOVERY,
        leaf = const Leaf::VpEnter as u64,
        tdcall = const TDCALL,
    )
}

type Raw = unsafe extern "C" fn(u64, u64, *mut u64) -> u64;

fn run(raw: Raw, a: u64, b: u64, out: &mut [u64]) -> Result<(), u64> {
    // SAFETY: an exception of the instruction comes back as the result; what a successful one does to the machine is the
    // check's intention, and the checks' operands point to this program's own memory.
    match unsafe { raw(a, b, out.as_mut_ptr()) } {
        0 => Ok(()),
        vector => Err(vector),
    }
}

fn with_flags(raw: Raw, a: u64, b: u64) -> Outcome {
    let mut out = [0];
    run(raw, a, b, &mut out)?;
    Ok(out[0] & (rflags::CF | rflags::ZF))
}

/// RDMSR.
pub fn rdmsr(msr: u32) -> Outcome {
    let mut out = [0];
    run(raw_rdmsr, msr.into(), 0, &mut out)?;
    Ok(out[0])
}

/// WRMSR.
pub fn wrmsr(msr: u32, value: u64) -> Result<(), u64> {
    run(raw_wrmsr, msr.into(), value, &mut [])
}

/// MOV to CR0.
pub fn set_cr0(value: u64) -> Result<(), u64> {
    run(raw_cr0, value, 0, &mut [])
}

/// MOV to CR4.
pub fn set_cr4(value: u64) -> Result<(), u64> {
    run(raw_cr4, value, 0, &mut [])
}

/// VMXON: CF and ZF.
pub fn vmxon(region: u64) -> Outcome {
    with_flags(raw_vmxon, &raw const region as u64, 0)
}

/// VMXOFF: CF and ZF.
pub fn vmxoff() -> Outcome {
    with_flags(raw_vmxoff, 0, 0)
}

/// VMCLEAR: CF and ZF.
pub fn vmclear(vmcs: u64) -> Outcome {
    with_flags(raw_vmclear, &raw const vmcs as u64, 0)
}

/// VMPTRLD: CF and ZF.
pub fn vmptrld(vmcs: u64) -> Outcome {
    with_flags(raw_vmptrld, &raw const vmcs as u64, 0)
}

/// VMPTRST: the pointer.
pub fn vmptrst() -> Outcome {
    let mut out = [0];
    run(raw_vmptrst, 0, 0, &mut out)?;
    Ok(out[0])
}

/// VMREAD: the value.
pub fn vmread(field: u64) -> Outcome {
    let mut out = [0];
    run(raw_vmread, field, 0, &mut out)?;
    Ok(out[0])
}

/// VMWRITE: CF and ZF.
pub fn vmwrite(field: u64, value: u64) -> Outcome {
    with_flags(raw_vmwrite, field, value)
}

/// INVEPT: CF and ZF.
pub fn invept(kind: u64, descriptor: [u64; 2]) -> Outcome {
    with_flags(raw_invept, kind, descriptor.as_ptr() as u64)
}

/// INVVPID: CF and ZF.
pub fn invvpid(kind: u64, descriptor: [u64; 2]) -> Outcome {
    with_flags(raw_invvpid, kind, descriptor.as_ptr() as u64)
}

/// VMMCALL, which no Intel CPU has.
pub fn vmmcall() -> Result<(), u64> {
    run(raw_vmmcall, 0, 0, &mut [])
}

/// TDCALL, outside a TD.
pub fn tdcall() -> Result<(), u64> {
    run(raw_tdcall, 0, 0, &mut [])
}

/// MOVDIR64B from `source` to the address `target`.
pub fn movdir64b(target: u64, source: &[u64; 8]) -> Result<(), u64> {
    run(raw_movdir64b, target, source.as_ptr() as u64, &mut [])
}

/// `count` times MOVDIR64B upwards, counted in a register, or in memory if not `in_register`.
pub fn clear(target: u64, source: &[u64; 8], count: u64, in_register: bool) -> Result<(), u64> {
    let raw = if in_register {
        raw_clear_counted
    } else {
        raw_clear
    };
    run(raw, target, source.as_ptr() as u64, &mut [count])
}

/// SEAMCALL's registers: RAX, RCX, RDX, R8, R9 in and out, RFLAGS out.
pub fn seamcall(registers: &mut [u64; 6]) -> Result<(), u64> {
    run(raw_seamcall, 0, 0, registers)
}

/// SEAMCALL with all of its registers: the vector of the exception if it raised one. XMM registers don't survive it.
pub fn seamcall_all(registers: &mut Gprs) -> Result<(), u64> {
    // SAFETY: as in `run`; the compiler takes XMM registers for clobbered by a call.
    match unsafe { raw_seamcall_all(registers) } {
        0 => Ok(()),
        vector => Err(vector),
    }
}

/// Enters the vCPU at `tdvpr`, which is in a TDVMCALL that passes R10 to R15, so many times, with as little as can be between
/// two entries: whether every exit was another such TDVMCALL, which said the next number from `first` on in R12 and
/// gave R13 to R15 back.
pub fn enter_often(tdvpr: u64, times: u64, first: u64) -> bool {
    // SAFETY: as for `seamcall_all`.
    unsafe { raw_enter_often(tdvpr, times, first) == 0 }
}

/// A counter's value.
pub fn count(counter: &AtomicU32) -> u32 {
    counter.load(Ordering::SeqCst)
}

/// Reads a word of memory, whatever is there.
pub fn read(address: u64) -> u64 {
    let value;
    // SAFETY: the address is mapped by the caller; a load has no effect on this program.
    unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) address, options(nostack, readonly)) };
    value
}

/// Writes a word of memory that is not this program's own.
pub fn write(address: u64, value: u64) {
    // SAFETY: the address is mapped by the caller, and no Rust object is there.
    unsafe { asm!("mov [{}], {}", in(reg) address, in(reg) value, options(nostack)) };
}

/// Adds to a word of memory in one locked instruction: what was there.
pub fn fetch_add(address: u64, value: u64) -> u64 {
    let mut result = value;
    // SAFETY: as for `write`.
    unsafe {
        asm!("lock xadd [{}], {}", in(reg) address, inout(reg) result, options(nostack));
    }
    result
}

/// Sets bits in a word of memory in one locked instruction: what was there.
pub fn set_bits(address: u64, bits: u64) -> u64 {
    loop {
        let old = read(address);
        let found;
        // SAFETY: as for `write`.
        unsafe {
            asm!("lock cmpxchg [{}], {}", in(reg) address, in(reg) old | bits, inout("rax") old => found, options(nostack));
        }
        if old == found {
            return old;
        }
    }
}

/// Copies a word of memory in one instruction.
pub fn copy_word(from: u64, to: u64) {
    // SAFETY: as for `read` and `write`.
    unsafe {
        asm!("movsq", inout("rsi") from => _, inout("rdi") to => _, options(nostack));
    }
}
