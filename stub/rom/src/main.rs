//! The SEAM stub's program: an EFI driver that slips a monitor under the firmware which loaded it.
//!
//! [`firmware`] talks to UEFI and QEMU while there is firmware to talk to; [`relocate`] moves the program into
//! reserved memory; [`monitor`] is what runs there for good.
#![no_std]
#![no_main]

extern crate alloc;

mod cpu;
mod emulator;
mod firmware;
mod fwcfg;
mod memory;
mod monitor;
mod relocate;
mod report;

#[global_allocator]
static HEAP: linked_list_allocator::LockedHeap = linked_list_allocator::LockedHeap::empty();
