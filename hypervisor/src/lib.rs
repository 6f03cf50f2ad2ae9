//! `seamark.efi`: the machine beneath the host and its console. CPUs, interrupts, memory, firmware tables, PCI, the serial
//! port, time; and the implementation of the traits that [`host`] and [`console`] are written against.
#![no_std]

extern crate alloc;

#[cfg(feature = "bench")]
pub mod bench;
pub mod cpu;
pub mod crash;
pub mod exception;
pub mod firmware;
pub mod heap;
pub mod io_apic;
pub mod logging;
pub mod machine;
pub mod memory;
pub mod metal;
pub mod msr;
pub mod pci;
pub mod ring;
pub mod rtc;
pub mod seamlog;
pub mod serial;
pub mod start;
pub mod time;
