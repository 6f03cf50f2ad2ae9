//! SEAMCALL: its faults, its registers, and the first leaves.
#![expect(unsafe_code, reason = "accesses a buffer in a static")]

use seam::abi::x86::rflags::CF;
use seam::abi::{Leaf, SeamldrLeaf};

use super::personality::Vector;
use super::vmx::in_vmx_operation;
use crate::attempt::{UD, seamcall, tdcall as execute_tdcall};
use crate::{Check, expect};

const OPERAND_INVALID_RAX: u64 = 0xC000_0100_0000_0000;

#[repr(align(256))]
struct Buffer([u64; 32]);

static mut INFO: Buffer = Buffer([0; 32]);

pub fn outside_vmx_operation() -> Check {
    let mut registers = [0; 6];
    expect(
        "SEAMCALL",
        seamcall(&mut registers).unwrap_err_or_zero(),
        UD,
    )
}

pub fn unknown_leaf() -> Check {
    in_vmx_operation(|| {
        let mut registers = [1 << 32, 0, 0, 0, 0, 0];
        expect(
            "the fault",
            seamcall(&mut registers).unwrap_err_or_zero(),
            0,
        )?;
        expect("RAX", registers[0], OPERAND_INVALID_RAX)?;
        expect("CF", registers[5] & CF, 0)
    })
}

pub fn registers_are_kept() -> Check {
    in_vmx_operation(|| {
        let mut registers = [1 << 32, 11, 12, 13, 14, 0];
        expect(
            "the fault",
            seamcall(&mut registers).unwrap_err_or_zero(),
            0,
        )?;
        for (what, index) in [("RCX", 1), ("RDX", 2), ("R8", 3), ("R9", 4)] {
            expect(what, registers[index], 10 + index as u64)?;
        }
        Ok(())
    })
}

pub fn seamldr_info() -> Check {
    in_vmx_operation(|| {
        let buffer = &raw mut INFO;
        let mut registers = [SeamldrLeaf::Info as u64, buffer as u64, 0, 0, 0, 0];
        expect(
            "the fault",
            seamcall(&mut registers).unwrap_err_or_zero(),
            0,
        )?;
        expect("RAX", registers[0], 0)?;
        // SAFETY: the call is over; nobody else has the buffer.
        let vendor = unsafe { (*buffer).0[1] } & 0xFFFF_FFFF;
        expect("the vendor", vendor, 0x8086)
    })
}

pub fn tdcall() -> Check {
    expect("TDCALL", execute_tdcall().unwrap_err_or_zero(), UD)?;
    in_vmx_operation(|| {
        expect(
            "TDCALL in VMX operation",
            execute_tdcall().unwrap_err_or_zero(),
            UD,
        )
    })
}

pub fn sys_init() -> Check {
    in_vmx_operation(|| {
        for (what, leaf) in [
            ("TDH.SYS.INIT", Leaf::SysInit),
            ("TDH.SYS.LP.INIT", Leaf::SysLpInit),
        ] {
            let mut registers = [leaf.number().into(), 0, 0, 0, 0, 0];
            expect(
                "the fault",
                seamcall(&mut registers).unwrap_err_or_zero(),
                0,
            )?;
            expect(what, registers[0], 0)?;
        }
        Ok(())
    })
}
