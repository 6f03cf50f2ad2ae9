//! From UEFI to the hypervisor's first line, and from SIPI to an AP's.
//!
//! Both freestanding programs of this repository stand on it: the hypervisor for all of it, the option ROM for
//! [`ap`] and `rt`. It knows nobody.
#![cfg_attr(not(test), no_std)]

pub mod ap;
#[cfg(feature = "rt")]
pub mod rt;
