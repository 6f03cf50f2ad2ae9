//! Instructions that a guest executes natively.
#![expect(unsafe_code, reason = "executes instructions without an intrinsic")]

use core::arch::{asm, x86_64};

/// Executes RDMSR for an MSR that the TD has natively or whose #VE is served.
pub fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading an MSR changes nothing; one that does not exist is reported as an exception.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Executes WRMSR for an MSR that the TD has natively or whose #VE is served.
///
/// # Safety
/// The CPU's behaviour with the new value must be what the program expects.
pub unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: as the caller promises.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
    }
}

/// Executes CPUID. The host serves the #VE of a leaf that the module does not answer.
pub fn cpuid(leaf: u32, sub_leaf: u32) -> [u32; 4] {
    let found = x86_64::__cpuid_count(leaf, sub_leaf);
    [found.eax, found.ebx, found.ecx, found.edx]
}

/// Reads the time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: a TD always has it.
    unsafe { x86_64::_rdtsc() }
}

/// Returns the ticks of the time-stamp counter per millisecond. CPUID 0x15 gives a TD the frequency.
pub fn ticks_per_ms() -> u64 {
    let [denominator, numerator, crystal, _] = cpuid(0x15, 0);
    let hz = u64::from(crystal) * u64::from(numerator) / u64::from(denominator.max(1));
    (hz / 1000).max(1)
}

/// Enables interrupts. Pending ones are taken before it returns, even if they are disabled again at once.
pub fn enable_interrupts() {
    // After STI one more instruction is executed before an interrupt is taken.
    // SAFETY: every vector has a handler.
    unsafe { asm!("sti", "nop", options(nostack)) }
}

/// Disables interrupts.
pub fn disable_interrupts() {
    // SAFETY: nothing waits for an interrupt without enabling them.
    unsafe { asm!("cli", options(nostack)) }
}

/// Spins until `condition` holds. The runner of the guest limits the total time.
pub fn wait_until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        core::hint::spin_loop();
    }
}
