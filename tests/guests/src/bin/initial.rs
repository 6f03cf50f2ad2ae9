//! A guest that checks the state in which every vCPU is first entered.
//!
//! Rows: guest-visible initial state of a TD vCPU, TDX Module ABI 1.5, "Initial state of guest vCPU".
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "reads registers and enables XGETBV")]

use core::arch::asm;

use guest_kit::Initial::*;
use guest_kit::check::{Check, Checks, expect};
use guest_kit::{cpu, guest, initial, tdcall, vcpu};
use seam::abi::x86::{cr0, cr4};

guest!("initial", main);

fn main(checks: &mut Checks) {
    // Runs before anything is used that could change the MSRs.
    checks.once("msrs-of-vcpu-0", msrs);
    vcpu::start_all();
    checks.each("general-purpose-registers", general);
    checks.each("control-registers", control);
    checks.each("debug-registers", debug);
    checks.each("segments-and-tables", segments);
    checks.each("msrs", msrs);
    checks.each("extended-state", extended);
}

fn found(register: guest_kit::Initial) -> u64 {
    initial(vcpu::current().index(), register)
}

fn general() -> Check {
    let info = tdcall::vp_info();
    let hob = initial(0, R8);
    let signature = cpu::cpuid(1, 0)[0];
    for (what, register, value) in [
        ("EAX", Eax, 0),
        ("EBX, GPAW", Ebx, info.gpa_width.into()),
        ("ECX, TDH.VP.INIT's operand", Ecx, hob & 0xFFFF_FFFF),
        ("EDX, CPUID(1).EAX", Edx, signature.into()),
        ("ESI, the vCPU's index", Esi, info.index.into()),
        ("EDI", Edi, 0),
        ("EBP", Ebp, 0),
        ("R8, TDH.VP.INIT's operand", R8, hob),
        ("R9", R9, 0),
        ("R10", R10, 0),
        ("R11", R11, 0),
        ("R12", R12, 0),
        ("R13", R13, 0),
        ("R14", R14, 0),
        ("R15", R15, 0),
    ] {
        expect(what, found(register), value)?;
    }
    Ok(())
}

fn control() -> Check {
    // ET is the processor's, whatever was written.
    expect("CR0 but ET", found(Cr0) & !cr0::ET, cr0::NE | cr0::PE)?;
    expect("CR3", found(Cr3), 0)?;
    // VMXE is set, but reads as zero.
    expect("CR4", found(Cr4), cr4::MCE)?;
    expect("EFER", found(EferLow), 0x901)
}

fn debug() -> Check {
    expect("DR6", found(Dr6), 0xFFFF_0FF0)?;
    expect("DR7", found(Dr7), 0x400)?;
    let values: [u64; 4];
    // SAFETY: reads registers.
    unsafe {
        let (a, b, c, d): (u64, u64, u64, u64);
        asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
            out(reg) a, out(reg) b, out(reg) c, out(reg) d, options(nomem, nostack));
        values = [a, b, c, d];
    }
    values
        .into_iter()
        .try_for_each(|value| expect("DR0 to DR3", value, 0))
}

fn segments() -> Check {
    // The limit, with the base above it.
    expect("GDTR", found(GdtLimit), 0xFFFF)?;
    expect("IDTR", found(IdtLimit), 0)?;
    expect("CS", found(Cs), 0)?;
    expect("SS", found(Ss), 0)?;
    let (fs, gs, ldt): (u32, u32, u32);
    // SAFETY: reads registers, which the kit has not loaded.
    unsafe {
        asm!("mov {:e}, fs", "mov {:e}, gs", "sldt {:e}", out(reg) fs, out(reg) gs, out(reg) ldt, options(nomem, nostack));
    }
    for (what, value) in [("FS", fs), ("GS", gs), ("LDTR", ldt)] {
        expect(what, value.into(), 0)?;
    }
    // The base of the flat segment, in long mode.
    expect("FS_BASE", cpu::rdmsr(0xC000_0100), 0)
}

fn msrs() -> Check {
    for (what, msr, value) in [
        ("PAT", 0x277, 0x0007_0406_0007_0406),
        ("FMASK", 0xC000_0084, 0x20200),
        ("STAR", 0xC000_0081, 0),
        ("LSTAR", 0xC000_0082, 0),
        ("KERNEL_GS_BASE", 0xC000_0102, 0),
        ("TSC_AUX", 0xC000_0103, 0),
        ("SYSENTER_CS", 0x174, 0),
        ("SYSENTER_ESP", 0x175, 0),
        ("SYSENTER_EIP", 0x176, 0),
        ("XSS", 0xDA0, 0),
        ("SPEC_CTRL", 0x48, 0),
        ("DEBUGCTL", 0x1D9, 0),
        ("DS_AREA", 0x600, 0),
        ("TPR", 0x808, 0),
    ] {
        expect(what, cpu::rdmsr(msr), value)?;
    }
    Ok(())
}

fn extended() -> Check {
    let (low, high): (u32, u32);
    let (mxcsr, control): (u32, u32);
    // SAFETY: OSXSAVE allows XGETBV, and changes nothing else; the rest reads registers.
    unsafe {
        asm!("mov {t}, cr4", "or {t}, {bit}", "mov cr4, {t}", t = out(reg) _, bit = const cr4::OSXSAVE, options(nostack));
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
        let mut word = 0u32;
        asm!("stmxcsr [{}]", in(reg) &mut word, options(nostack));
        mxcsr = word;
        let mut word = 0u16;
        asm!("fnstcw [{}]", in(reg) &mut word, options(nostack));
        control = word.into();
    }
    expect("XCR0", u64::from(high) << 32 | u64::from(low), 1)?;
    expect("MXCSR", mxcsr.into(), 0x1F80)?;
    expect("the x87 control word", control.into(), 0x37F)
}
