//! TDs are built, run, shrunk and taken down, whatever fails on the way.

mod advice;
mod bench;
mod build;
mod console;
mod debug;
mod end_faults;
mod faults;
mod files;
#[path = "../../../firmware/base/tests/kit/head.rs"]
mod head;
mod hypercall;
mod join;
mod kit;
mod operator;
#[path = "../rig/mod.rs"]
mod rig;
mod rules;
mod run;
mod seam_bench;
mod short;
mod shrink;
mod shutdown;
