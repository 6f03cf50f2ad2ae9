//! Benchmarks that run in the machine: production code, measured, and what it is compared with.

pub mod reclaim;
