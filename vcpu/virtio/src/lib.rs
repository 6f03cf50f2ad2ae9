//! Virtio 1.x devices of a TD: small device-side models behind the PCI bus of the crate `devices`.
//!
//! The guest is hostile. [`access`] is the only code that touches its memory, which it may change at any time: each
//! field is read once, into private memory, and the copy is checked. A [`Queue`] takes chains of buffers from the rings;
//! a [`Transport`] is the PCI function that drives a [`Device`]. A guest that breaks a rule loses its device
//! (`DEVICE_NEEDS_RESET`) until it resets it, and nothing else.
//!
//! A device works in bounded parts ([`devices::pci::Function::serve`]), because the CPU takes no interrupts meanwhile.
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.2.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod access;
mod block;
mod chain;
mod console;
mod device;
pub mod net;
mod queue;
mod transport;
pub mod vsock;

#[cfg(test)]
mod tests;

pub use block::{Block, Disk, Image, NoRoom};
pub use chain::{Chain, Cursor, LONGEST};
pub use console::{Console, Terminal};
pub use device::{Device, Kind, News, Traffic, Work};
pub use net::Net;
pub use queue::{Fault, Place, Queue};
pub use transport::Transport;
pub use vsock::Vsock;
