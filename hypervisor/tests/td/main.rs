//! TDs are built, run, shrunk and taken down, whatever fails on the way.

mod build;
mod console;
mod faults;
mod hypercall;
mod kit;
mod operator;
#[path = "../rig/mod.rs"]
mod rig;
mod short;
