//! Scripted guests that run on the emulated module, through the run loop.

mod busy;
mod calls;
mod ends;
mod fw_cfg;
mod interrupts;
#[path = "../kit/mod.rs"]
mod kit;
mod memory;
mod mirror;
mod passthrough;
mod peers;
mod virtio;
mod work;

use kit::{Rig, Shape, Td, call};
use seam::abi::Gprs;

const CPUID: u64 = 0xA;
const HLT: u64 = 0xC;
const IO: u64 = 0x1E;
const RDMSR: u64 = 0x1F;
const WRMSR: u64 = 0x20;
const MMIO: u64 = 0x30;
const MAP_GPA: u64 = 0x1_0001;
const GET_QUOTE: u64 = 0x1_0002;
const FATAL: u64 = 0x1_0003;
const EVENT_NOTIFY: u64 = 0x1_0004;
const SERVICE: u64 = 0x1_0005;

const INVALID: u64 = 1 << 63;
const MISALIGNED: u64 = 1 << 63 | 2;
const UNSUPPORTED: u64 = 1 << 63 | 3;

fn with_td(test: impl FnOnce(&Td<'_>)) {
    with_shape(&Shape::default(), test);
}

fn with_shape(shape: &Shape, test: impl FnOnce(&Td<'_>)) {
    let rig = Rig::new("patterns");
    test(&Td::new(&rig, shape));
    rig.audit();
}

/// Returns the answer to one call.
fn one(td: &Td<'_>, function: u64, operands: [u64; 4]) -> Gprs {
    let answers = td.ask(&[call(function, operands)]);
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].rax, 0, "TDG.VP.VMCALL itself succeeds");
    answers[0]
}
