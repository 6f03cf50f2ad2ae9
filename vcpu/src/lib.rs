//! One virtual CPU of a TD: enter, exit, serve the guest.
//!
//! [`Vcpu::run`] is the loop: TDH.VP.ENTER, decode the exit ([`exit`]), serve it, enter again, until the scheduler has
//! to act ([`Stop`]). [`ghci`] serves the guest's calls, `fault` maps the memory that it needs, and [`devices`] has its
//! devices. The vCPUs of one TD share a [`Vm`]. The host implements the trait [`Host`].
//!
//! Between an exit and the next entry, nothing is allocated and no lock is taken that another vCPU could hold, unless
//! the guest accessed a device, memory, or another vCPU.
#![no_std]

extern crate alloc;

pub mod apic;
mod branch;
pub mod clock;
mod console;
mod current;
pub mod devices;
mod end;
pub mod exit;
mod fatal;
mod fault;
pub mod ghci;
mod host;
mod msr;
pub mod posted;
mod run;
mod setup;
pub mod tally;
mod vcpu;
mod vm;

pub use console::{Console, Excerpt};
pub use current::Stop;
pub use end::End;
pub use fatal::FatalError;
pub use host::{Host, Notify};
pub use setup::{Wiring, wire};
pub use vcpu::Vcpu;
pub use vm::{Halt, VcpuState, Vm};
