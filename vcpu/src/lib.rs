//! One virtual CPU of a TD: enter, exit, serve the guest.
//!
//! [`Vcpu::run`] is the loop: TDH.VP.ENTER, decode the exit ([`exit`]), serve it, enter again, until the scheduler has
//! to act ([`Stop`]). [`ghci`] serves the guest's calls, `fault` maps the memory that it needs, and the crate [`devices`] has its
//! devices. The vCPUs of one TD share a [`Vm`]. A vCPU runs for a [`TimeSlice`] on a
//! [`PhysicalCpu`]; the host implements both traits. [`Waker`] is the door by which anything wakes a vCPU.
//!
//! Between an exit and the next entry, nothing is allocated and no lock is taken that another vCPU could hold, unless
//! the guest accessed a device, memory, or another vCPU.
#![no_std]

extern crate alloc;

pub mod apic;
mod branch;
pub mod clock;
mod console;
mod conversions;
mod current;
mod end;
pub mod exit;
mod fatal;
mod fault;
pub mod ghci;
mod interrupts;
mod msr;
pub mod pc;
mod peer;
pub mod posted;
pub mod quotes;
mod run;
mod serve;
mod setup;
mod slice;
mod state;
pub mod tally;
pub mod unanswered;
mod vcpu;
mod vm;
mod wake;
mod windows;

pub use console::{Console, Excerpt};
pub use current::Stop;
pub use devices::fw_cfg::Facts;
pub use end::End;
pub use fatal::FatalError;
pub use interrupts::{deliver, deliver_messages, press_power_button, receive_typed};
pub use peer::Peer;
pub use serve::{TdMemory, help_devices, serve_devices};
pub use setup::{Wiring, wire};
pub use slice::{PhysicalCpu, TimeSlice};
pub use state::{Event, Halt, VcpuState};
pub use vcpu::Vcpu;
pub use vm::Vm;
pub use wake::{Executor, Waker};
