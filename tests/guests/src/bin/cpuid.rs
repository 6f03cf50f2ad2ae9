//! CPUID as the module virtualizes it, leaf by leaf.
//!
//! Rows: TDX Module ABI 1.5, "CPUID virtualization", for a TD without configured bits.
#![no_std]
#![no_main]

use guest_kit::check::{Check, Checks, expect};
use guest_kit::ve::reason;
use guest_kit::{ensure, fail, guest, tdcall, vcpu};
use guests::release::{self, Release};
use guests::tries::{cpuid, leaf, raises_ve};
use seam::abi::GuestLeaf;

guest!("cpuid", main);

fn main(checks: &mut Checks) {
    vcpu::start_all();
    checks.each("leafs-that-the-module-answers", answered);
    checks.each("leafs-of-zeros", zeros);
    checks.each("leafs-that-raise-ve", faulting);
    checks.each("leaf-0", vendor);
    checks.each("leaf-1", features);
    checks.each("leaf-4", caches);
    checks.each("leaf-7", extended_features);
    checks.each("leaf-d", extended_state);
    checks.each("leaf-15", clock);
    checks.each("leaf-21", tdx);
    checks.each("extended-leafs", extended);
    checks.each("no-instruction-is-offered-that-is-not-there", executes);
    checks.each("the-model-has-no-instruction-that-is-not-offered", model);
    checks.together("leafs-that-the-module-answers-all-at-once", answered);
    checks.each("cpuidve", unconditional);
}

/// Leaf, sub-leaf.
const ANSWERED: &[(u32, u32)] = &[
    (0, 0),
    (1, 0),
    (3, 0),
    (4, 0),
    (4, 1),
    (4, 2),
    (4, 3),
    (4, 4),
    (5, 0),
    (7, 0),
    (7, 1),
    (7, 2),
    (8, 0),
    (0xA, 0),
    (0xE, 0),
    (0x11, 0),
    (0x12, 0),
    (0x13, 0),
    (0x14, 0),
    (0x14, 1),
    (0x15, 0),
    (0x19, 0),
    (0x1C, 0),
    (0x1D, 0),
    (0x1D, 1),
    (0x1E, 0),
    (0x20, 0),
    (0x21, 0),
    (0x22, 0),
    (0x23, 0),
    (0x23, 1),
    (0x23, 2),
    (0x23, 3),
    (0x8000_0000, 0),
    (0x8000_0001, 0),
    (0x8000_0007, 0),
    (0x8000_0008, 0),
];

/// Leafs that raise #VE in module 1.5.01.
const NEWLY_ANSWERED: &[(u32, u32)] = &[(0x18, 0), (0x1A, 0), (0x8000_0006, 0)];

/// Returns whether the module answers [`NEWLY_ANSWERED`].
fn answers_more() -> Result<bool, guest_kit::check::Failure> {
    Ok(release::module()? >= Release::V1_5_16)
}

fn answer(leaf: u32, sub_leaf: u32) -> Result<[u32; 4], guest_kit::check::Failure> {
    match cpuid(leaf, sub_leaf) {
        Ok(found) => Ok(found),
        Err(caught) => fail!("CPUID {leaf:#x}.{sub_leaf:#x} raised {caught:?}"),
    }
}

fn answered() -> Check {
    let newer: &[_] = if answers_more()? { NEWLY_ANSWERED } else { &[] };
    for &(leaf, sub_leaf) in ANSWERED.iter().chain(newer) {
        answer(leaf, sub_leaf)?;
    }
    (0..=0x12).try_for_each(|sub_leaf| answer(0xD, sub_leaf).map(drop))
}

fn zeros() -> Check {
    // Leaves beyond the last one return the last one's values.
    for leaf in [
        3,
        8,
        0xE,
        0x11,
        0x13,
        0x19,
        0x20,
        0x22,
        0x23,
        0x24,
        0x3FFF_FFFF,
        0x5000_0000,
        0x7FFF_FFFF,
        0x8000_0009,
        0xC000_0000,
        0xFFFF_FFFF,
    ] {
        let found = answer(leaf, 0)?;
        ensure!(found == [0; 4], "CPUID {leaf:#x} is {found:x?}");
    }
    Ok(())
}

fn faulting() -> Check {
    const LEAFS: &[(u32, u32)] = &[
        (2, 0),
        (4, 5),
        (6, 0),
        (7, 3),
        (9, 0),
        (0xB, 0),
        (0xB, 1),
        (0xC, 0),
        (0xD, 0x13),
        (0xF, 0),
        (0x10, 0),
        (0x14, 2),
        (0x16, 0),
        (0x17, 0),
        (0x1B, 0),
        (0x1D, 2),
        (0x1F, 0),
        (0x1F, 1),
        (0x1F, 5),
        (0x21, 1),
        (0x4000_0000, 0),
        (0x4000_0001, 0),
        (0x4FFF_FFFF, 0),
        (0x8000_0002, 0),
        (0x8000_0003, 0),
        (0x8000_0004, 0),
        (0x8000_0005, 0),
    ];
    let older: &[_] = if answers_more()? { &[] } else { NEWLY_ANSWERED };
    for &(leaf, sub_leaf) in LEAFS.iter().chain(older) {
        match cpuid(leaf, sub_leaf) {
            Ok(found) => return fail!("CPUID {leaf:#x}.{sub_leaf:#x} gave {found:x?}"),
            Err(caught) => raises_ve("CPUID", Some(caught), (reason::CPUID, 0, 2))?,
        }
    }
    Ok(())
}

