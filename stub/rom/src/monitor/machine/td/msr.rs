//! MSRs that the TD's bitmaps grant to the guest, and the monitor must emulate.

use iced_x86::Mnemonic;
use seam::abi::x86::vector;
use spin::Once;
use stub_module::Machine;
use stub_module::vcpu::{Field, Held, Vcpu};
use stub_rom::personality;
use stub_rom::vapic::{VirtualApic, Written};

use super::{Next, Td, VmExit, reason};
use crate::cpu;
use crate::monitor::machine::SeamCpu;
use crate::monitor::vmcb;

const TSC: u32 = 0x10;
const PAT: u32 = 0x277;
const X2APIC: core::ops::RangeInclusive<u32> = 0x800..=0x8FF;

/// Registers of every TD that the world switch loads and saves.
const SWITCHED: &[u32] = &[
    0x174,
    0x175,
    0x176,
    0xC000_0081,
    0xC000_0082,
    0xC000_0084,
    0xC000_0100,
    0xC000_0101,
    0xC000_0102,
];
/// IA32_TSC_AUX, which the guest reads directly.
const READABLE: &[u32] = &[0xC000_0103];

/// Returns the MSR permission map of TDs.
pub fn bitmap() -> u64 {
    static MAP: Once<u64> = Once::new();
    *MAP.call_once(|| {
        vmcb::msr_bitmap(
            |msr| SWITCHED.contains(&msr) || READABLE.contains(&msr),
            |msr| SWITCHED.contains(&msr),
        )
    })
}

/// Handles the MSR exit.
#[inline(never)]
pub fn access(td: &mut Td, machine: &SeamCpu, vcpu: &Vcpu<'_>) -> Next {
    let msr = td.gprs.0[1] as u32;
    let writes = td.vmcb.exit_info1 != 0;
    let length = match length(td, machine, vcpu, writes) {
        Ok(length) => length,
        Err(next) => return next,
    };
    if is_intercepted(machine, vcpu, msr, writes) {
        let reason = if writes { reason::WRMSR } else { reason::RDMSR };
        return Next::Exit(VmExit::by(reason, length));
    }
    if !writes {
        return match read(machine, vcpu, msr) {
            Some(value) => {
                td.gprs.set_edx_eax(value);
                td.vmcb.save.rax = td.gprs.0[0];
                td.skip(length)
            }
            None => td.raise(vector::GP, Some(0)),
        };
    }
    match write(vcpu, msr, td.gprs.edx_eax()) {
        Written::Done => td.skip(length),
        Written::Gp => td.raise(vector::GP, Some(0)),
        Written::Exit(offset) => {
            td.vmcb.skip(length);
            Next::Exit(VmExit::of(reason::APIC_WRITE).qualified(offset))
        }
    }
}

/// Returns the length of the RDMSR or WRMSR at the instruction pointer, which usually has no prefixes.
fn length(td: &mut Td, machine: &SeamCpu, vcpu: &Vcpu<'_>, writes: bool) -> Result<usize, Next> {
    const RDMSR: u32 = 0x320F;
    const WRMSR: u32 = 0x300F;
    let (plain, mnemonic) = if writes {
        (WRMSR, Mnemonic::Wrmsr)
    } else {
        (RDMSR, Mnemonic::Rdmsr)
    };
    if td.opcode(machine).map(|opcode| opcode & 0xFFFF) == Some(plain) {
        return Ok(2);
    }
    let instruction = td.instruction(machine, vcpu, |i| i.mnemonic() == mnemonic)?;
    Ok(instruction.len())
}

/// Returns whether the TD's MSR bitmaps intercept the access: low reads, high reads, low writes, high writes.
fn is_intercepted(machine: &SeamCpu, vcpu: &Vcpu<'_>, msr: u32, writes: bool) -> bool {
    const QUARTER: u64 = 1024;
    let high = match msr {
        0..0x2000 => 0,
        0xC000_0000..0xC000_2000 => 1,
        _ => return true,
    };
    let bitmap = machine
        .platform()
        .without_keyid(vcpu.vmcs(Field::MSR_BITMAP));
    let quarter = (u64::from(writes) * 2 + high) * QUARTER;
    let bit = u64::from(msr & 0x1FFF);
    let word = machine.word(bitmap + quarter + bit / 64 * 8);
    word >> (bit % 64) & 1 != 0
}

/// Returns the storage of the guest's value of an MSR that has no effect here.
fn kept(msr: u32) -> Option<Held> {
    Some(match msr {
        0x48 => Held::SpecCtrl,
        0xE1 => Held::UmwaitControl,
        0x122 => Held::TsxCtrl,
        0x1C4 => Held::Xfd,
        0x1C5 => Held::XfdErr,
        0x600 => Held::DsArea,
        0xDA0 => Held::Xss,
        0x14CF => Held::LbrDepth,
        0x1B01 => Held::UarchMiscCtl,
        0xC000_0103 => Held::TscAux,
        _ => return None,
    })
}

/// Executes RDMSR. Returns `None` for #GP(0).
fn read(machine: &SeamCpu, vcpu: &Vcpu<'_>, msr: u32) -> Option<u64> {
    const PRED_CMD: u32 = 0x49;
    const FLUSH_CMD: u32 = 0x10B;
    Some(match msr {
        PRED_CMD | FLUSH_CMD => return None,
        // TCG provides the counter only as an instruction.
        TSC => cpu::rdtsc().wrapping_add(vcpu.vmcs(Field::TSC_OFFSET)),
        PAT => vcpu.vmcs(Field::PAT),
        cpu::MSR_EFER => vcpu.vmcs(Field::EFER),
        _ if X2APIC.contains(&msr) => VirtualApic::of(vcpu).read_msr(msr),
        _ => match kept(msr) {
            Some(held) => vcpu.held(held),
            None => personality::constant(msr, &machine.world().facts)
                .unwrap_or_else(|| machine.rdmsr(machine.number(), msr)),
        },
    })
}

/// Executes WRMSR.
fn write(vcpu: &Vcpu<'_>, msr: u32, value: u64) -> Written {
    const TSC_AUX: u32 = 0xC000_0103;
    match msr {
        0x49 | 0x10B if value & !1 == 0 => Written::Done,
        PAT if is_pat(value) => {
            vcpu.set_vmcs(Field::PAT, value);
            Written::Done
        }
        TSC_AUX if value >> 32 != 0 => Written::Gp,
        _ if X2APIC.contains(&msr) => VirtualApic::of(vcpu).write_msr(msr, value),
        _ => match kept(msr) {
            Some(held) => {
                vcpu.set_held(held, value);
                if held == Held::TscAux {
                    super::extended::set_tsc_aux(value);
                }
                Written::Done
            }
            None => Written::Gp,
        },
    }
}

/// Returns whether all eight fields of a PAT are memory types.
fn is_pat(value: u64) -> bool {
    value
        .to_le_bytes()
        .iter()
        .all(|&kind| matches!(kind, 0 | 1 | 4..=7))
}
