//! Control registers: the CR4 bits that exist only in its shadow, and the bits that VMX operation fixes.

use iced_x86::{Mnemonic, OpKind, Register};
use seam::abi::x86::{cr0, cr4, efer};
use stub_rom::insn::decode;
use stub_rom::personality::SUPPORTED_CR4;

use super::finish;
use crate::monitor::guest::Fault;
use crate::monitor::lp::Lp;
use crate::monitor::panic;
use crate::monitor::vmcb;

/// The bits that can't be set in a VMCB.
const SHADOWED: u64 = cr4::VMXE;

/// Handles MOV to CR4. OVMF executes it very often, so the usual encoding is recognised without the full decoder.
#[inline(never)]
pub fn write_cr4(lp: &mut Lp) {
    let (bytes, length) = lp.code();
    let result = match bytes {
        // mov cr4, r32 or r64 without REX.
        [0x0F, 0x22, modrm @ 0xE0..=0xE7, ..] if length >= 3 => {
            let value = lp.gprs.0[usize::from(modrm & 7)];
            set_cr4(lp, value).map(|()| 3)
        }
        _ => {
            let rip = lp.vmcb.save.rip;
            match decode(&bytes[..length], rip, lp.bitness()) {
                Some(i) if i.mnemonic() == Mnemonic::Mov && i.op0_register() == Register::CR4 => {
                    let value = lp.gprs.get(i.op1_register()).unwrap_or(0);
                    set_cr4(lp, value).map(|()| i.len())
                }
                _ => Err(Fault::InvalidOpcode),
            }
        }
    };
    match result {
        Ok(length) => finish(lp, length, Ok(())),
        Err(fault) => finish(lp, 0, Err(fault)),
    }
}

fn set_cr4(lp: &mut Lp, value: u64) -> Result<(), Fault> {
    let value = if lp.is_in_long_mode() {
        value
    } else {
        value & 0xFFFF_FFFF
    };
    let (_, fixed) = lp.vmx.fixed_bits();
    if value & !SUPPORTED_CR4 != 0
        || value & fixed != fixed
        || lp.vmcb.save.efer & efer::LMA != 0 && value & cr4::PAE == 0
    {
        return Err(Fault::Protection);
    }
    lp.cr4_shadow = value & SHADOWED;
    lp.vmcb.save.cr4 = value & !SHADOWED;
    // Reads only need emulation while the shadow differs from the register.
    if lp.cr4_shadow == 0 {
        lp.vmcb.intercept_cr &= !vmcb::CR4_READ;
    } else {
        lp.vmcb.intercept_cr |= vmcb::CR4_READ;
    }
    Ok(())
}

/// Handles MOV from CR4.
#[inline(never)]
pub fn read_cr4(lp: &mut Lp) {
    let Some(instruction) = lp.instruction() else {
        lp.inject(Fault::InvalidOpcode);
        return;
    };
    let value = lp.cr4();
    lp.gprs.set(instruction.op0_register(), value);
    finish(lp, instruction.len(), Ok(()));
}

/// Intercepts writes to CR0 while the processor is in VMX operation, which fixes some of its bits.
pub fn watch_cr0(lp: &mut Lp) {
    if lp.vmx.is_on() {
        lp.vmcb.intercept_cr |= vmcb::CR0_WRITE;
    } else {
        lp.vmcb.intercept_cr &= !vmcb::CR0_WRITE;
    }
}

/// Handles MOV to CR0, LMSW or CLTS in VMX operation.
#[inline(never)]
pub fn write_cr0(lp: &mut Lp) {
    const LMSW: u64 = cr0::PE | cr0::MP | cr0::EM | cr0::TS;
    const DEFINED: u64 = LMSW | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::NW | cr0::CD | cr0::PG;
    let Some(instruction) = lp.instruction() else {
        lp.inject(Fault::InvalidOpcode);
        return;
    };
    let now = lp.vmcb.save.cr0;
    let operand = match instruction.mnemonic() {
        Mnemonic::Clts => Ok(0),
        Mnemonic::Mov => Ok(lp.gprs.get(instruction.op1_register()).unwrap_or(0)),
        Mnemonic::Lmsw if instruction.op0_kind() == OpKind::Register => {
            Ok(lp.gprs.get(instruction.op0_register()).unwrap_or(0))
        }
        Mnemonic::Lmsw => lp.operand_address(&instruction, 0).and_then(|va| {
            let mut word = [0; 2];
            lp.read(va, &mut word)?;
            Ok(u64::from(u16::from_le_bytes(word)))
        }),
        _ => panic::stop(format_args!("an unknown instruction wrote CR0")),
    };
    let result = operand.and_then(|operand| {
        let value = match instruction.mnemonic() {
            Mnemonic::Clts => now & !cr0::TS,
            Mnemonic::Lmsw => now & !(LMSW & !cr0::PE) | operand & LMSW,
            _ => operand & (DEFINED | 0xFFFF_FFFF_0000_0000) | cr0::ET,
        };
        let (fixed, _) = lp.vmx.fixed_bits();
        let nw_without_cd = value & cr0::NW != 0 && value & cr0::CD == 0;
        if value & fixed != fixed || value >> 32 != 0 || nw_without_cd {
            return Err(Fault::Protection);
        }
        lp.vmcb.save.cr0 = value;
        Ok(())
    });
    finish(lp, instruction.len(), result);
}
