//! Physical PCI: functions with their capabilities and base address registers, isolation groups, resets, errors.
//!
//! The crate reaches configuration space through [`Space`] and the clock through [`Clock`], and waits for nothing
//! without a limit. Devices are not trusted: a capability list may loop, a function may vanish at any read, a bridge may
//! claim any buses. What is wrong with a function is a [`Defect`] of it, and stops nothing else.
//!
//! The order: [`scan::segment`] lists the functions of each segment and only reads. [`Function::stop`] switches bus
//! mastering off. [`Inventory::new`] switches access control on and forms the groups. [`Inventory::measure`] finds the
//! sizes of a function's base address registers, which it writes to.
//!
//! Sources: PCI Local Bus 3.0; PCI Express Base 5.0, sections 6.6 (reset), 6.12 (access control), 7.5 to 7.8; SR-IOV is
//! 9.3. Linux's `drivers/pci/quirks.c` and `search.c` for devices that deviate.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod acs;
mod address;
mod aer;
mod bar;
mod capability;
mod claim;
mod clock;
mod defect;
mod express;
mod function;
mod group;
mod inventory;
mod owner;
mod quirk;
mod refusal;
mod reporting;
mod reset;
mod resets;
pub mod scan;
mod selector;
mod space;
mod sriov;

pub use address::{Address, BadAddress};
pub use aer::{Errors, Health};
pub use bar::{Bar, BarKind};
pub use capability::{Capabilities, Capability, extended, standard};
pub use claim::{ClaimError, ReleaseError, Released};
pub use clock::Clock;
pub use defect::Defect;
pub use express::{Express, Port};
pub use function::{Buses, Class, Function, Header, Identity, Stopped};
pub use inventory::Inventory;
pub use owner::Owner;
pub use refusal::Refusal;
pub use reporting::{Reporting, Trouble};
pub use reset::{Reset, ResetError, Resetting};
pub use selector::{BadSelector, Selector};
pub use space::{Space, register};
