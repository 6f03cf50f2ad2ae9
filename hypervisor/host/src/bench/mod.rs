//! Benchmarks of the host's own code, each on a TD of its own.

pub mod reclaim;
pub mod seamcalls;
