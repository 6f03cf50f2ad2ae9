//! The host: CPUs, interrupts, TDs and their life, hypercalls, the console.
#![no_std]

extern crate alloc;

pub mod bench;
pub mod console;
pub mod cpu;
pub mod crash;
pub mod firmware;
pub mod heap;
pub mod hypercall;
pub mod io_apic;
pub mod logging;
pub mod machine;
pub mod memory;
pub mod metal;
pub mod pci;
pub mod platform;
pub mod ring;
pub mod rtc;
pub mod sched;
pub mod seamlog;
pub mod serial;
pub mod start;
pub mod td;
pub mod tdx;
pub mod time;
