//! A TDX host: TDs and their lifecycle, the bring-up of the module, the vCPU scheduler, hypercalls.
//!
//! Everything is written against the traits of [`platform`]. `seamark.efi` implements them on the machine itself, the
//! tests with threads on an emulated module. The code under test is thus the code that runs.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod bench;
pub mod functions;
mod heap;
pub mod hypercall;
pub mod platform;
pub mod sched;
pub mod td;
pub mod tdx;
