//! The SEAM stub's program: an EFI driver that installs a monitor beneath the firmware that loaded it.
//!
//! [`firmware`] calls UEFI and QEMU before the dive; [`relocate`] moves the program into reserved memory; [`monitor`]
//! runs there from then on.
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
