//! An emulated Intel TDX module 1.5, portable and `no_std`.
//!
//! The same code runs in host tests, in simulation and inside the option ROM. It runs on a [`Machine`].
//!
//! A SEAMCALL enters through [`Module::seamcall`]. `dispatch` does the checks common to every leaf and calls the leaf's
//! function in the module of its family (`sys`, `mng`, `mr`, `vp`, `mem`, `phymem`, `metadata`). A leaf takes its
//! operands through `operand` and `td`, which check and lock in the module's order. A lock is a guard, so every return
//! path releases it. The state of a TD lies in the pages that the host donated (`td`, `field`, `pamt`), and nowhere
//! else.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(feature = "host")]
extern crate std;

mod call;
mod cpuid;
mod dispatch;
pub mod ept;
mod field;
mod guest;
pub mod hooks;
#[cfg(feature = "host")]
pub mod host;
mod keys;
mod lock;
mod machine;
mod mem;
mod memory;
mod metadata;
mod migration;
mod mng;
mod module;
mod mr;
mod operand;
mod ownership;
mod pamt;
mod params;
mod phymem;
mod release;
pub mod sapphire_rapids;
pub mod seamldr;
mod sept;
mod servtd;
mod splitmix;
mod sys;
mod td;
pub mod vcpu;
mod vp;

pub use guest::{Check, Impossible, check_report};
pub use machine::{Machine, PageWords, PconfigError, Platform, Point};
pub use module::{Module, SysState};
pub use release::{Change, Identity, Release};
