//! What a freestanding program needs to run as a TD: from the reset vector to checks that are printed.
//!
//! It stands on [`td_base`], which has what firmware needs as well: where an image lies, what the host tells of memory, TDCALL
//! and the requests to the host. [`hostile`] makes up calls that no host should be hurt by; that is pure. All else runs in
//! a TD alone: the way up from the reset vector, exceptions and #VE, memory, the other vCPUs, and a console that goes
//! through TDVMCALL.
//!
//! A guest is a program with `guest!` in it. It is built and made an image by `cargo xtask build`.
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

/// Says what a guest does: `guest!("NAME", function)`; the function runs on vCPU 0, and when it returns, every vCPU halts, or
/// what a third argument says happens.
#[cfg(feature = "bare")]
#[macro_export]
macro_rules! guest {
    ($name:literal, $main:path) => {
        $crate::guest!($name, $main, $crate::vcpu::finish_all);
    };
    ($name:literal, $main:path, $end:path) => {
        #[expect(unsafe_code, reason = "the kit calls it by name")]
        #[unsafe(no_mangle)]
        extern "Rust" fn guest_main() -> ! {
            $crate::check::run($name, $main, $end)
        }
    };
}
