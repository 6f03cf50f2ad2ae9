//! VMX instructions: their operands, and their execution by the model.

use iced_x86::{Instruction, Mnemonic, OpKind};
use stub_rom::vmx::{Cpu, Outcome};

use crate::monitor::guest::Fault;
use crate::monitor::lp::Lp;

/// Executes a VMX instruction. Any other instruction is an invalid opcode.
#[inline(never)]
pub fn execute(lp: &mut Lp, i: &Instruction) -> Result<(), Fault> {
    let mnemonic = i.mnemonic();
    if !matches!(
        mnemonic,
        Mnemonic::Vmxon
            | Mnemonic::Vmxoff
            | Mnemonic::Vmclear
            | Mnemonic::Vmptrld
            | Mnemonic::Vmptrst
            | Mnemonic::Vmread
            | Mnemonic::Vmwrite
            | Mnemonic::Vmlaunch
            | Mnemonic::Vmresume
            | Mnemonic::Invept
            | Mnemonic::Invvpid
    ) {
        return Err(Fault::InvalidOpcode);
    }
    if let Err(outcome) = lp.vmx.may_execute(&cpu(lp), mnemonic == Mnemonic::Vmxon) {
        return lp.finish_vmx(outcome);
    }
    let memory = &mut lp.data();
    let outcome = match mnemonic {
        Mnemonic::Vmxon => {
            let pa = pointer(lp, i)?;
            lp.vmx.vmxon(pa, memory)
        }
        Mnemonic::Vmxoff => lp.vmx.vmxoff(),
        Mnemonic::Vmclear => {
            let pa = pointer(lp, i)?;
            lp.vmx.vmclear(pa, memory)
        }
        Mnemonic::Vmptrld => {
            let pa = pointer(lp, i)?;
            lp.vmx.vmptrld(pa, memory)
        }
        Mnemonic::Vmptrst => {
            let va = lp.operand_address(i, 0)?;
            lp.write(va, &lp.vmx.vmptrst().to_le_bytes())?;
            Outcome::Succeed
        }
        Mnemonic::Vmread => {
            let field = lp.gprs.get(i.op1_register()).unwrap_or(0);
            match lp.vmx.vmread(field, memory) {
                Err(outcome) => outcome,
                Ok(value) if i.op0_kind() == OpKind::Register => {
                    lp.gprs.set(i.op0_register(), value);
                    Outcome::Succeed
                }
                Ok(value) => {
                    let va = lp.operand_address(i, 0)?;
                    lp.write(va, &value.to_le_bytes())?;
                    Outcome::Succeed
                }
            }
        }
        Mnemonic::Vmwrite => {
            let field = lp.gprs.get(i.op0_register()).unwrap_or(0);
            let value = if i.op1_kind() == OpKind::Register {
                lp.gprs.get(i.op1_register()).unwrap_or(0)
            } else {
                lp.read_u64(lp.operand_address(i, 1)?)?
            };
            lp.vmx.vmwrite(field, value, memory)
        }
        Mnemonic::Invept | Mnemonic::Invvpid => {
            let kind = lp.gprs.get(i.op0_register()).unwrap_or(0);
            let va = lp.operand_address(i, 1)?;
            let descriptor = [lp.read_u64(va)?, lp.read_u64(va.wrapping_add(8))?];
            if mnemonic == Mnemonic::Invept {
                let outcome = lp.vmx.invept(kind, descriptor, memory);
                if matches!(outcome, Outcome::Succeed)
                    && let Some(td) = &mut lp.td
                {
                    // A TD's translations of the host's shared EPT are cached together with all others.
                    td.flush();
                }
                outcome
            } else {
                lp.vmx.invvpid(kind, descriptor, memory)
            }
        }
        _ => lp.vmx.enter(mnemonic == Mnemonic::Vmresume, memory),
    };
    lp.finish_vmx(outcome)
}

/// Returns the processor state that VMX instructions check.
pub fn cpu(lp: &Lp) -> Cpu {
    Cpu {
        cr0: lp.vmcb.save.cr0,
        cr4: lp.cr4(),
        cpl: lp.vmcb.save.cpl,
        long_mode: lp.is_in_long_mode(),
    }
}

/// Reads the 64-bit memory operand that holds a physical address.
fn pointer(lp: &Lp, instruction: &Instruction) -> Result<u64, Fault> {
    lp.read_u64(lp.operand_address(instruction, 0)?)
}
