//! Instructions that a check tries, with their result or exception.
#![expect(
    unsafe_code,
    reason = "executes instructions that may fault and catches the exception"
)]

use core::arch::asm;

use guest_kit::attempt::{Caught, Outcome, is_same, outcome};
use guest_kit::check::Check;
use guest_kit::vcpu::{ATTEMPTED, RESUME};
use guest_kit::{attempt, ensure, vmcall};
use seam::abi::{Gprs, GuestLeaf, Status};

/// The result of an instruction, or what it raised.
pub type Tried<T> = Result<T, Caught>;

fn tried<T>(value: T, outcome: Outcome) -> Tried<T> {
    outcome.map_or(Ok(value), Err)
}

/// Executes RDMSR.
pub fn rdmsr(msr: u32) -> Tried<u64> {
    let (mut low, mut high) = (0u32, 0u32);
    // SAFETY: reading an MSR changes nothing.
    let outcome = unsafe {
        attempt!("rdmsr", in("ecx") msr, inout("eax") low, inout("edx") high, options(nostack))
    };
    tried(u64::from(high) << 32 | u64::from(low), outcome)
}

/// Executes WRMSR. The caller chooses a value with which the vCPU can continue.
pub fn wrmsr(msr: u32, value: u64) -> Outcome {
    // SAFETY: as the caller knows; the program depends on no MSR but GS_BASE, which no caller writes.
    unsafe {
        attempt!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack))
    }
}

/// Executes CPUID. Returns EAX, EBX, ECX, EDX.
pub fn cpuid(leaf: u32, sub_leaf: u32) -> Tried<[u32; 4]> {
    let (mut a, mut c, mut d) = (leaf, sub_leaf, 0u32);
    let b: u64;
    // SAFETY: it changes nothing but these registers; RBX, which can't be an operand, is restored.
    unsafe {
        asm!(
            "lea {t}, [rip + 2f]",
            "mov gs:[{attempted}], {t}",
            "lea {t}, [rip + 3f]",
            "mov gs:[{resume}], {t}",
            "mov {b}, rbx",
            "2: cpuid",
            "3: mov qword ptr gs:[{resume}], 0",
            "xchg {b}, rbx",
            t = out(reg) _,
            b = out(reg) b,
            inout("eax") a,
            inout("ecx") c,
            inout("edx") d,
            attempted = const ATTEMPTED,
            resume = const RESUME,
        );
    }
    tried([a, b as u32, c, d], outcome())
}

/// Checks that an instruction raised what was expected.
///
/// # Errors
/// The actual outcome.
pub fn raises(what: &str, outcome: Outcome, expected: Outcome) -> Check {
    ensure!(
        is_same(outcome, expected),
        "{what}: {outcome:?}, not {expected:?}"
    );
    Ok(())
}

/// Checks that an instruction raised #VE with this reason, qualification and length.
///
/// # Errors
/// The actual outcome.
pub fn raises_ve(
    what: &str,
    outcome: Outcome,
    (reason, qualification, length): (u32, u64, u32),
) -> Check {
    ensure!(
        matches!(outcome, Some(Caught::Ve(info)) if info.reason == reason
            && info.qualification == qualification
            && info.length == length),
        "{what}: {outcome:?}, not #VE {reason} ({qualification:#x}) length {length}"
    );
    Ok(())
}

/// Checks that a leaf ends with that status.
///
/// # Errors
/// The actual status.
pub fn ends(
    what: &str,
    (status, regs): (Status, Gprs),
    expected: Status,
) -> Result<Gprs, guest_kit::check::Failure> {
    ensure!(status == expected, "{what}: {status:?}, not {expected:?}");
    Ok(regs)
}

/// Calls a leaf with operands in RCX, RDX, R8 and R9.
pub fn leaf(leaf: GuestLeaf, [rcx, rdx, r8, r9]: [u64; 4]) -> (Status, Gprs) {
    guest_kit::tdcall::leaf(
        leaf,
        Gprs {
            rcx,
            rdx,
            r8,
            r9,
            ..Gprs::default()
        },
    )
}

/// Requests that only the probe serves, as the host of a guest.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub enum Own {
    /// The operand is a shared page in which host and guest report their progress.
    Mailbox = 1,
    /// The operand is the page that is to be hammered.
    Target = 2,
    /// Replaces a private page by another.
    Replace = 3,
    /// Delivers an NMI to this vCPU once it runs again.
    Nmi = 4,
    /// Adds a page of 2 MiB, to be accepted.
    AddLarge = 5,
}

/// Makes such a request. Returns R10 of the answer, which is zero if the request was served.
pub fn own(request: Own, operand: u64) -> u64 {
    let mut regs = Gprs {
        rcx: vmcall::REGISTERS,
        r10: 0x0062_656F_7270,
        r11: request as u64,
        r12: operand,
        ..Gprs::default()
    };
    vmcall::raw(&mut regs);
    regs.r10
}
