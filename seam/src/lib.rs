//! The SEAM interface: one vocabulary for both sides of SEAMCALL.
//!
//! [`abi`] holds the facts, each once; [`call`] is the one door through which a SEAMCALL goes. Nothing here knows
//! whether silicon or the emulated module answers.
//!
//! On these stands the host's side: [`tdh`] has one method for each leaf, [`page`] and [`hkid`] say by types who owns what,
//! [`retry`] is the one retry policy, [`counters`] keep account, and [`error`] with [`detail`] and [`advice`] says what
//! went wrong and what to do.
#![no_std]

pub mod abi;
pub mod address;
pub mod advice;
pub mod call;
pub mod counters;
pub mod detail;
pub mod error;
pub mod hkid;
pub mod page;
pub mod retry;
pub mod tdh;
