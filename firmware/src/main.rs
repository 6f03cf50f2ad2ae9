//! The firmware as a program. It starts in the library, at the reset vector.
#![no_std]
#![no_main]

use core::panic::PanicInfo;

// For the memory functions that `core` calls.
use boot as _;
use td_firmware::console;

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    console::fatal("the firmware contradicts itself")
}
