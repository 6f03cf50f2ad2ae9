//! QEMU as a library: describe a [`Machine`], start it, and talk to the [`Guest`] in it.
//!
//! Every machine is emulated (TCG), with OVMF as its firmware and its only console on the first serial port. Every wait
//! has a limit and says what it waited for; a guest dies with the process that started it.

mod arguments;
mod crash;
mod events;
mod guest;
mod machine;
mod transcript;

pub use events::{Event, events};
pub use guest::{Guest, SerialWriter, Tee};
pub use machine::{Boot, Machine, Stub};
