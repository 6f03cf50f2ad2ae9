//! VMX operation: what enters it, what it forbids, and how its instructions end.
#![expect(unsafe_code, reason = "accesses VMX regions in statics")]

use seam::abi::x86::cr0::NE;
use seam::abi::x86::cr4::VMXE;
use seam::abi::x86::rflags::{CF, ZF};

use super::personality::Vector;
use crate::attempt::{
    GP, Outcome, UD, invept as execute_invept, invvpid as execute_invvpid, rdmsr, set_cr0, set_cr4,
    vmclear, vmptrld, vmptrst, vmread, vmwrite, vmxoff, vmxon, write,
};
use crate::cpu::{cr0, cr4};
use crate::{Check, expect};

#[repr(C, align(4096))]
struct Region([u64; 512]);

static mut VMXON: Region = Region([0; 512]);
static mut VMCS: Region = Region([0; 512]);

fn revision() -> u64 {
    rdmsr(0x480).unwrap_or(0) & 0x7FFF_FFFF
}

fn prepare(region: *mut Region, dword0: u64) -> u64 {
    // SAFETY: one of this program's statics, which only the emulated instructions look at.
    unsafe { (*region).0[0] = dword0 };
    region as u64
}

/// A good VMXON region.
pub fn region() -> u64 {
    prepare(&raw mut VMXON, revision())
}

/// Enters VMX operation for good, with a VMXON region at `region`, a page of its own.
pub fn enter(region: u64) -> Check {
    let vmxe = set_cr4(cr4() | VMXE).unwrap_err_or_zero();
    expect("setting CR4.VMXE", vmxe, 0)?;
    write(region, revision());
    expect("VMXON", flags(vmxon(region)), 0)
}

fn flags(outcome: Outcome) -> u64 {
    outcome.unwrap_or(u64::MAX)
}

/// Runs `check` in VMX operation.
pub fn in_vmx_operation(check: impl FnOnce() -> Check) -> Check {
    expect(
        "setting CR4.VMXE",
        set_cr4(cr4() | VMXE).unwrap_err_or_zero(),
        0,
    )?;
    expect("VMXON", flags(vmxon(region())), 0)?;
    let result = check();
    expect("VMXOFF", flags(vmxoff()), 0)?;
    expect(
        "clearing CR4.VMXE",
        set_cr4(cr4() & !VMXE).unwrap_err_or_zero(),
        0,
    )?;
    result
}

pub fn vmxon_without_vmxe() -> Check {
    expect("CR4.VMXE", cr4() & VMXE, 0)?;
    expect("VMXON", vmxon(region()).err().unwrap_or(0), UD)
}

pub fn outside_vmx_operation() -> Check {
    expect("VMXOFF", vmxoff().err().unwrap_or(0), UD)?;
    expect("VMCLEAR", vmclear(0).err().unwrap_or(0), UD)?;
    expect("VMPTRLD", vmptrld(0).err().unwrap_or(0), UD)?;
    expect("VMREAD", vmread(0).err().unwrap_or(0), UD)?;
    expect("INVEPT", execute_invept(2, [0, 0]).err().unwrap_or(0), UD)?;
    expect("INVVPID", execute_invvpid(2, [0, 0]).err().unwrap_or(0), UD)
}

pub fn vmxe_shows() -> Check {
    let before = cr4();
    expect(
        "setting VMXE",
        set_cr4(before | VMXE).unwrap_err_or_zero(),
        0,
    )?;
    expect("CR4", cr4(), before | VMXE)?;
    expect(
        "a reserved bit",
        set_cr4(before | 1 << 31).unwrap_err_or_zero(),
        GP,
    )?;
    expect("CR4 after it", cr4(), before | VMXE)?;
    expect("clearing VMXE", set_cr4(before).unwrap_err_or_zero(), 0)?;
    expect("CR4 at the end", cr4(), before)
}

pub fn bad_regions() -> Check {
    expect(
        "setting VMXE",
        set_cr4(cr4() | VMXE).unwrap_err_or_zero(),
        0,
    )?;
    expect("alignment", flags(vmxon(region() + 8)), CF)?;
    expect("width", flags(vmxon(1 << 52)), CF)?;
    let wrong = prepare(&raw mut VMXON, revision() + 1);
    expect("revision", flags(vmxon(wrong)), CF)?;
    let shadow = prepare(&raw mut VMXON, revision() | 1 << 31);
    expect("bit 31", flags(vmxon(shadow)), CF)?;
    expect("VMXOFF still", vmxoff().err().unwrap_or(0), UD)?;
    expect(
        "clearing VMXE",
        set_cr4(cr4() & !VMXE).unwrap_err_or_zero(),
        0,
    )
}

pub fn on_and_off() -> Check {
    in_vmx_operation(|| expect("a second VMXON", flags(vmxon(region())), CF))?;
    in_vmx_operation(|| Ok(()))
}

pub fn fixed_bits() -> Check {
    in_vmx_operation(|| {
        expect(
            "clearing VMXE",
            set_cr4(cr4() & !VMXE).unwrap_err_or_zero(),
            GP,
        )?;
        expect(
            "clearing CR0.NE",
            set_cr0(cr0() & !NE).unwrap_err_or_zero(),
            GP,
        )?;
        expect("writing CR0 back", set_cr0(cr0()).unwrap_err_or_zero(), 0)
    })?;
    expect("CR0.NE", cr0() & NE, NE)
}

pub fn vmcs() -> Check {
    in_vmx_operation(|| {
        expect("no VMCS", vmptrst().unwrap_or(0), u64::MAX)?;
        let vmcs = prepare(&raw mut VMCS, revision());
        expect("VMCLEAR", flags(vmclear(vmcs)), 0)?;
        expect("VMPTRLD", flags(vmptrld(vmcs)), 0)?;
        expect("the current VMCS", vmptrst().unwrap_or(0), vmcs)?;
        expect("VMPTRLD of the VMXON region", flags(vmptrld(region())), ZF)?;
        expect("its number", vmread(0x4400).unwrap_or(0), 10)?;
        expect("VMCLEAR again", flags(vmclear(vmcs)), 0)?;
        expect("no VMCS again", vmptrst().unwrap_or(0), u64::MAX)
    })
}

pub fn fields() -> Check {
    in_vmx_operation(|| {
        let vmcs = prepare(&raw mut VMCS, revision());
        expect("VMPTRLD", flags(vmptrld(vmcs)), 0)?;
        expect("VMWRITE", flags(vmwrite(0x681E, 0x1234_5678_9ABC)), 0)?;
        expect("VMREAD", vmread(0x681E).unwrap_or(0), 0x1234_5678_9ABC)?;
        expect("VMWRITE of no field", flags(vmwrite(0xF_0000, 0)), ZF)?;
        expect("its number", vmread(0x4400).unwrap_or(0), 12)
    })
}

pub fn invept() -> Check {
    in_vmx_operation(|| {
        expect("global", flags(execute_invept(2, [0, 0])), 0)?;
        expect("single context", flags(execute_invept(1, [0x501E, 0])), 0)?;
        expect("type 0", flags(execute_invept(0, [0, 0])), CF)?;
        expect("reserved bits", flags(execute_invept(2, [0, 1])), CF)
    })
}

pub fn invvpid() -> Check {
    in_vmx_operation(|| {
        expect("all contexts", flags(execute_invvpid(2, [0, 0])), 0)?;
        expect("VPID 0", flags(execute_invvpid(1, [0, 0])), CF)?;
        expect("an address", flags(execute_invvpid(0, [1, 0x1000])), 0)
    })
}
