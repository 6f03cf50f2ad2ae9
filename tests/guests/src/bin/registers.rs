//! A guest that checks registers: control registers, XCR0, debug registers, and the extended state that a TD keeps
//! while the host runs.
//!
//! Rows: TDX Module ABI 1.5, "Control registers" and "Extended state".
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "writes registers that govern the processor")]

use core::arch::asm;

use guest_kit::attempt::{GP, Outcome, UD};
use guest_kit::check::{Check, Checks, expect};
use guest_kit::ve::reason;
use guest_kit::{attempt, ensure, guest, vcpu};
use guests::tries::{raises, raises_ve};
use seam::abi::x86::cr0::TS;
use seam::abi::x86::cr4::OSXSAVE;

guest!("registers", main);

fn main(checks: &mut Checks) {
    vcpu::start_all();
    checks.each("cr0", cr0);
    checks.each("cr4", cr4);
    checks.each("cr3-and-cr8", cr3_and_cr8);
    checks.each("lmsw-and-clts", lmsw_and_clts);
    checks.each("xsetbv", xsetbv);
    checks.each("debug-registers", debug_registers);
    checks.together("all-at-once", all_at_once);
    checks.each("extended-state-is-kept", extended_state);
}

fn read_cr0() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack)) };
    value
}

fn read_cr4() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack)) };
    value
}

fn write_cr0(value: u64) -> Outcome {
    // SAFETY: callers write values that the program tolerates, or that are refused.
    unsafe { attempt!("mov cr0, rax", in("rax") value, options(nostack)) }
}

fn write_cr4(value: u64) -> Outcome {
    // SAFETY: as above.
    unsafe { attempt!("mov cr4, rax", in("rax") value, options(nostack)) }
}

/// Qualification of a control-register access: register, type, source RAX.
fn cr_access(cr: u64) -> (u32, u64, u32) {
    (reason::CR_ACCESS, cr, 3)
}

fn cr0() -> Check {
    use seam::abi::x86::cr0::{AM, CD, MP, NE, NW, PE, PG, WP};
    let now = read_cr0();
    for (what, bit) in [("MP", MP), ("WP", WP), ("AM", AM)] {
        raises(what, write_cr0(now ^ bit), None)?;
        let changed = read_cr0();
        raises(what, write_cr0(now), None)?;
        expect(what, changed, now ^ bit)?;
    }
    raises("PE off with PG on", write_cr0(now & !PE), GP)?;
    raises("NE off", write_cr0(now & !NE), GP)?;
    raises_ve("NW", write_cr0(now | NW), cr_access(0))?;
    raises_ve("CD", write_cr0(now | CD), cr_access(0))?;
    raises_ve("CD and NW", write_cr0(now | CD | NW), cr_access(0))?;
    raises("PG off in 64-bit mode", write_cr0(now & !PG), GP)?;
    raises("a bit above 32", write_cr0(now | 1 << 32), GP)?;
    expect("CR0 in the end", read_cr0(), now)
}

fn cr4() -> Check {
    use seam::abi::x86::cr4::{MCE, PAE, PGE, PKE, SMEP, TSD, UMIP, VMXE};
    const DE: u64 = 1 << 3;
    const SMXE: u64 = 1 << 14;
    const FSGSBASE: u64 = 1 << 16;
    let now = read_cr4();
    expect("MCE, and no VMXE", now & (MCE | VMXE), MCE)?;
    for (what, bit) in [
        ("TSD", TSD),
        ("DE", DE),
        ("PGE", PGE),
        ("UMIP", UMIP),
        ("FSGSBASE", FSGSBASE),
        ("OSXSAVE", OSXSAVE),
        ("SMEP", SMEP),
    ] {
        raises(what, write_cr4(now ^ bit), None)?;
        let changed = read_cr4();
        raises(what, write_cr4(now), None)?;
        expect(what, changed, now ^ bit)?;
    }
    raises_ve("MCE off", write_cr4(now & !MCE), cr_access(4))?;
    raises_ve("VMXE", write_cr4(now | VMXE), cr_access(4))?;
    // Features that XFAM and ATTRIBUTES do not give: PKE, CET, PKS. No TD has SMX.
    for (what, bit) in [("PKE", PKE), ("CET", 1 << 23), ("PKS", 1 << 24)] {
        raises(what, write_cr4(now | bit), GP)?;
    }
    let smx = write_cr4(now | SMXE);
    ensure!(smx.is_some(), "SMXE could be set");
    raises("PAE off in 64-bit mode", write_cr4(now & !PAE), GP)?;
    raises("a reserved bit", write_cr4(now | 1 << 31), GP)?;
    raises("a bit above 32", write_cr4(now | 1 << 40), GP)?;
    expect("CR4 in the end", read_cr4(), now)
}

