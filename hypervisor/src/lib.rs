//! `seamark.efi`: the machine layer below the host and its console. It contains CPUs, interrupts, memory, firmware
//! tables, PCI, the serial port and time, and implements the traits that [`host`] and [`console`] are written against.
#![no_std]

extern crate alloc;

#[cfg(feature = "bench")]
pub mod bench;
pub mod button;
pub mod cpu;
pub mod crash;
pub mod events;
pub mod exception;
pub mod firmware;
pub mod heap;
pub mod io_apic;
pub mod iommu;
pub mod logging;
pub mod machine;
pub mod memory;
pub mod metal;
pub mod msr;
pub mod passthrough;
pub mod password;
pub mod pci;
pub mod ring;
pub mod rtc;
pub mod runtime;
pub mod seamlog;
pub mod serial;
pub mod start;
pub mod time;
pub mod watchdog;
