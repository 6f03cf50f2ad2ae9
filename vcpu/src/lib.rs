//! One virtual CPU of a TD: enter, exit, serve the guest.
//!
//! [`Vcpu::run`] is the loop: TDH.VP.ENTER, decode the exit ([`exit`]), serve it, enter again, until there is something for
//! the scheduler ([`Stop`]). A guest's calls are served in [`ghci`], memory that it needs in `fault`, its devices are in
//! [`devices`]. What the vCPUs of one TD share is a [`Board`]; what the host must provide is the trait [`Host`].
//!
//! On the way from one exit to the next entry nothing is allocated and no lock is taken that another vCPU could hold, unless
//! the guest asked for a device, for memory, or for another vCPU.
#![no_std]

extern crate alloc;

pub mod apic;
mod board;
pub mod clock;
mod console;
pub mod devices;
pub mod exit;
mod fault;
pub mod ghci;
mod host;
mod msr;
pub mod posted;
mod run;
mod setup;
pub mod tally;

pub use board::{Board, End, Halt, Station};
pub use console::{Console, Excerpt};
pub use host::{Host, Notify};
pub use run::{Stop, Vcpu};
pub use setup::{Wiring, wire};
