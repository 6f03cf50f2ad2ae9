//! Whole-system tests under QEMU, and the QEMU driver that they share with xtask.

pub mod programs;
