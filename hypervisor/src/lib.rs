//! The host: CPUs, interrupts, TDs and their life, hypercalls, the console.
#![no_std]
