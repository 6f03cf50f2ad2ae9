//! The SEAM interface: one vocabulary for both sides of SEAMCALL.
//!
//! [`abi`] holds the facts, each once; [`call`] is the one door through which a SEAMCALL goes, and [`hardware`] the
//! instruction behind it. [`platform`] finds out what the machine offers, [`erratum`] what is wrong with it. Nothing here knows whether silicon or the
//! emulated module answers.
//!
//! On these stands the host's side: [`tdh`] has one method for each leaf, [`page`] and [`hkid`] say by types who owns what,
//! [`retry`] is the one retry policy, [`counters`] keep account, [`module`] brings the TDX module up, and [`error`] with
//! [`detail`] and [`advice`] says what went wrong and what to do. [`seamldr`] asks the P-SEAMLDR.
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
