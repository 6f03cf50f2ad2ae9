//! The firmware of a TD that boots a kernel directly.
//!
//! It starts at the TD's reset vector with nothing but its own image, and trusts nobody but the module: it accepts the TD's
//! memory on all vCPUs, copies kernel and initial file system from memory that the host shares, measures what it copied,
//! describes the TD to the kernel (boot parameters, ACPI tables, the log of what was measured), and enters the kernel at its
//! 64-bit entry point. The other vCPUs wait in the mailbox that ACPI describes.
//!
//! What is pure is here and tested on the developer's computer; what runs in a TD alone is behind the feature `bare`.
//!
//! # Measurements
//!
//! | Register | Extended with the SHA-384 of |
//! |---|---|
//! | MRTD | this firmware, by the host before the TD runs |
//! | RTMR 0 | nothing: there is no configuration but the command line |
//! | RTMR 1 | the kernel's file |
//! | RTMR 2 | the command line, without the zero that ends it; then the initial file system's file, if there is one |
//! | RTMR 3 | nothing: it is the operating system's |
#![cfg_attr(not(test), no_std)]

pub mod acpi;
pub mod aml;
pub mod events;
pub mod parameters;
pub mod places;
pub mod sha384;

#[cfg(test)]
#[path = "../base/tests/kit/head.rs"]
mod head;

#[cfg(feature = "bare")]
pub mod console;
#[cfg(feature = "bare")]
mod load;
#[cfg(feature = "bare")]
mod mailbox;
#[cfg(feature = "bare")]
mod start;
#[cfg(feature = "bare")]
mod team;

/// Bytes of the memory that ACPI tables take, which the kernel may use when it has read them.
pub const TABLES_BYTES: usize = 0x6000;
/// Bytes of the memory that stays the firmware's: the FACS, the log of what was measured.
#[cfg(feature = "bare")]
const KEPT_BYTES: usize = 0x2000;

/// Memory of the image that the kernel is told of, in whole pages.
#[cfg(feature = "bare")]
#[repr(C, align(4096))]
#[derive(Debug)]
struct Memory<const BYTES: usize>(core::cell::UnsafeCell<[u8; BYTES]>);

#[cfg(feature = "bare")]
#[expect(
    unsafe_code,
    reason = "memory that one vCPU fills and the kernel reads"
)]
// SAFETY: the first vCPU alone uses it.
unsafe impl<const BYTES: usize> Sync for Memory<BYTES> {}

/// The ACPI tables.
#[cfg(feature = "bare")]
static TABLES: Memory<TABLES_BYTES> = Memory(core::cell::UnsafeCell::new([0; TABLES_BYTES]));
/// What stays the firmware's.
#[cfg(feature = "bare")]
static KEPT: Memory<KEPT_BYTES> = Memory(core::cell::UnsafeCell::new([0; KEPT_BYTES]));
