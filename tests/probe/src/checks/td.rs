//! TDs that run.

use super::private::team;
use crate::td::guest::program;
use crate::td::{TDCALL, Td};
use crate::{Check, expect};

/// The vCPU comes from the reset vector to 64-bit mode, calls the host and goes on.
pub fn runs() -> Check {
    let team = team()?;
    let td = Td::build(team, 1, program::COUNT)?;
    for count in 1..=100 {
        td.hear(0, "what the guest says", count)?;
    }
    td.end(team)
}

/// Native, emulated, #VE, #UD, #GP and TD exit.
pub fn exceptions() -> Check {
    const EFER: u64 = 0xD01;
    let team = team()?;
    let td = Td::build(team, 2, program::EXCEPTIONS)?;
    for vcpu in 0..2 {
        let exit = td.enter(vcpu);
        expect("the exit's reason", exit.reason(), TDCALL)?;
        expect("GPAW", exit.said(), 48)?;
        expect("the vCPU's index", exit.0.r13, vcpu as u64)?;
        for (what, reason) in [
            ("#VE of HLT", 12),
            ("#VE of CPUID", 10),
            ("#VE of RDMSR", 31),
            ("#VE of IN", 30),
            ("#VE of WBINVD", 54),
            ("#VE of VMCALL", 18),
            ("EFER", EFER),
            ("#UD", 6),
            ("#GP", 13),
            ("the end", 0x600D),
        ] {
            td.hear(vcpu, what, reason)?;
        }
        const TRIPLE_FAULT: u64 = 0x4000_0001_0000_0002;
        expect("a triple fault", td.enter(vcpu).reason(), TRIPLE_FAULT)?;
    }
    td.end(team)
}
