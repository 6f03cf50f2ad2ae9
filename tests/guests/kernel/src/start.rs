//! The program's first instructions.
#![expect(unsafe_code, reason = "contains the entry point in assembly")]

use core::arch::naked_asm;

use crate::{away, main};

/// The 64-bit entry point. RSI holds the address of the boot parameters; the firmware's stack is gone.
///
/// # Safety
/// Only the firmware comes here.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn td_start() -> ! {
    naked_asm!(
        "lea rsp, [rip + {stacks} + {bytes}]",
        "mov rdi, rsi",
        "call {main}",
        "ud2",
        stacks = sym away::STACKS,
        bytes = const away::STACK_BYTES,
        main = sym main,
    )
}
