//! A guest that checks MSRs as the module virtualizes them: each row of the table, read and written.
//!
//! Rows: TDX Module ABI 1.5, "MSR virtualization", for a TD with neither PERFMON nor more of XFAM than AVX.
#![no_std]
#![no_main]

use guest_kit::attempt::{GP, Outcome, is_same};
use guest_kit::check::{Check, Checks, Failure, expect};
use guest_kit::ve::reason;
use guest_kit::{ensure, fail, guest, vcpu};
use guests::release::{self, Release};
use guests::tries::{raises, raises_ve, rdmsr, wrmsr};
use seam::abi::x86::efer;

guest!("msrs", main);

fn main(checks: &mut Checks) {
    vcpu::start_all();
    checks.each("native-reads", native_reads);
    checks.each("native-writes", native_writes);
    checks.each("commands", commands);
    checks.each("emulated-reads", emulated_reads);
    checks.each("reads-that-raise-gp", gp_reads);
    checks.each("writes-that-raise-gp", gp_writes);
    checks.each("reads-that-raise-ve", ve_reads);
    checks.each("writes-that-raise-ve", ve_writes);
    checks.each("efer", efer);
    checks.each("debugctl", debugctl);
    checks.each("xss", xss);
    checks.each("x2apic", x2apic);
    checks.each("time-stamp-counter", time);
    checks.together("native-writes-all-at-once", native_writes);
}

/// The length of RDMSR and WRMSR.
const LENGTH: u32 = 2;

const NATIVE_READS: &[u32] = &[
    0x10,
    0x48,
    0xBC,
    0x174,
    0x175,
    0x176,
    0x277,
    0x600,
    0x808,
    0x809,
    0x80A,
    0x80B,
    0x80C,
    0x80E,
    0x810,
    0x811,
    0x812,
    0x813,
    0x814,
    0x815,
    0x816,
    0x817,
    0x818,
    0x819,
    0x81A,
    0x81B,
    0x81C,
    0x81D,
    0x81E,
    0x81F,
    0x820,
    0x821,
    0x822,
    0x823,
    0x824,
    0x825,
    0x826,
    0x827,
    0xDA0,
    0x1B01,
    0xC000_0080,
    0xC000_0081,
    0xC000_0082,
    0xC000_0084,
    0xC000_0100,
    0xC000_0101,
    0xC000_0102,
    0xC000_0103,
];

/// #GP on read in modules after 1.5.01, which pass it.
const DEBUG_INTERFACE: u32 = 0xC80;

/// Returns whether the module raises #GP for MSRs of features that the TD does not have, where 1.5.01 passes them or
/// raises #VE.
fn is_strict() -> Result<bool, Failure> {
    Ok(release::module()? >= Release::V1_5_16)
}

fn native_reads() -> Check {
    let debug_interface = (!is_strict()?).then_some(&DEBUG_INTERFACE);
    for &msr in NATIVE_READS.iter().chain(debug_interface) {
        if let Err(caught) = rdmsr(msr) {
            return fail!("RDMSR {msr:#x}: {caught:?}");
        }
    }
    Ok(())
}

/// MSRs, with a value that can be written without harm.
const NATIVE_WRITES: &[(u32, u64)] = &[
    (0x174, 0x1234),
    (0x175, 0x1_2345_6789),
    (0x176, 0x9_8765_4321),
    (0x277, 0x0007_0406_0007_0405),
    (0x600, 0x1000),
    (0xC000_0081, 0x0010_0008_1234_5678),
    (0xC000_0082, 0xFFFF_8000_1234_5678),
    (0xC000_0084, 0x4_7700),
    (0xC000_0100, 0x7FFF_1234_5000),
    (0xC000_0102, 0xFFFF_8000_0000_1000),
    (0xC000_0103, 0x1234_5678),
];

