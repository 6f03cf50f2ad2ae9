//! Control register writes of the guest: VMX's masks and shadows, and the checks of the processor.

use iced_x86::{Instruction, Mnemonic, Register};
use seam::abi::x86::cr0::{CD, EM, ET, MP, NW, PE, PG, TS};
use seam::abi::x86::cr4::{PAE, VMXE};
use seam::abi::x86::{efer, vector};
use stub_module::vcpu::{Field, Vcpu};
use stub_rom::personality::SUPPORTED_CR4;
use stub_rom::vapic::VirtualApic;

use super::state;
use super::{Next, Td, VmExit, reason};
use crate::monitor::machine::SeamCpu;
use crate::monitor::vmcb::{Segment, exit};

/// CR0 bits that LMSW writes.
const LMSW: u64 = PE | MP | EM | TS;
/// Exit qualification: access types.
const ACCESS_CLTS: u64 = 2 << 4;
const ACCESS_LMSW: u64 = 3 << 4;
/// Exit qualification: the operand of LMSW is in memory.
const LMSW_MEMORY: u64 = 1 << 6;

/// A write: the new value of the register, and the qualification of a possible exit.
struct Write {
    value: u64,
    qualification: u64,
    length: usize,
}

/// Returns whether the instruction writes to this control register.
fn writes(instruction: &Instruction, cr: Register) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Clts | Mnemonic::Lmsw => cr == Register::CR0,
        Mnemonic::Mov => instruction.op0_register() == cr,
        _ => false,
    }
}

/// Handles the exit for a write to CR0, CR4 or CR8.
#[inline(never)]
pub fn access(td: &mut Td, machine: &SeamCpu, vcpu: &Vcpu<'_>) -> Next {
    let cr = match td.vmcb.exit_code {
        exit::CR0_WRITE => Register::CR0,
        exit::CR4_WRITE => Register::CR4,
        _ => Register::CR8,
    };
    let instruction = match td.instruction(machine, vcpu, |i| writes(i, cr)) {
        Ok(instruction) => instruction,
        Err(next) => return next,
    };
    let length = instruction.len();
    let cr0 = td.vmcb.save.cr0;
    match instruction.mnemonic() {
        Mnemonic::Clts => write_cr0(
            td,
            vcpu,
            &Write {
                value: cr0 & !TS,
                qualification: ACCESS_CLTS,
                length,
            },
        ),
        Mnemonic::Lmsw => {
            let (source, from) = match td.gprs.get(instruction.op0_register()) {
                Some(source) => (source, 0),
                None => match td.word_operand(machine, vcpu, &instruction) {
                    Ok(source) => (source.into(), LMSW_MEMORY),
                    Err(next) => return next,
                },
            };
            // LMSW can set PE, but not clear it.
            let value = cr0 & !LMSW | source & LMSW | cr0 & PE;
            let qualification = ACCESS_LMSW | from | (source & 0xFFFF) << 16;
            write_cr0(
                td,
                vcpu,
                &Write {
                    value,
                    qualification,
                    length,
                },
            )
        }
        _ => {
            let register = instruction.op1_register();
            let value = td.gprs.get(register).unwrap_or(0);
            let number = register.full_register().number() as u64;
            let write = |cr: u64| Write {
                value,
                qualification: cr | number << 8,
                length,
            };
            match cr {
                Register::CR0 => write_cr0(td, vcpu, &write(0)),
                Register::CR4 => write_cr4(td, vcpu, &write(4)),
                _ => write_cr8(td, vcpu, value, length),
            }
        }
    }
}

/// Applies the masks. Returns the exit that they cause, or else the value of the register.
fn masked(
    vcpu: &Vcpu<'_>,
    write: &Write,
    real: u64,
    (mask, shadow): (Field, Field),
) -> Result<u64, Next> {
    let (mask, shadow) = (vcpu.vmcs(mask), vcpu.vmcs(shadow));
    // LMSW and CLTS only affect their own bits.
    let concerned = match write.qualification & (3 << 4) {
        ACCESS_CLTS => TS,
        ACCESS_LMSW => LMSW,
        _ => u64::MAX,
    };
    if (write.value ^ shadow) & mask & concerned != 0 {
        let exit = VmExit::by(reason::CR_ACCESS, write.length);
        return Err(Next::Exit(exit.qualified(write.qualification)));
    }
    Ok(real & mask | write.value & !mask)
}

fn write_cr0(td: &mut Td, vcpu: &Vcpu<'_>, write: &Write) -> Next {
    let (cr0, cr4) = (td.vmcb.save.cr0, td.vmcb.save.cr4);
    let new = match masked(vcpu, write, cr0, (Field::CR0_MASK, Field::CR0_SHADOW)) {
        Ok(new) => new | ET,
        Err(exit) => return exit,
    };
    let efer = vcpu.vmcs(Field::EFER);
    let save = &mut td.vmcb.save;
    let enables = new & !cr0 & PG != 0;
    let disables = cr0 & !new & PG != 0;
    let in_64_bit = save.efer & efer::LMA != 0 && save.cs.attributes & Segment::LONG != 0;
    if new & (PG | PE) == PG
        || new & (NW | CD) == NW
        || enables && efer & efer::LME != 0 && cr4 & PAE == 0
        || disables && in_64_bit
    {
        return td.raise(vector::GP, Some(0));
    }
    if enables || disables {
        let active = if enables && efer & efer::LME != 0 {
            efer::LMA
        } else {
            0
        };
        save.efer = state::vmcb_efer(efer & !efer::LMA | active, new);
    }
    save.cr0 = new;
    td.vmcb.tlb_control = 1;
    td.skip(write.length)
}

fn write_cr4(td: &mut Td, vcpu: &Vcpu<'_>, write: &Write) -> Next {
    let cr4 = td.vmcb.save.cr4;
    let real = vcpu.vmcs(Field::CR4) & !SUPPORTED_CR4 | cr4;
    let new = match masked(vcpu, write, real, (Field::CR4_MASK, Field::CR4_SHADOW)) {
        Ok(new) => new,
        Err(exit) => return exit,
    };
    let leaves_pae = cr4 & !new & PAE != 0 && td.vmcb.save.efer & efer::LMA != 0;
    if new & !SUPPORTED_CR4 != 0 || leaves_pae {
        return td.raise(vector::GP, Some(0));
    }
    td.vmcb.save.cr4 = new & SUPPORTED_CR4 & !VMXE;
    td.vmcb.tlb_control = 1;
    td.skip(write.length)
}

fn write_cr8(td: &mut Td, vcpu: &Vcpu<'_>, value: u64, length: usize) -> Next {
    if value & !0xF != 0 {
        return td.raise(vector::GP, Some(0));
    }
    VirtualApic::of(vcpu).set_task_priority((value as u8) << 4);
    td.vmcb.interrupt_control = td.vmcb.interrupt_control & !0xFF | value;
    td.skip(length)
}
