//! From UEFI to the hypervisor's first line, and from SIPI to an AP's.
//!
//! Both freestanding programs of this repository build on this crate: the hypervisor on all of it, the option ROM on
//! [`ap`] and `rt`. The crate depends on neither. [`efi`] is the way through the firmware, and its findings are passed
//! on as a [`BootInfo`]. [`paging`] and [`pe`] are pure and tested on the developer's machine.
#![cfg_attr(not(test), no_std)]

#[cfg(feature = "loader")]
extern crate alloc;

pub mod ap;
#[cfg(feature = "loader")]
pub mod efi;
#[cfg(feature = "loader")]
mod info;
#[cfg(feature = "loader")]
pub mod keep;
pub mod layout;
pub mod paging;
pub mod pe;
#[cfg(feature = "rt")]
pub mod rt;
mod xmm;

#[cfg(feature = "loader")]
pub use info::{BootInfo, File, Region, RegionKind, Source};
