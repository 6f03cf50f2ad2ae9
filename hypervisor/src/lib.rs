//! The host: CPUs, interrupts, TDs and their life, hypercalls, the console.
#![no_std]

extern crate alloc;

pub mod console;
pub mod cpu;
pub mod heap;
pub mod logging;
pub mod ring;
pub mod serial;
pub mod start;
pub mod sync;
pub mod time;
