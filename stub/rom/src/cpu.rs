//! Privileged instructions that the monitor executes itself.
#![expect(unsafe_code, reason = "executes privileged instructions")]

use core::arch::asm;

use seam::abi::x86::cr4;

pub const MSR_EFER: u32 = 0xC000_0080;
pub const MSR_VM_HSAVE_PA: u32 = 0xC001_0117;
/// EFER.SVME, which Intel's processors do not have.
pub const EFER_SVME: u64 = 1 << 12;
/// The monitor's CR4. PGE is clear, because TCG flushes its TLB one more time at a world switch that changes PGE.
pub const CR4: u64 = cr4::PAE | cr4::MCE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;

/// The contents of a descriptor table register.
#[repr(C, packed)]
#[derive(Default)]
pub struct TableRegister {
    pub limit: u16,
    pub base: u64,
}

/// Returns an IDT gate to `handler` in the code segment `code`. It leaves interrupts disabled.
pub fn interrupt_gate(code: u16, handler: u64) -> [u64; 2] {
    const PRESENT_INTERRUPT_GATE: u64 = 0x8E00;
    [
        handler & 0xFFFF
            | u64::from(code) << 16
            | PRESENT_INTERRUPT_GATE << 32
            | (handler >> 16 & 0xFFFF) << 48,
        handler >> 32,
    ]
}

/// Executes CPUID, which QEMU answers.
pub fn cpuid(leaf: u32, sub_leaf: u32) -> [u32; 4] {
    let r = core::arch::x86_64::__cpuid_count(leaf, sub_leaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// Executes RDMSR. TCG reads an MSR that it does not know as zero.
pub fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading a register of this CPU changes nothing, and TCG raises no fault for an unknown one.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Executes WRMSR.
///
/// # Safety
/// The value must leave this CPU able to execute the monitor.
pub unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: the caller vouches for the effect.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
    }
}

/// Executes RDTSC.
pub fn rdtsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Executes RDRAND.
pub fn rdrand() -> Option<u64> {
    let (value, ok): (u64, u8);
    // SAFETY: the personality is built on TCG's `max` model, which has RDRAND.
    unsafe {
        asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) ok, options(nomem, nostack))
    };
    (ok != 0).then_some(value)
}

/// Reads an 8-bit I/O port.
///
/// # Safety
/// Reading the port must have no effect that the software above could notice.
pub unsafe fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: the caller vouches for the port.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack)) };
    value
}

/// Reads a 32-bit I/O port.
///
/// # Safety
/// As [`in8`].
pub unsafe fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: the caller vouches for the port.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack)) };
    value
}

/// Writes an 8-bit I/O port.
///
/// # Safety
/// Writing the port must have no effect that breaks the software above.
pub unsafe fn out8(port: u16, value: u8) {
    // SAFETY: the caller vouches for the port.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack)) };
}

/// Writes a 16-bit I/O port.
///
/// # Safety
/// As [`out8`].
pub unsafe fn out16(port: u16, value: u16) {
    // SAFETY: the caller vouches for the port.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack)) };
}

/// Writes a 32-bit I/O port.
///
/// # Safety
/// As [`out8`].
pub unsafe fn out32(port: u16, value: u32) {
    // SAFETY: the caller vouches for the port.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)) };
}

/// Resets the machine through the chipset's reset control register.
pub fn reset_machine() -> ! {
    const RESET_CONTROL: u16 = 0xCF9;
    const FULL_RESET: u8 = 0xE;
    // SAFETY: no software above continues after a reset.
    unsafe { out8(RESET_CONTROL, FULL_RESET) };
    stop()
}

/// Stops this CPU permanently.
pub fn stop() -> ! {
    loop {
        // SAFETY: with interrupts off, HLT leaves the CPU stopped; nothing runs after it.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