/// Checks that a written value is read back, and that other vCPUs don't see it.
fn native_writes() -> Check {
    let own = u64::from(vcpu::current().index()) << 4;
    for &(msr, value) in NATIVE_WRITES {
        let Ok(before) = rdmsr(msr) else {
            return fail!("RDMSR {msr:#x} raised something");
        };
        // PAT has no room for a value of each vCPU's own.
        let value = if msr == 0x277 { value } else { value ^ own };
        raises("WRMSR", wrmsr(msr, value), None)?;
        for _ in 0..100 {
            core::hint::spin_loop();
        }
        let found = rdmsr(msr);
        raises("WRMSR", wrmsr(msr, before), None)?;
        ensure!(
            matches!(found, Ok(found) if found == value),
            "MSR {msr:#x} is {found:x?}, not {value:#x}"
        );
    }
    // Invalid values.
    for (msr, value) in [
        (0x277, 0x0000_0000_0000_0002),
        (0xC000_0103, 1 << 32),
        (0xC000_0082, 1 << 48),
        (0xC000_0102, 1 << 48),
    ] {
        let outcome = wrmsr(msr, value);
        if msr < 0xC000_0082 || msr == 0xC000_0103 {
            raises("WRMSR of a bad value", outcome, GP)?;
        } else {
            // TCG does not check that an address is canonical; the value is restored.
            ensure!(
                outcome.is_none() || is_same(outcome, GP),
                "WRMSR {msr:#x}: {outcome:?}"
            );
            raises("WRMSR", wrmsr(msr, 0), None)?;
        }
    }
    Ok(())
}

/// Write-only commands.
fn commands() -> Check {
    for msr in [0x49, 0x10B] {
        raises("a command", wrmsr(msr, 1), None)?;
        raises("reading a command", rdmsr(msr).err(), GP)?;
        raises("a command that is none", wrmsr(msr, 1 << 40), GP)?;
    }
    Ok(())
}

fn emulated_reads() -> Check {
    for msr in [0xBD, 0x10A, 0x1A0, 0x1D9, 0x345, 0x480] {
        if let Err(caught) = rdmsr(msr) {
            return fail!("RDMSR {msr:#x}: {caught:?}");
        }
    }
    for msr in (0x485..=0x489).chain(0x48B..=0x492) {
        if let Err(caught) = rdmsr(msr) {
            return fail!("RDMSR {msr:#x}: {caught:?}");
        }
    }
    let misc = rdmsr(0x1A0).unwrap_or(0);
    expect(
        "MISC_ENABLE: no PMU, no PEBS",
        misc & (1 << 7 | 1 << 12),
        1 << 12,
    )?;
    expect("PERF_CAPABILITIES", rdmsr(0x345).unwrap_or(1), 0)?;
    expect("XAPIC_DISABLE_STATUS", rdmsr(0xBD).unwrap_or(0) & 1, 1)
}

/// #GP on read and on write.
const GP_BOTH: &[core::ops::RangeInclusive<u32>] = &[
    0x8C..=0x8F,
    0x98..=0x9B,
    0x9E..=0x9E,
    0xC1..=0xC8,
    0xE1..=0xE1,
    0x122..=0x122,
    0x186..=0x18D,
    0x195..=0x195,
    0x1A6..=0x1A7,
    0x1C4..=0x1C5,
    0x276..=0x276,
    0x309..=0x310,
    0x329..=0x329,
    0x38D..=0x392,
    0x3F1..=0x3F2,
    0x3F6..=0x3F7,
    0x4C1..=0x4C8,
    0x500..=0x500,
    0x560..=0x561,
    0x570..=0x572,
    0x580..=0x587,
    0x6A0..=0x6A0,
    0x6A2..=0x6A2,
    0x6A4..=0x6A8,
    0x6E1..=0x6E1,
    0x800..=0x801,
    0x804..=0x807,
    0x829..=0x82E,
    0x831..=0x831,
    0x840..=0x8FF,
    0x985..=0x98A,
    0xD90..=0xD90,
    0xD93..=0xD93,
    0x1200..=0x12FF,
    0x14CE..=0x14CF,
    0x1500..=0x15FF,
    0x1600..=0x16FF,
];

/// #GP if CPUID does not offer the feature, else #VE: time-stamp deadline, DCA, TME, MKTME.
const GP_OR_VE: &[u32] = &[0x87, 0x1F8, 0x1F9, 0x1FA, 0x6E0, 0x981, 0x982, 0x983, 0x984];

