//! A software model of VT-d units, on which the host's tests run the driver [`vtd`].
//!
//! It shares no constant and no code with the driver but the traits through which the driver reaches a machine: what
//! both derive from the specification, they check against each other. The model is as unkind as a unit may be. It
//! caches everything that the specification lets it cache, until it is told to forget. A unit that does not snoop sees
//! a store only after it was written back; one with a write buffer only after that was flushed. A table in memory that
//! was freed, a command with two changes, and a descriptor that the specification does not know are violations, which
//! [`Machine::violations`] returns.
//!
//! Source: Intel Virtualization Technology for Directed I/O Architecture Specification, revision 4.1.
#![forbid(unsafe_code)]

mod interrupts;
mod machine;
mod memory;
mod shape;
mod unit;
mod walk;

pub use interrupts::Delivered;
pub use machine::{Machine, UnitRegisters};
pub use shape::{Firmware, Silence, UnitShape};