fn cr3_and_cr8() -> Check {
    let (before, after): (u64, u64);
    // SAFETY: the task priority is restored; CR3 stays the same.
    unsafe {
        asm!("mov {t}, cr8", "mov cr8, {five}", "mov {a}, cr8", "mov cr8, {t}",
            five = in(reg) 5u64, t = out(reg) before, a = out(reg) after, options(nostack));
    }
    ensure!((before, after) == (0, 5), "CR8 is {before} and {after}");
    expect("TPR after CR8 is zero", guest_kit::cpu::rdmsr(0x808), 0)?;
    // SAFETY: raises #GP.
    let outcome = unsafe { attempt!("mov cr8, {o0}", o0 = in(reg) 0x10u64) };
    raises("CR8 of five bits", outcome, GP)
}

fn lmsw_and_clts() -> Check {
    let now = read_cr0();
    let (with, without): (u64, u64);
    // SAFETY: only TS changes, and nothing between uses floating point.
    unsafe {
        asm!("lmsw ax", "mov {with}, cr0", "clts", "mov {without}, cr0",
            in("ax") (now | TS) as u16, with = out(reg) with, without = out(reg) without, options(nostack));
    }
    expect("CR0 after LMSW", with, now | TS)?;
    expect("CR0 after CLTS", without, now & !TS)?;
    raises("CR0 as it was", write_cr0(now), None)
}

fn xsetbv() -> Check {
    let write = |index: u32, value: u64| -> Outcome {
        // SAFETY: XCR0 gets what the TD may have, or nothing happens.
        unsafe {
            attempt!("xsetbv", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack))
        }
    };
    let cr4 = read_cr4();
    raises(
        "XSETBV without OSXSAVE",
        {
            raises("OSXSAVE off", write_cr4(cr4 & !OSXSAVE), None)?;
            write(0, 3)
        },
        UD,
    )?;
    raises("OSXSAVE on", write_cr4(cr4 | OSXSAVE), None)?;
    let read = || -> u64 {
        let (low, high): (u32, u32);
        // SAFETY: reads a register; OSXSAVE is on.
        unsafe {
            asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack))
        };
        u64::from(high) << 32 | u64::from(low)
    };
    for value in [3, 7, 1] {
        raises("XSETBV", write(0, value), None)?;
        // The value survives an exit.
        let _ = guest_kit::vmcall::cpuid(0x4000_0000, 0);
        expect("XCR0", read(), value)?;
    }
    for (what, index, value) in [
        // TCG lets a TD load what TCG knows, so MPX and PKRU are not tried.
        ("XCR1", 1, 1),
        ("no x87", 0, 2),
        ("AVX without SSE", 0, 5),
        ("AVX-512, which XFAM lacks", 0, 0xE7),
        ("a high bit", 0, 1 << 63 | 3),
    ] {
        raises(what, write(index, value), GP)?;
    }
    expect("XCR0 in the end", read(), 1)?;
    raises("CR4 as it was", write_cr4(cr4), None)
}

fn debug_registers() -> Check {
    let found: [u64; 4];
    // SAFETY: no breakpoint is enabled.
    unsafe {
        let (a, b, c, d): (u64, u64, u64, u64);
        asm!("mov dr0, {0}", "mov dr1, {1}", "mov dr2, {2}", "mov dr3, {3}",
            in(reg) 0x1111u64, in(reg) 0x2222u64, in(reg) 0x3333u64, in(reg) 0x4444u64, options(nostack));
        let _ = guest_kit::vmcall::cpuid(0x4000_0000, 0);
        asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
            out(reg) a, out(reg) b, out(reg) c, out(reg) d, options(nomem, nostack));
        asm!("mov dr0, {0}", "mov dr1, {0}", "mov dr2, {0}", "mov dr3, {0}", in(reg) 0u64, options(nostack));
        found = [a, b, c, d];
    }
    ensure!(
        found == [0x1111, 0x2222, 0x3333, 0x4444],
        "DR0 to DR3 are {found:x?}"
    );
    Ok(())
}