fn vendor() -> Check {
    let [eax, ebx, ecx, edx] = answer(0, 0)?;
    expect("the last leaf", eax.into(), 0x23)?;
    ensure!(
        [ebx, edx, ecx] == [0x756E_6547, 0x4965_6E69, 0x6C65_746E],
        "the vendor is {ebx:x} {edx:x} {ecx:x}"
    );
    Ok(())
}

fn features() -> Check {
    const HYPERVISOR: u32 = 1 << 31;
    const OSXSAVE: u32 = 1 << 27;
    const X2APIC: u32 = 1 << 21;
    let [eax, ebx, ecx, _] = answer(1, 0)?;
    ensure!(eax != 0, "no signature");
    expect(
        "the APIC id",
        (ebx >> 24).into(),
        vcpu::current().index().into(),
    )?;
    expect(
        "the bit of a hypervisor",
        (ecx & HYPERVISOR).into(),
        HYPERVISOR.into(),
    )?;
    expect("x2APIC", (ecx & X2APIC).into(), X2APIC.into())?;
    expect(
        "OSXSAVE",
        (ecx & OSXSAVE != 0).into(),
        (read_cr4() >> 18 & 1 != 0).into(),
    )
}

fn caches() -> Check {
    for sub_leaf in 0..4 {
        let line = answer(4, sub_leaf)?[1] & 0xFFF;
        expect("the size of a cache line less one", line.into(), 63)?;
    }
    let end = answer(4, 4)?;
    ensure!(end == [0; 4], "leaf 4.4 is {end:x?}");
    Ok(())
}

fn extended_features() -> Check {
    const OSPKE: u32 = 1 << 4;
    const PKS: u32 = 1 << 31;
    let [eax, _, ecx, _] = answer(7, 0)?;
    expect("the last sub-leaf", eax.into(), 2)?;
    // Neither XFAM nor ATTRIBUTES give protection keys to this TD.
    expect("OSPKE and PKS", (ecx & (OSPKE | PKS)).into(), 0)
}

fn extended_state() -> Check {
    const XFAM: u64 = 7;
    let [eax, ebx, ecx, edx] = answer(0xD, 0)?;
    let xfam = u64::from(edx) << 32 | u64::from(eax);
    ensure!(xfam & !XFAM == 0 && xfam & 3 == 3, "XCR0 may be {xfam:#x}");
    ensure!(
        ebx >= 576 && ecx >= 576 && ebx <= ecx.max(576),
        "an area of {ebx} of {ecx} bytes"
    );
    let [_, _, ecx, edx] = answer(0xD, 1)?;
    ensure!(ecx == 0 && edx == 0, "XSS may be {edx:x}{ecx:08x}");
    for component in 3..=0x12 {
        let found = answer(0xD, component)?;
        ensure!(found == [0; 4], "component {component} is {found:x?}");
    }
    Ok(())
}

fn clock() -> Check {
    let [denominator, numerator, crystal, zero] = answer(0x15, 0)?;
    expect("the denominator", denominator.into(), 1)?;
    expect("the crystal's frequency", crystal.into(), 25_000_000)?;
    ensure!(
        (4..=400).contains(&numerator) && zero == 0,
        "TSC_FREQUENCY is {numerator}"
    );
    Ok(())
}

fn tdx() -> Check {
    let found = answer(0x21, 0)?;
    ensure!(
        found == [0, 0x6574_6E49, 0x2020_2020, 0x5844_546C],
        "leaf 0x21 is {found:x?}"
    );
    Ok(())
}

fn extended() -> Check {
    const SYSCALL: u32 = 1 << 11;
    const INVARIANT_TSC: u32 = 1 << 8;
    expect(
        "the last extended leaf",
        answer(0x8000_0000, 0)?[0].into(),
        0x8000_0008,
    )?;
    let edx = answer(0x8000_0001, 0)?[3];
    expect(
        "SYSCALL in 64-bit mode",
        (edx & SYSCALL).into(),
        SYSCALL.into(),
    )?;
    expect(
        "leaf 0x80000007",
        answer(0x8000_0007, 0)?[3].into(),
        INVARIANT_TSC.into(),
    )?;
    let widths = answer(0x8000_0008, 0)?[0];
    let width = tdcall::vp_info().gpa_width;
    ensure!(
        widths & 0xFF >= width && widths >> 8 & 0xFF >= 48,
        "address widths {widths:#x}, GPAW {width}"
    );
    Ok(())
}

