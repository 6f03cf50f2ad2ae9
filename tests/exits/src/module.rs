//! The stand-in for the TDX module and the guest behind it: every entry ends with the same TDVMCALL, every other call succeeds.
#![expect(unsafe_code, reason = "reads the registers of a SEAMCALL in assembly")]

use core::arch::naked_asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use seam::abi::Gprs;
use seam::abi::x86::exit_reason;
use seam::call::{Fault, SeamCall};

/// R11 to R15 of the guest's call; R8 of other leafs; what R14 becomes more with each call.
static SCRIPT: [AtomicU64; 7] = [const { AtomicU64::new(0) }; 7];

/// The registers that a guest of Linux shows to the host: R10 to R15.
const MASK: u64 = 0xFC00;

/// Lets the guest make this call, each time with an R14 that is `step` more, and every other leaf answer 1 or 0 in R8.
pub fn script(call: [u64; 5], step: u64, answer: bool) {
    let words = call.into_iter().chain([answer.into(), step]);
    for (word, value) in SCRIPT.iter().zip(words) {
        word.store(value, Relaxed);
    }
}

/// Loads and stores the registers as [`seam::hardware::Hardware`] does.
#[derive(Clone, Copy, Debug)]
pub struct Module;

impl SeamCall for Module {
    fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault> {
        // SAFETY: `regs` is a valid block of registers, and the function called touches no other memory.
        match unsafe { seamcall(regs) } {
            0 => Ok(()),
            _ => Err(Fault::NotLoaded),
        }
    }

    // No host keeps a record of it.
    fn note_shutdown(&self) {}
}

#[unsafe(naked)]
unsafe extern "sysv64" fn seamcall(regs: *mut Gprs) -> u64 {
    seam::naked_seamcall!("call {module}", module = sym exits_module)
}

/// Where SEAMCALL is on hardware. TDH.VP.ENTER has leaf number 0.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "sysv64" fn exits_module() {
    naked_asm!(
        "lea r10, [rip + {script}]",
        "test eax, eax",
        "jnz 2f",
        "mov eax, {tdcall}",
        "mov ecx, {mask}",
        "mov r11, [r10]",
        "mov r12, [r10 + 8]",
        "mov r13, [r10 + 16]",
        "mov r14, [r10 + 24]",
        "mov r15, [r10 + 48]",
        "add [r10 + 24], r15",
        "mov r15, [r10 + 32]",
        "xor r10d, r10d",
        "clc",
        "ret",
        "2: xor eax, eax",
        "mov r8, [r10 + 40]",
        "clc",
        "ret",
        script = sym SCRIPT,
        tdcall = const exit_reason::TDCALL,
        mask = const MASK,
    )
}