fn gp_reads() -> Check {
    let strict = if is_strict()? {
        &[DEBUG_INTERFACE, PERF_STATUS][..]
    } else {
        &[]
    };
    let always = GP_BOTH.iter().cloned().flatten();
    for msr in always.chain(strict.iter().copied()) {
        let found = rdmsr(msr);
        ensure!(is_same(found.err(), GP), "RDMSR {msr:#x}: {found:x?}");
    }
    for &msr in GP_OR_VE {
        let outcome = rdmsr(msr).err();
        is_gp_or_ve("RDMSR", msr, outcome, reason::RDMSR)?;
    }
    Ok(())
}

fn gp_writes() -> Check {
    let emulated = (0x480..=0x492).chain([0x345]);
    let strict = if is_strict()? { STRICT_WRITES } else { &[] };
    let always = GP_BOTH.iter().cloned().flatten().chain(emulated);
    for msr in always.chain(strict.iter().copied()) {
        let outcome = wrmsr(msr, 0);
        ensure!(is_same(outcome, GP), "WRMSR {msr:#x}: {outcome:?}");
    }
    for &msr in GP_OR_VE {
        is_gp_or_ve("WRMSR", msr, wrmsr(msr, 0), reason::WRMSR)?;
    }
    Ok(())
}

fn is_gp_or_ve(what: &str, msr: u32, outcome: Outcome, reason: u32) -> Check {
    ensure!(
        is_same(outcome, GP) || guest_kit::attempt::ve_reason(outcome) == Some(reason),
        "{what} {msr:#x}: {outcome:?}"
    );
    Ok(())
}

/// #VE on read and on write.
const VE_BOTH: &[u32] = &[
    0x0,
    0x1,
    0x17,
    0x1B,
    0x3A,
    0x3B,
    0x79,
    0x8B,
    0xCE,
    0x140,
    0x17A,
    0x1A2,
    0x1B0,
    0x1FC,
    0x200,
    0x20F,
    0x250,
    0x2FF,
    0x400,
    0x401,
    0x606,
    0x80F,
    0x828,
    0x82F,
    0x830,
    0x832,
    0x833,
    0x834,
    0x835,
    0x836,
    0x837,
    0x838,
    0x83E,
    0x1400,
    0x1406,
    0x1FFF,
    0x2000,
    0x4000_0000,
    0x4000_00FF,
    0x4B56_4D00,
    0xC000_0083,
    0xC000_0104,
    0xC001_0015,
    0xC001_1029,
    0xFFFF_FFFF,
];

/// #VE on read and on write in module 1.5.01, #GP in newer ones.
const PERF_STATUS: u32 = 0x198;
/// #VE on read, except [`PERF_STATUS`]. On write #VE in module 1.5.01, #GP in newer ones.
const STRICT_WRITES: &[u32] = &[0xFE, 0x179, PERF_STATUS, 0x802, 0x803, 0x80D, 0x839];

fn ve_reads() -> Check {
    let is_strict = is_strict()?;
    // Some of the VMX capabilities are also undefined.
    let vmx = (0x481..=0x484).chain([0x48A]);
    let all = VE_BOTH.iter().chain(STRICT_WRITES).copied().chain(vmx);
    for msr in all.filter(|msr| *msr != PERF_STATUS || !is_strict) {
        match rdmsr(msr) {
            Ok(found) => return fail!("RDMSR {msr:#x} gave {found:#x}"),
            Err(caught) => raises_ve("RDMSR", Some(caught), (reason::RDMSR, 0, LENGTH))
                .map_err(|_| Failure::new(format_args!("RDMSR {msr:#x}: {caught:?}")))?,
        }
    }
    Ok(())
}

fn ve_writes() -> Check {
    let lenient = if is_strict()? { &[] } else { STRICT_WRITES };
    let all = VE_BOTH.iter().chain(lenient).copied();
    for msr in all.chain([0x10, 0xBC, DEBUG_INTERFACE, 0x1A0]) {
        let outcome = wrmsr(msr, 0);
        raises_ve("WRMSR", outcome, (reason::WRMSR, 0, LENGTH))
            .map_err(|_| Failure::new(format_args!("WRMSR {msr:#x}: {outcome:?}")))?;
    }
    Ok(())
}

