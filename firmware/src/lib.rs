//! The firmware of a TD that boots a kernel directly.
//!
//! It starts at the TD's reset vector with nothing but its own image, and trusts only the module. It accepts the TD's
//! memory on all vCPUs, copies kernel and initial file system from memory that the host shares, measures the copies,
//! describes the TD to the kernel (boot parameters, ACPI tables, event log), and enters the kernel at its 64-bit entry
//! point. The other vCPUs wait in the mailbox that ACPI describes.
//!
//! Pure code is tested on the developer's computer; code that runs only in a TD requires the feature `bare`.
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

/// Size in bytes of the ACPI tables' memory, which the kernel may use once it has read them.
pub const TABLES_BYTES: usize = 0x6000;
/// Size in bytes of the memory that stays the firmware's: the FACS and the event log.
#[cfg(feature = "bare")]
const KEPT_BYTES: usize = 0x2000;

/// Memory of the image that is reported to the kernel, in whole pages.
#[cfg(feature = "bare")]
#[repr(C, align(4096))]
#[derive(Debug)]
struct Memory<const BYTES: usize>(core::cell::UnsafeCell<[u8; BYTES]>);

#[cfg(feature = "bare")]
#[expect(
    unsafe_code,
    reason = "memory that one vCPU fills and the kernel reads"
)]
// SAFETY: only the first vCPU uses it.
unsafe impl<const BYTES: usize> Sync for Memory<BYTES> {}

/// The ACPI tables.
#[cfg(feature = "bare")]
static TABLES: Memory<TABLES_BYTES> = Memory(core::cell::UnsafeCell::new([0; TABLES_BYTES]));
/// Memory that stays the firmware's: the FACS and the event log.
#[cfg(feature = "bare")]
static KEPT: Memory<KEPT_BYTES> = Memory(core::cell::UnsafeCell::new([0; KEPT_BYTES]));
