//! A machine for host tests, conformance and simulation, with sparse memory and simulated processors.

mod audit;
mod breakpoint;
mod conditions;
mod config;
mod guest;
mod machine;
mod memory;
mod server;

pub use audit::{Frame, Frames};
pub use breakpoint::Held;
pub use conditions::Conditions;
pub use config::Config;
pub use guest::{Exit, Guest};
pub use machine::HostMachine;
pub use memory::Memory;
pub use server::{Processor, Server, TdmrPlan};
