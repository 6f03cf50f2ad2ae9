//! Tests that TDs are built, run, shrunk and terminated, whatever fails on the way.

mod bench;
mod build;
mod choices;
mod debug;
mod end_faults;
mod faults;
mod files;
#[path = "../../../../firmware/base/tests/kit/head.rs"]
mod head;
mod help;
mod hypercall;
mod incidents;
mod join;
mod kit;
mod large;
mod lost;
mod notes;
mod passthrough;
#[path = "../rig/mod.rs"]
mod rig;
mod rules;
mod run;
mod short;
mod shrink;
mod site;
