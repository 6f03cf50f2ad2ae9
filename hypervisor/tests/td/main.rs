//! TDs are built, run, shrunk and taken down, whatever fails on the way.

mod build;
mod faults;
mod hypercall;
mod kit;
#[path = "../rig/mod.rs"]
mod rig;
mod short;
