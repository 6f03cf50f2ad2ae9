//! The SEAM interface: one vocabulary for both sides of SEAMCALL.
//!
//! [`abi`] states each fact once. All SEAMCALLs go through [`call`], and [`hardware`] is the instruction behind it.
//! [`platform`] detects the features of the machine, [`erratum`] its errata. Nothing here knows whether TDX hardware or
//! the emulated module answers.
//!
//! The host's side builds on these. [`tdh`] has one method per leaf, [`page`] and [`hkid`] express ownership as types,
//! [`retry`] is the only retry policy, [`counters`] count calls, and [`module`] reads the module's properties.
//! [`error`], [`detail`] and [`advice`] explain failures. [`seamldr`] calls the P-SEAMLDR.
#![no_std]

#[cfg(test)]
extern crate alloc;

pub mod abi;
pub mod address;
pub mod advice;
pub mod call;
pub mod counters;
pub mod detail;
pub mod erratum;
pub mod error;
pub mod hardware;
pub mod hkid;
pub mod module;
pub mod page;
pub mod platform;
pub mod retry;
pub mod seamldr;
pub mod tdh;
