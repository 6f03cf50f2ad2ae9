//! The SEAM interface: one vocabulary for both sides of SEAMCALL.
//!
//! [`abi`] holds the facts, each once; [`call`] is the one door through which a SEAMCALL goes. Nothing here knows
//! whether silicon or the emulated module answers.
#![no_std]

pub mod abi;
pub mod call;
