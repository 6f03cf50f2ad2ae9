//! The bare-metal hypervisor.
#![no_std]
#![no_main]
