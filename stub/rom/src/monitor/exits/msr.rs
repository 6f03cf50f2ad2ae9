//! RDMSR and WRMSR of registers that software may not access in the hardware beneath.

use seam::abi::x86::msr::{APIC_BASE, TSC_DEADLINE};
use seam::abi::x86::{cr0, efer};
use stub_rom::apic::Gp;
use stub_rom::insn::gpr;
use stub_rom::personality::constant;

use super::finish;
use crate::cpu::{self, EFER_SVME};
use crate::monitor::guest::Fault;
use crate::monitor::hardware::Hardware;
use crate::monitor::lp::Lp;
use crate::monitor::smp;

const TSC_ADJUST: u32 = 0x3B;
const SPEC_CTRL: u32 = 0x48;
const PRED_CMD: u32 = 0x49;
const BIOS_UPDT_TRIG: u32 = 0x79;
const BIOS_SIGN_ID: u32 = 0x8B;
const FLUSH_CMD: u32 = 0x10B;
const TSX_CTRL: u32 = 0x122;
const MISC_ENABLE: u32 = 0x1A0;
const X2APIC: core::ops::RangeInclusive<u32> = 0x800..=0x8FF;

/// The microcode revision in the upper half, in the format of IA32_BIOS_SIGN_ID.
const MICROCODE: u64 = 0x2B00_0643 << 32;

/// Handles the MSR exit.
#[inline(never)]
pub fn exit(lp: &mut Lp) {
    let msr = lp.gprs.0[gpr::RCX] as u32;
    let result = if lp.vmcb.exit_info1 == 0 {
        read(lp, msr).map(|value| lp.gprs.set_edx_eax(value))
    } else {
        let value = lp.gprs.edx_eax();
        write(lp, msr, value)
    };
    finish(lp, 2, result);
}

fn read(lp: &mut Lp, msr: u32) -> Result<u64, Fault> {
    Ok(match msr {
        APIC_BASE => lp.apic.base(),
        TSC_ADJUST => lp.tsc_adjust,
        SPEC_CTRL => lp.spec_ctrl,
        BIOS_SIGN_ID => MICROCODE,
        TSX_CTRL => lp.tsx_ctrl,
        MISC_ENABLE => lp.misc_enable,
        TSC_DEADLINE => lp.apic.deadline(cpu::rdtsc()),
        cpu::MSR_EFER => lp.vmcb.save.efer & !EFER_SVME,
        _ if X2APIC.contains(&msr) => lp
            .apic
            .read_msr(msr, &Hardware)
            .map_err(|Gp| Fault::Protection)?,
        _ => constant(msr, &lp.world.facts).ok_or(Fault::Protection)?,
    })
}

fn write(lp: &mut Lp, msr: u32, value: u64) -> Result<(), Fault> {
    match msr {
        APIC_BASE => {
            lp.apic
                .set_base(value, &mut Hardware)
                .map_err(|Gp| Fault::Protection)?;
            publish_station(lp);
        }
        TSC_ADJUST => lp.tsc_adjust = value,
        SPEC_CTRL => lp.spec_ctrl = value,
        TSX_CTRL => lp.tsx_ctrl = value,
        MISC_ENABLE => lp.misc_enable = value,
        PRED_CMD | FLUSH_CMD | BIOS_UPDT_TRIG => {}
        BIOS_SIGN_ID if value == 0 => {}
        TSC_DEADLINE => lp.apic.set_deadline(value, cpu::rdtsc(), &mut Hardware),
        cpu::MSR_EFER => set_efer(lp, value)?,
        _ if X2APIC.contains(&msr) => {
            let ipi = lp
                .apic
                .write_msr(msr, value, &mut Hardware)
                .map_err(|Gp| Fault::Protection)?;
            if let Some(ipi) = ipi {
                smp::send(lp, ipi);
            }
        }
        _ => return Err(Fault::Protection),
    }
    Ok(())
}

/// Publishes the ids of this processor's APIC to the other processors.
pub fn publish_station(lp: &Lp) {
    *lp.shared().station.lock() = lp.apic.station();
}

/// Sets EFER as a processor without SVM has it. The real EFER keeps SVME.
fn set_efer(lp: &mut Lp, value: u64) -> Result<(), Fault> {
    let current = &mut lp.vmcb.save.efer;
    let changes_mode = (value ^ *current) & efer::LME != 0 && lp.vmcb.save.cr0 & cr0::PG != 0;
    if value & !(efer::SCE | efer::LME | efer::LMA | efer::NXE) != 0 || changes_mode {
        return Err(Fault::Protection);
    }
    *current = value & (efer::SCE | efer::LME | efer::NXE) | *current & efer::LMA | EFER_SVME;
    Ok(())
}
