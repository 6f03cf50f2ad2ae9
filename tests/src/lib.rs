//! Whole-system tests under QEMU, and the QEMU driver that they share with xtask.

pub mod console;
pub mod media;
pub mod network;
pub mod programs;
pub mod qemu;
pub mod scenarios;
pub mod ssh;
