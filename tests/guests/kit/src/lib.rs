//! What a freestanding program needs to run as a TD: from the reset vector to checks that are printed.
//!
//! [`layout`] says where an image lies in guest memory, [`hob`] reads what the host tells of the rest, [`hostile`] makes up
//! calls that no host should be hurt by; these are pure. All else runs in a TD alone: the way up from the reset vector, exceptions and #VE, TDCALL and the requests to the host,
//! memory, the other vCPUs, and a console that goes through TDVMCALL.
//!
//! A guest is a program with `guest!` in it. It is built and made an image by `cargo xtask build`.
#![cfg_attr(not(test), no_std)]

pub mod hob;
pub mod hostile;
pub mod layout;
pub mod numbers;

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
mod start;
#[cfg(feature = "bare")]
pub mod tdcall;
#[cfg(feature = "bare")]
mod trap;
#[cfg(feature = "bare")]
pub mod vcpu;
#[cfg(feature = "bare")]
pub mod ve;
#[cfg(feature = "bare")]
pub mod vmcall;

// For the memory functions that `core` calls.
#[cfg(feature = "bare")]
use boot as _;

#[cfg(feature = "bare")]
pub use start::{Initial, initial};

/// Says what a guest does: `guest!("NAME", function)`; the function runs on vCPU 0, and what it returns ends the guest.
#[cfg(feature = "bare")]
#[macro_export]
macro_rules! guest {
    ($name:literal, $main:path) => {
        #[expect(unsafe_code, reason = "the kit calls it by name")]
        #[unsafe(no_mangle)]
        extern "Rust" fn guest_main() -> ! {
            $crate::check::run($name, $main)
        }
    };
}
