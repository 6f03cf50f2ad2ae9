//! Benchmarks that run in the machine: production code, measured, and what it is compared with. `seamark.efi` has none of
//! it.

#[cfg(feature = "bench")]
pub mod machine;
pub mod reclaim;
