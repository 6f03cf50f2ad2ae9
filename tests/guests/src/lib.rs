//! The guests' names, for the programs that build and run them. The guests are in `src/bin`.
#![no_std]

#[cfg(feature = "bare")]
pub mod gone;
#[cfg(feature = "bare")]
pub mod model;
#[cfg(feature = "bare")]
pub mod nvme;
pub mod opcodes;
#[cfg(feature = "bare")]
pub mod pci;
#[cfg(feature = "bare")]
pub mod release;
#[cfg(feature = "bare")]
pub mod sandbox;
#[cfg(feature = "bare")]
pub mod tries;
#[cfg(feature = "bare")]
pub mod virtio;

/// Every guest: the name of its program, and of its image without `.fd`.
pub const ALL: &[&str] = &[
    "hello",
    "smp",
    "mem",
    "hostile",
    "calls",
    "fatal",
    "control",
    "spin",
    "initial",
    "tdcall",
    "cpuid",
    "msrs",
    "exits",
    "registers",
    "memory",
    "interrupts",
    "count",
    "hammer",
    "chaos",
    "drive",
    "queues",
];
