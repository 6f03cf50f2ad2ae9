//! Physical memory, page tables, and a TD's private memory.
#![no_std]

extern crate alloc;

pub mod frames;
pub mod pages;
pub mod private;
pub mod shared;
pub mod tdmr;
