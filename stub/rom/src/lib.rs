//! The SEAM stub: an SVM monitor in an option ROM that gives QEMU a machine with VMX, SEAM and TDX.
#![no_std]
