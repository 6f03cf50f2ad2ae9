//! An emulated Intel TDX module 1.5, portable and `no_std`.
//!
//! The same code answers in host tests, in simulation and inside the option ROM; what it runs on is a [`Machine`].
#![no_std]

#[cfg(feature = "host")]
extern crate std;

#[cfg(feature = "host")]
pub mod host;
mod machine;
mod pages;
pub mod vcpu;

pub use machine::{Machine, PageWords, PconfigError, Platform, Point};
pub use pages::Pages;
