//! A simulated TDX server with simulated time: what it costs to end a TD at sizes that no developer's machine has.
//!
//! The host's production code (`mm`, `hypervisor`) runs against the emulated module (`stub-module`), and a cost model says
//! how long each of its SEAMCALLs, clears and interrupts takes ([`cost`]). CPUs have clocks of their own and wait for
//! each other where they share a cache line or a package's memory ([`machine`]). Beside it stands a model of what Linux
//! does ([`linux`]), by whose measured times the model is calibrated ([`calibration`]).
//!
//! It stands beside the emulated SEAM, on the same floor: production code never knows of it.

pub mod calibration;
pub mod cost;
mod error;
pub mod linux;
pub mod machine;
pub mod ours;
pub mod site;
mod way;

pub use error::Error;
pub use way::{Run, Setup, Way, simulate};
