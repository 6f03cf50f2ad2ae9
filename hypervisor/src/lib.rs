//! The host: CPUs, interrupts, TDs and their life, hypercalls, the console.
#![no_std]

extern crate alloc;

pub mod console;
