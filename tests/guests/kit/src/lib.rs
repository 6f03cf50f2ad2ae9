//! The kit for freestanding programs that run as TDs: from the reset vector to checks that are printed.
//!
//! It is based on [`td_base`], which firmware uses as well: the layout of an image, the host's description of memory,
//! TDCALL and the requests to the host. [`hostile`] generates calls that must not hurt a host; it is pure. Everything
//! else runs only in a TD: the path from the reset vector, exceptions and #VE, memory, the other vCPUs, and a console
//! that uses TDVMCALL.
//!
//! A guest is a program with `guest!` in it. `cargo xtask build` builds it and makes an image of it.
#![cfg_attr(not(test), no_std)]

pub mod hostile;
pub mod numbers;
pub use td_base::{hob, layout};

#[cfg(feature = "bare")]
pub mod apic;
#[cfg(feature = "bare")]
pub mod attempt;
#[cfg(feature = "bare")]
pub mod check;
#[cfg(feature = "bare")]
pub mod console;
#[cfg(feature = "bare")]
pub mod cpu;
#[cfg(feature = "bare")]
pub mod memory;
#[cfg(feature = "bare")]
pub mod power;
#[cfg(feature = "bare")]
mod start;
#[cfg(feature = "bare")]
mod trap;
#[cfg(feature = "bare")]
pub mod vcpu;
#[cfg(feature = "bare")]
pub mod ve;
#[cfg(feature = "bare")]
pub mod wishes;
#[cfg(feature = "bare")]
pub use td_base::{tdcall, vmcall};

// For the memory functions that `core` calls.
#[cfg(feature = "bare")]
use boot as _;

#[cfg(feature = "bare")]
pub use start::{Initial, initial};

/// Defines a guest: `guest!("NAME", function)`. The function runs on vCPU 0. When it returns, every vCPU halts, or an
/// optional third argument, a function, ends the guest.
#[cfg(feature = "bare")]
#[macro_export]
macro_rules! guest {
    ($name:literal, $main:path) => {
        $crate::guest!($name, $main, $crate::vcpu::finish_all);
    };
    ($name:literal, $main:path, $end:path) => {
        #[expect(unsafe_code, reason = "exports a symbol that the kit calls")]
        #[unsafe(no_mangle)]
        extern "Rust" fn guest_main() -> ! {
            $crate::check::run($name, $main, $end)
        }
    };
}
