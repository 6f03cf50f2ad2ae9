//! The base of every program that starts at a TD's reset vector.
//!
//! [`layout`] defines the image's place in guest memory, [`hob`] reads the host's description of the other memory,
//! [`tdcall`] and [`vmcall`] call the module and the host, and [`accept`] accepts memory that the host promised. The
//! firmware and the guests of the tests use this crate; nothing here depends on either. The host uses the parts that
//! both sides must agree on: [`board`] and the block types of [`hob`].
#![cfg_attr(not(test), no_std)]

pub mod accept;
pub mod board;
pub mod hob;
pub mod kernel;
pub mod layout;
pub mod long_mode;
pub mod payload;
pub mod tdcall;
pub mod vmcall;

#[cfg(test)]
#[path = "../tests/kit/head.rs"]
mod head;
