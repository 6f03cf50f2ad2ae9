//! A driver for the units that remap DMA and interrupts: Intel Virtualization Technology for Directed I/O (VT-d).
//!
//! The driver is pure: it reaches a unit through [`Registers`], and memory and the clock through [`Platform`]. It
//! begins with [`dmar`], the firmware's table of units. [`Iommu::start`] switches every unit on with empty tables, so
//! that no function reaches any memory. A function reaches what its [`Domain`] maps once [`Iommu::attach`] has attached
//! it. [`Iommu::route`] makes the entry of an interrupt, which one source alone may raise.
//!
//! Every wait for a unit has a limit ([`LIMIT_US`]) and a name ([`Wait`]). A unit that does not answer is named once and
//! never asked again.
//!
//! Source: Intel Virtualization Technology for Directed I/O Architecture Specification, revision 4.1. Section and
//! register names are that specification's.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod address;
pub mod books;
pub mod dmar;
mod error;
pub mod interrupt;
mod iommu;
mod platform;
pub mod register;
pub mod reserved;
pub mod scope;
pub mod table;
pub mod unit;

pub use address::{Function, Source};
pub use error::{Error, LIMIT_US, Wait};
pub use iommu::{Event, Iommu, Origin, UnitReport, UnitState};
pub use platform::{Platform, Registers};
pub use table::{Access, Domain};
