//! The SEAM interface: one vocabulary for both sides of SEAMCALL.
//!
//! [`abi`] holds the facts, each once; [`call`] is the one door through which a SEAMCALL goes; [`advice`] says what its
//! status means for the operator. Nothing here knows whether silicon or the emulated module answers.
#![no_std]

pub mod abi;
pub mod advice;
pub mod call;
