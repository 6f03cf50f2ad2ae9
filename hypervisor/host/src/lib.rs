//! A TDX host: TDs and their life, the bring-up of the module, the scheduler of vCPUs, hypercalls.
//!
//! All is written against the traits of [`platform`]. `seamark.efi` implements them with the machine itself, the tests with
//! threads on an emulated module: the code under test is the code that runs.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod bench;
pub mod hypercall;
pub mod platform;
pub mod sched;
pub mod td;
pub mod tdx;