fn read_cr4() -> u64 {
    let value;
    // SAFETY: reads a register.
    #[expect(unsafe_code, reason = "reads a register")]
    unsafe {
        core::arch::asm!("mov {}, cr4", out(reg) value, options(nomem, nostack));
    }
    value
}

/// Checks that every instruction that a bit offers, and that needs nothing else, can be executed.
#[expect(unsafe_code, reason = "executes instructions that may fault")]
fn executes() -> Check {
    use guest_kit::attempt;
    let [_, _, ecx1, _] = answer(1, 0)?;
    let [_, ebx7, ecx7, edx7] = answer(7, 0)?;
    let extended = answer(0x8000_0001, 0)?;
    macro_rules! offered {
        ($what:literal, $bit:expr, $instruction:literal $(, $($operands:tt)*)?) => {
            if $bit != 0 {
                // SAFETY: it changes only scratch registers.
                let outcome = unsafe { attempt!($instruction, out("rax") _, out("rdx") _, out("rcx") _, out("xmm0") _ $(, $($operands)*)?) };
                ensure!(outcome.is_none(), "{}: {outcome:?}", $what);
            }
        };
    }
    offered!("SSE3", ecx1 & 1, "haddps xmm0, xmm0");
    offered!("PCLMULQDQ", ecx1 & 1 << 1, "pclmulqdq xmm0, xmm0, 0");
    offered!("SSSE3", ecx1 & 1 << 9, "pshufb xmm0, xmm0");
    offered!("SSE4.1", ecx1 & 1 << 19, "pmulld xmm0, xmm0");
    offered!("SSE4.2", ecx1 & 1 << 20, "crc32 rax, rdx");
    offered!("MOVBE", ecx1 & 1 << 22, "movbe rax, [rsp - 256]");
    offered!("POPCNT", ecx1 & 1 << 23, "popcnt rax, rdx");
    offered!("AES", ecx1 & 1 << 25, "aesenc xmm0, xmm0");
    offered!("RDRAND", ecx1 & 1 << 30, "rdrand rax");
    offered!("BMI1", ebx7 & 1 << 3, "andn rax, rdx, rcx");
    offered!("BMI2", ebx7 & 1 << 8, "pdep rax, rdx, rcx");
    offered!("ADX", ebx7 & 1 << 19, "adcx rax, rdx");
    offered!("RDSEED", ebx7 & 1 << 18, "rdseed rax");
    offered!("CLFLUSHOPT", ebx7 & 1 << 23, "clflushopt [rsp]");
    offered!("CLWB", ebx7 & 1 << 24, "clwb [rsp]");
    offered!("SHA", ebx7 & 1 << 29, "sha1msg1 xmm0, xmm0");
    offered!("GFNI", ecx7 & 1 << 8, "gf2p8mulb xmm0, xmm0");
    offered!("RDPID", ecx7 & 1 << 22, "rdpid rax");
    offered!("MOVDIRI", ecx7 & 1 << 27, "movdiri [rsp - 256], rax");
    offered!("SERIALIZE", edx7 & 1 << 14, ".byte 0x0f, 0x01, 0xe8");
    offered!("LZCNT", extended[2] & 1 << 5, "lzcnt rax, rdx");
    offered!("RDTSCP", extended[3] & 1 << 27, "rdtscp");
    // Features that TCG lacks are not offered.
    for (what, bit) in [
        ("AVX-512F", ebx7 & 1 << 16),
        ("INVPCID", ebx7 & 1 << 10),
        ("RDSEED", ebx7 & 1 << 18),
        ("RTM", ebx7 & 1 << 11),
        ("CET_SS", ecx7 & 1 << 7),
        ("WAITPKG", ecx7 & 1 << 5),
        ("AMX-TILE", edx7 & 1 << 24),
        ("PCID", ecx1 & 1 << 17),
        ("XSAVES", answer(0xD, 1)?[0] & 1 << 3),
    ] {
        expect(what, bit.into(), 0)?;
    }
    Ok(())
}

/// Checks that the features that every CPU of the model has are offered.
fn model() -> Check {
    guests::model::fits(answer(1, 0)?, answer(0x8000_0001, 0)?)
}

/// Checks TDG.VP.CPUIDVE.SET: afterwards every leaf raises #VE.
fn unconditional() -> Check {
    const SUPERVISOR: u64 = 1;
    let (status, _) = leaf(GuestLeaf::VpCpuidveSet, [SUPERVISOR, 0, 0, 0]);
    expect("TDG.VP.CPUIDVE.SET", status.0, 0)?;
    let found = cpuid(1, 0);
    let (status, _) = leaf(GuestLeaf::VpCpuidveSet, [0; 4]);
    expect("TDG.VP.CPUIDVE.SET", status.0, 0)?;
    raises_ve("CPUID 1", found.err(), (reason::CPUID, 0, 2))?;
    answer(1, 0).map(drop)
}