fn efer() -> Check {
    const EFER: u32 = 0xC000_0080;
    let Ok(now) = rdmsr(EFER) else {
        return fail!("RDMSR of EFER raised something");
    };
    expect("EFER", now, 0xD01)?;
    raises("SCE off", wrmsr(EFER, now & !efer::SCE), None)?;
    let without = rdmsr(EFER).unwrap_or(0);
    // LMA is ignored.
    raises("SCE on", wrmsr(EFER, now & !efer::LMA), None)?;
    expect("EFER without SCE", without, now & !efer::SCE)?;
    expect("EFER with SCE", rdmsr(EFER).unwrap_or(0), now)?;
    for bit in [8, 11, 12, 1, 40] {
        raises_ve(
            "another bit of EFER",
            wrmsr(EFER, now ^ 1 << bit),
            (reason::WRMSR, 0, LENGTH),
        )?;
    }
    expect("EFER in the end", rdmsr(EFER).unwrap_or(0), now)
}

fn debugctl() -> Check {
    const DEBUGCTL: u32 = 0x1D9;
    const TR: u64 = 1 << 6;
    expect("DEBUGCTL", rdmsr(DEBUGCTL).unwrap_or(1), 0)?;
    for bit in [3, 4, 5, 16, 63] {
        raises("a reserved bit", wrmsr(DEBUGCTL, 1 << bit), GP)?;
    }
    raises_ve(
        "TR without BTS",
        wrmsr(DEBUGCTL, TR),
        (reason::WRMSR, 0, LENGTH),
    )?;
    raises("bit 13", wrmsr(DEBUGCTL, 1 << 13), None)?;
    expect(
        "DEBUGCTL, bit 13 being ignored",
        rdmsr(DEBUGCTL).unwrap_or(1),
        0,
    )
}

fn xss() -> Check {
    const XSS: u32 = 0xDA0;
    raises("XSS of zero", wrmsr(XSS, 0), None)?;
    // CET, LBR, PT: the TD has none of them.
    for bit in [0, 8, 11, 12, 15] {
        raises("XSS", wrmsr(XSS, 1 << bit), GP)?;
    }
    expect("XSS", rdmsr(XSS).unwrap_or(1), 0)
}

fn x2apic() -> Check {
    use seam::abi::x86::msr::x2apic::{EOI, PPR, TPR};
    raises("TPR", wrmsr(TPR, 0x50), None)?;
    let (tpr, ppr) = (rdmsr(TPR), rdmsr(PPR));
    raises("TPR", wrmsr(TPR, 0), None)?;
    expect("TPR", tpr.unwrap_or(0), 0x50)?;
    expect("PPR", ppr.unwrap_or(0), 0x50)?;
    raises("TPR of 9 bits", wrmsr(TPR, 0x100), GP)?;
    raises("EOI", wrmsr(EOI, 0), None)?;
    raises("EOI of something", wrmsr(EOI, 1), GP)?;
    for read_only in [PPR, 0x810, 0x818, 0x820, 0x809, 0x80C, 0x80E] {
        let outcome = wrmsr(read_only, 0);
        ensure!(is_same(outcome, GP), "WRMSR {read_only:#x}: {outcome:?}");
    }
    Ok(())
}

/// Checks that the counter runs, also across exits, and that RDTSCP returns TSC_AUX.
#[expect(unsafe_code, reason = "executes RDTSCP")]
fn time() -> Check {
    let (a, b) = (rdmsr(0x10).unwrap_or(0), guest_kit::cpu::tsc());
    // A request to the host, which takes time.
    let _ = guest_kit::vmcall::cpuid(0x4000_0000, 0);
    let c = guest_kit::cpu::tsc();
    ensure!(0 < a && a < b && b < c, "{a:#x}, {b:#x}, {c:#x}");
    raises("TSC_AUX", wrmsr(0xC000_0103, 0x77), None)?;
    let aux: u32;
    // SAFETY: it reads registers.
    unsafe {
        core::arch::asm!("rdtscp", out("eax") _, out("edx") _, out("ecx") aux, options(nomem, nostack));
    }
    raises("TSC_AUX", wrmsr(0xC000_0103, 0), None)?;
    expect("TSC_AUX by RDTSCP", aux.into(), 0x77)?;
    Ok(())
}
