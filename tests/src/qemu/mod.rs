//! QEMU as a library: describe a [`Machine`], start it, and talk to the [`Guest`] in it.
//!
//! Every machine is emulated (TCG), with OVMF as its firmware and its only console on one serial port. Every
//! wait has a limit and names what it waits for, and ends at once when the stub reports the machine's end on the debug
//! console. A guest dies with the process that started it.

mod arguments;
mod crash;
mod debugger;
mod edu;
mod events;
mod follow;
mod guest;
mod machine;
mod qtest;
mod transcript;
mod trouble;

pub use debugger::Debugger;
pub use edu::Edu;
pub use events::{Event, events};
pub use guest::{Ending, Guest, SerialWriter, Tee};
pub use machine::{Boot, Device, Firmware, Forward, Link, Machine, Shape, Stub, Vtd, Wire};
pub use qtest::Bus;
pub use trouble::Kind as Trouble;
