//! The local APIC's registers in memory.

use stub_rom::apic;
use stub_rom::insn::{Transfer, finish_load};

use super::finish;
use crate::monitor::guest::Fault;
use crate::monitor::hardware::Hardware;
use crate::monitor::lp::Lp;
use crate::monitor::smp;
use crate::report;

/// Handles an access to the page of the local APIC at `pa`.
pub fn access(lp: &mut Lp, pa: u64) {
    let offset = (pa - apic::BASE) as u32;
    let Some(instruction) = lp.instruction() else {
        lp.inject(Fault::InvalidOpcode);
        return;
    };
    match Transfer::of(&instruction, &lp.gprs) {
        Some(Transfer::Load {
            register,
            size,
            signed,
        }) => {
            let value = lp.apic.read_memory(offset, &Hardware) >> (offset % 4 * 8);
            finish_load(&mut lp.gprs, register, size, signed, u64::from(value));
        }
        Some(Transfer::Store { value, .. }) => {
            let ipi = lp.apic.write_memory(offset, value as u32, &mut Hardware);
            super::msr::publish_station(lp);
            if let Some(ipi) = ipi {
                smp::send(lp, ipi);
            }
        }
        None => {
            // Drivers access an APIC only by moves, and the manual allows nothing else.
            report::violation("apic_access", lp.number, lp.vmcb.save.rip, pa);
        }
    }
    finish(lp, instruction.len(), Ok(()));
}
