//! What every program needs that starts at a TD's reset vector.
//!
//! [`layout`] says where its image lies in guest memory, [`hob`] reads what the host tells of the rest; [`tdcall`] and
//! [`vmcall`] call the module and the host, and [`accept`] makes memory of what the host promised. The firmware and the guests of
//! the tests stand on it; nothing here knows either. The host takes from it what both sides must agree on: [`board`] and the
//! block types of [`hob`].
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