/// Repeats the CR4 check on all vCPUs at once.
fn all_at_once() -> Check {
    (0..100).try_for_each(|_| cr4())
}

/// Checks that AVX registers and x87 survive exits to the host.
fn extended_state() -> Check {
    let cr4 = read_cr4();
    raises("OSXSAVE on", write_cr4(cr4 | OSXSAVE), None)?;
    const FLUSH_TO_ZERO: u32 = 0x9F80;
    const MXCSR_INITIAL: u32 = 0x1F80;
    let index = u64::from(vcpu::current().index());
    let values: [u64; 4 * 16] = core::array::from_fn(|i| (index << 32) + i as u64 + 1);
    let mut found = [0u64; 4 * 16];
    let (mut x87, mut mxcsr) = (0u64, FLUSH_TO_ZERO);
    // SAFETY: the TD may have AVX; XCR0 and MXCSR are restored. The request changes the registers that are named.
    unsafe {
        asm!(
            "mov ecx, 0", "mov eax, 7", "mov edx, 0", "xsetbv",
            "vmovdqu ymm0, [rsi + 0]",
            "vmovdqu ymm1, [rsi + 32]",
            "vmovdqu ymm2, [rsi + 64]",
            "vmovdqu ymm3, [rsi + 96]",
            "vmovdqu ymm4, [rsi + 128]",
            "vmovdqu ymm5, [rsi + 160]",
            "vmovdqu ymm6, [rsi + 192]",
            "vmovdqu ymm7, [rsi + 224]",
            "vmovdqu ymm8, [rsi + 256]",
            "vmovdqu ymm9, [rsi + 288]",
            "vmovdqu ymm10, [rsi + 320]",
            "vmovdqu ymm11, [rsi + 352]",
            "vmovdqu ymm12, [rsi + 384]",
            "vmovdqu ymm13, [rsi + 416]",
            "vmovdqu ymm14, [rsi + 448]",
            "vmovdqu ymm15, [rsi + 480]",
            "fld1",
            "ldmxcsr [r9]",
            "xor eax, eax", "mov ecx, 0xFC00", "xor r10d, r10d", "mov r11d, 0x7777",
            ".byte 0x66, 0x0F, 0x01, 0xCC",
            "stmxcsr [r9]",
            "vmovdqu [rdi + 0], ymm0",
            "vmovdqu [rdi + 32], ymm1",
            "vmovdqu [rdi + 64], ymm2",
            "vmovdqu [rdi + 96], ymm3",
            "vmovdqu [rdi + 128], ymm4",
            "vmovdqu [rdi + 160], ymm5",
            "vmovdqu [rdi + 192], ymm6",
            "vmovdqu [rdi + 224], ymm7",
            "vmovdqu [rdi + 256], ymm8",
            "vmovdqu [rdi + 288], ymm9",
            "vmovdqu [rdi + 320], ymm10",
            "vmovdqu [rdi + 352], ymm11",
            "vmovdqu [rdi + 384], ymm12",
            "vmovdqu [rdi + 416], ymm13",
            "vmovdqu [rdi + 448], ymm14",
            "vmovdqu [rdi + 480], ymm15",
            "fstp qword ptr [r8]",
            "vzeroupper",
            "mov ecx, 0", "mov eax, 1", "mov edx, 0", "xsetbv",
            in("rsi") values.as_ptr(), in("rdi") found.as_mut_ptr(), in("r8") &mut x87, in("r9") &mut mxcsr,
            out("rax") _, out("rcx") _, out("rdx") _, out("r10") _, out("r11") _, out("r12") _, out("r13") _,
            out("r14") _, out("r15") _, out("st(0)") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
        );
        asm!("ldmxcsr [{}]", in(reg) &MXCSR_INITIAL);
    }
    raises("CR4 as it was", write_cr4(cr4), None)?;
    ensure!(found == values, "YMM0 to YMM15 are {found:x?}");
    expect("MXCSR", mxcsr.into(), FLUSH_TO_ZERO.into())?;
    expect("ST0, as a double", x87, 1.0f64.to_bits())
}
