//! Races for a TD's life: the production types with their locks and atomics, on CPUs that a scheduler interleaves in
//! many reproducible orders.
//!
//! Each race describes actions of CPUs at the same time, one of which terminates the TD. In every order, no TD is left
//! half dead, no frame and no HKID is lost, no HKID is released with a vCPU associated, and the module is asked nothing
//! that it must refuse.
//!
//! `devices` races a TD's functions, which access its memory and interrupt it, against all that takes the memory away.
//!
//! `help` races CPUs that do the work of a TD's devices against all that makes them leave.
//!
//! `networks` races two TDs of one network: each sends to the other and takes back memory of its rings, and one ends.
//!
//! `wakes` races for a halted vCPU instead: in every order, no wake-up is lost.

mod actors;
mod against;
mod caller;
mod devices;
mod explore;
mod help;
mod machine;
mod networks;
mod running;
#[path = "../td/sample.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod sample;
mod wakes;
