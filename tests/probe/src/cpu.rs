//! Instructions that need no net: registers, the time-stamp counter, the serial port.
#![expect(unsafe_code, reason = "executes privileged instructions")]

use core::arch::asm;

/// CPUID.
pub fn cpuid(leaf: u32, sub_leaf: u32) -> [u32; 4] {
    let r = core::arch::x86_64::__cpuid_count(leaf, sub_leaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// CR0.
pub fn cr0() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack)) };
    value
}

/// CR3.
pub fn cr3() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack)) };
    value
}

/// CR4.
pub fn cr4() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack)) };
    value
}

/// The time-stamp counter.
pub fn rdtsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Returns the ticks of the time-stamp counter in so many seconds.
pub fn ticks_of(seconds: u64) -> u64 {
    let [denominator, numerator, crystal, _] = cpuid(0x15, 0).map(u64::from);
    seconds * crystal * numerator / denominator.max(1)
}

/// Writes a byte to a port of the machine.
pub fn out_byte(port: u16, value: u8) {
    // SAFETY: for ports whose devices touch no memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// Waits for `done`, with interrupts on, for at most `seconds`; whether it came.
pub fn wait(seconds: u64, done: impl Fn() -> bool) -> bool {
    let deadline = rdtsc() + ticks_of(seconds);
    // SAFETY: firmware's handlers and this program's are installed.
    unsafe { asm!("sti", options(nomem, nostack)) };
    let came = loop {
        if done() {
            break true;
        }
        if rdtsc() > deadline {
            break done();
        }
        core::hint::spin_loop();
    };
    // SAFETY: the checks run with interrupts off.
    unsafe { asm!("cli", options(nomem, nostack)) };
    came
}

/// Sends a byte over the first serial port.
pub fn send_serial(byte: u8) {
    const PORT: u16 = 0x3F8;
    const LINE_STATUS: u16 = PORT + 5;
    const ROOM: u8 = 1 << 5;
    for _ in 0..1_000_000 {
        let status: u8;
        // SAFETY: reads the port's state.
        unsafe {
            asm!("in al, dx", in("dx") LINE_STATUS, out("al") status, options(nomem, nostack))
        };
        if status & ROOM != 0 {
            break;
        }
    }
    // SAFETY: the port only takes the byte.
    unsafe { asm!("out dx, al", in("dx") PORT, in("al") byte, options(nomem, nostack)) };
}

/// Keeps interrupts out: firmware's services let them in.
pub fn disable_interrupts() {
    // SAFETY: whoever waits for an interrupt lets it in himself.
    unsafe { asm!("cli", options(nomem, nostack)) };
}

/// Sleeps as long as `waiting`; an interrupt announces every change of it. Interrupts are off before and after.
pub fn sleep_while(waiting: impl Fn() -> bool) {
    while waiting() {
        // SAFETY: this program's handlers are installed. No interrupt comes between STI and HLT.
        unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
    }
}

/// Stops the processor for good, as a task.
pub fn stop_here(_: u64) -> u64 {
    stop()
}

/// Stops the processor for good.
pub fn stop() -> ! {
    loop {
        // SAFETY: nothing runs afterwards.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
