//! The SEAM stub: an SVM monitor in an option ROM that gives QEMU a machine with VMX, SEAM and TDX.
//!
//! This library is the portable part: pure functions of their inputs, which the host's tests run. It has the
//! processor's identity ([`personality`]), its local APIC ([`apic`]), VMX operation ([`vmx`]), instructions ([`insn`],
//! [`clearing`], [`doubt`], [`lost`]), page walks ([`walk`]), the reach of devices ([`dma`]), the options ([`options`]) and the size of the SEAM range
//! ([`room`]). The program that runs beneath the firmware is the binary `seamstub`.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub use stub_options as options;

pub mod apic;
pub mod clearing;
pub mod dma;
pub mod doubt;
pub mod insn;
pub mod lost;
pub mod nested;
pub mod personality;
pub mod room;
pub mod shadow;
pub mod translation;
pub mod vapic;
pub mod vmx;
pub mod walk;

/// Cache sub-blocks per package, the unit of TDH.PHYMEM.CACHE.WB.
pub const WBINVD_SUB_BLOCKS: u32 = 4;
