//! Instructions and exceptions: native, emulated, #VE, #GP, #UD, and what becomes of a #VE within a #VE.
//!
//! Rows: TDX Module ABI 1.5, "Instruction and exception virtualization", and control registers.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "tries instructions that act on the machine")]

use core::arch::asm;

use guest_kit::attempt::{Caught, GP, Outcome, UD};
use guest_kit::check::{Check, Checks, expect};
use guest_kit::ve::reason;
use guest_kit::{attempt, ensure, guest, tdcall, vcpu};
use guests::tries::{raises, raises_ve};

guest!("exits", main);

fn main(checks: &mut Checks) {
    vcpu::start_all();
    checks.each("port-access", ports);
    checks.each("string-port-access", string_ports);
    checks.each("hlt-wbinvd-invd-vmcall-monitor-mwait-pconfig", instructions);
    checks.each("vmx-instructions", vmx);
    checks.each("smx-sgx-and-seam-instructions", others);
    checks.each("rdpmc", rdpmc);
    checks.each("svm-instructions", svm);
    checks.each("native-instructions", native);
    checks.each("cr0", cr0);
    checks.each("cr4", cr4);
    checks.each("cr3-and-cr8", cr3_and_cr8);
    checks.each("lmsw-and-clts", lmsw_and_clts);
    checks.each("xsetbv", xsetbv);
    checks.each("exceptions", exceptions);
    checks.each("flags-at-a-ve", flags);
    checks.each("debug-registers", debug_registers);
    checks.each("single-steps", single_steps);
    checks.each("ve-within-a-ve", nested_ve);
    checks.together("all-at-once", all_at_once);
    checks.each("extended-state-is-kept", extended_state);
}

/// I/O qualification: bytes less one, 8 in, 16 string, 32 repeated, 64 immediate, port.
fn ports() -> Check {
    const PORT: u64 = 0x1234 << 16;
    const IMMEDIATE: u64 = 0x60 << 16 | 64;
    // SAFETY: nothing of a port's is touched: each raises #VE.
    let rows: [(&str, Outcome, u64, u32); 10] = unsafe {
        [
            (
                "in al, dx",
                attempt!("in al, dx", in("dx") 0x1234u16, out("al") _),
                PORT | 8,
                1,
            ),
            (
                "in ax, dx",
                attempt!("in ax, dx", in("dx") 0x1234u16, out("ax") _),
                PORT | 8 | 1,
                2,
            ),
            (
                "in eax, dx",
                attempt!("in eax, dx", in("dx") 0x1234u16, out("eax") _),
                PORT | 8 | 3,
                1,
            ),
            (
                "out dx, al",
                attempt!("out dx, al", in("dx") 0x1234u16, in("al") 0u8),
                PORT,
                1,
            ),
            (
                "out dx, ax",
                attempt!("out dx, ax", in("dx") 0x1234u16, in("ax") 0u16),
                PORT | 1,
                2,
            ),
            (
                "out dx, eax",
                attempt!("out dx, eax", in("dx") 0x1234u16, in("eax") 0),
                PORT | 3,
                1,
            ),
            (
                "in al, 0x60",
                attempt!("in al, 0x60", out("al") _),
                IMMEDIATE | 8,
                2,
            ),
            (
                "in eax, 0x60",
                attempt!("in eax, 0x60", out("eax") _),
                IMMEDIATE | 8 | 3,
                2,
            ),
            (
                "out 0x60, al",
                attempt!("out 0x60, al", in("al") 0u8),
                IMMEDIATE,
                2,
            ),
            (
                "out 0x60, eax",
                attempt!("out 0x60, eax", in("eax") 0),
                IMMEDIATE | 3,
                2,
            ),
        ]
    };
    rows.into_iter()
        .try_for_each(|(what, outcome, qualification, length)| {
            raises_ve(what, outcome, (reason::IO, qualification, length))
        })
}

fn string_ports() -> Check {
    const PORT: u64 = 0x1234 << 16;
    let buffer = [0u8; 16];
    let at = &raw const buffer as u64;
    // SAFETY: each raises #VE before it touches the buffer.
    let rows: [(&str, Outcome, u64, u32); 4] = unsafe {
        [
            (
                "insb",
                attempt!("insb", in("dx") 0x1234u16, inout("rdi") at => _),
                PORT | 8 | 16,
                1,
            ),
            (
                "outsb",
                attempt!("outsb", in("dx") 0x1234u16, inout("rsi") at => _),
                PORT | 16,
                1,
            ),
            (
                "rep insd",
                attempt!("rep insd", in("dx") 0x1234u16, inout("rdi") at => _, inout("rcx") 2u64 => _),
                PORT | 3 | 8 | 16 | 32,
                2,
            ),
            (
                "rep outsw",
                attempt!("rep outsw", in("dx") 0x1234u16, inout("rsi") at => _, inout("rcx") 2u64 => _),
                PORT | 1 | 16 | 32,
                3,
            ),
        ]
    };
    rows.into_iter()
        .try_for_each(|(what, outcome, qualification, length)| {
            raises_ve(what, outcome, (reason::IO, qualification, length))
        })
}

fn instructions() -> Check {
    // SAFETY: each raises #VE.
    let rows: [(&str, Outcome, u32, u32); 8] = unsafe {
        [
            ("hlt", attempt!("hlt"), reason::HLT, 1),
            ("wbinvd", attempt!("wbinvd"), reason::WBINVD, 2),
            (
                "wbnoinvd",
                attempt!(".byte 0xF3, 0x0F, 0x09"),
                reason::WBINVD,
                3,
            ),
            ("invd", attempt!("invd"), reason::INVD, 2),
            (
                "vmcall",
                attempt!(".byte 0x0F, 0x01, 0xC1"),
                reason::VMCALL,
                3,
            ),
            (
                "monitor",
                attempt!("monitor", in("rax") 0x1000u64, in("ecx") 0, in("edx") 0),
                reason::MONITOR,
                3,
            ),
            (
                "mwait",
                attempt!("mwait", in("eax") 0, in("ecx") 0),
                reason::MWAIT,
                3,
            ),
            (
                "pconfig",
                attempt!(".byte 0x0F, 0x01, 0xC5", in("eax") 0, in("ecx") 0, in("edx") 0),
                reason::PCONFIG,
                3,
            ),
        ]
    };
    for (what, outcome, reason, length) in rows {
        // Without the feature, MONITOR, MWAIT and PCONFIG may be unknown.
        let may_be_unknown = matches!(reason, reason::MONITOR | reason::MWAIT | reason::PCONFIG);
        if may_be_unknown && guest_kit::attempt::is_same(outcome, UD) {
            guest_kit::say!("note: {what} is unknown");
            continue;
        }
        raises_ve(what, outcome, (reason, 0, length))?;
    }
    Ok(())
}

fn vmx() -> Check {
    let place = [0u64; 2];
    let at = &raw const place as u64;
    // SAFETY: each raises #UD.
    let rows: [(&str, Outcome); 13] = unsafe {
        [
            ("vmclear", attempt!("vmclear [{o0}]", o0 = in(reg) at)),
            ("vmlaunch", attempt!("vmlaunch")),
            ("vmresume", attempt!("vmresume")),
            ("vmptrld", attempt!("vmptrld [{o0}]", o0 = in(reg) at)),
            ("vmptrst", attempt!("vmptrst [{o0}]", o0 = in(reg) at)),
            (
                "vmread",
                attempt!("vmread {o0}, {o0}", o0 = inout(reg) 0x681Eu64 => _),
            ),
            (
                "vmwrite",
                attempt!("vmwrite {o0}, {o0}", o0 = in(reg) 0x681Eu64),
            ),
            ("vmxon", attempt!("vmxon [{o0}]", o0 = in(reg) at)),
            ("vmxoff", attempt!("vmxoff")),
            (
                "invept",
                attempt!("invept {o0}, [{o1}]", o0 = in(reg) 2u64, o1 = in(reg) at),
            ),
            (
                "invvpid",
                attempt!("invvpid {o0}, [{o1}]", o0 = in(reg) 2u64, o1 = in(reg) at),
            ),
            (
                "vmfunc",
                attempt!(".byte 0x0F, 0x01, 0xD4", in("eax") 0, in("ecx") 0),
            ),
            (
                "seamcall",
                attempt!(".byte 0x66, 0x0F, 0x01, 0xCF", in("eax") 0),
            ),
        ]
    };
    rows.into_iter()
        .try_for_each(|(what, outcome)| raises(what, outcome, UD))
}

fn others() -> Check {
    // SAFETY: each raises #UD.
    let rows: [(&str, Outcome); 7] = unsafe {
        [
            ("getsec", attempt!(".byte 0x0F, 0x37", in("eax") 0)),
            ("rsm", attempt!("rsm")),
            ("encls", attempt!(".byte 0x0F, 0x01, 0xCF", in("eax") 0)),
            ("enclv", attempt!(".byte 0x0F, 0x01, 0xC0", in("eax") 0)),
            ("seamret", attempt!(".byte 0x66, 0x0F, 0x01, 0xCD")),
            (
                "seamops",
                attempt!(".byte 0x66, 0x0F, 0x01, 0xCE", in("eax") 0),
            ),
            ("ud2", attempt!("ud2")),
        ]
    };
    rows.into_iter()
        .try_for_each(|(what, outcome)| raises(what, outcome, UD))
}

fn rdpmc() -> Check {
    // SAFETY: it raises #GP.
    let outcome = unsafe { attempt!("rdpmc", in("ecx") 0, out("eax") _, out("edx") _) };
    raises("rdpmc", outcome, GP)
}

/// A processor of Intel's knows none.
fn svm() -> Check {
    // SAFETY: each raises #UD.
    let rows: [(&str, Outcome); 8] = unsafe {
        [
            ("vmrun", attempt!("vmrun rax", in("rax") 0u64)),
            ("vmload", attempt!("vmload rax", in("rax") 0u64)),
            ("vmsave", attempt!("vmsave rax", in("rax") 0u64)),
            ("stgi", attempt!("stgi")),
            ("clgi", attempt!("clgi")),
            ("skinit", attempt!("skinit eax", in("eax") 0)),
            (
                "invlpga",
                attempt!("invlpga rax, ecx", in("rax") 0u64, in("ecx") 0),
            ),
            ("vmmcall", attempt!("vmmcall")),
        ]
    };
    rows.into_iter()
        .try_for_each(|(what, outcome)| raises(what, outcome, UD))
}

fn native() -> Check {
    let place = [0u64; 16];
    let at = &raw const place as u64;
    // SAFETY: none changes anything but scratch registers and a buffer.
    let rows: [(&str, Outcome); 8] = unsafe {
        [
            ("rdtsc", attempt!("rdtsc", out("eax") _, out("edx") _)),
            (
                "rdtscp",
                attempt!("rdtscp", out("eax") _, out("edx") _, out("ecx") _),
            ),
            ("pause", attempt!("pause")),
            ("clflush", attempt!("clflush [{o0}]", o0 = in(reg) at)),
            ("invlpg", attempt!("invlpg [{o0}]", o0 = in(reg) at)),
            (
                "mov cr3",
                attempt!("mov {o0}, cr3; mov cr3, {o0}", o0 = out(reg) _),
            ),
            ("sgdt", attempt!("sgdt [{o0}]", o0 = in(reg) at)),
            ("rdrand", attempt!("rdrand {o0}", o0 = out(reg) _)),
        ]
    };
    rows.into_iter()
        .try_for_each(|(what, outcome)| raises(what, outcome, None))
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
    // SAFETY: callers write what the program can live with, or what is refused.
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
    const PE: u64 = 1 << 0;
    const MP: u64 = 1 << 1;
    const NE: u64 = 1 << 5;
    const WP: u64 = 1 << 16;
    const AM: u64 = 1 << 18;
    const NW: u64 = 1 << 29;
    const CD: u64 = 1 << 30;
    const PG: u64 = 1 << 31;
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
    const TSD: u64 = 1 << 2;
    const DE: u64 = 1 << 3;
    const PAE: u64 = 1 << 5;
    const MCE: u64 = 1 << 6;
    const PGE: u64 = 1 << 7;
    const UMIP: u64 = 1 << 11;
    const VMXE: u64 = 1 << 13;
    const SMXE: u64 = 1 << 14;
    const FSGSBASE: u64 = 1 << 16;
    const OSXSAVE: u64 = 1 << 18;
    const SMEP: u64 = 1 << 20;
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
    // What XFAM and ATTRIBUTES do not give: PKE, CET, PKS. SMX is nobody's in a TD.
    for (what, bit) in [("PKE", 1 << 22), ("CET", 1 << 23), ("PKS", 1 << 24)] {
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
    // SAFETY: the task priority is put back; CR3 stays what it is.
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
    const TS: u64 = 1 << 3;
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
    const OSXSAVE: u64 = 1 << 18;
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
        // It stays across an exit.
        let _ = guest_kit::vmcall::cpuid(0x4000_0000, 0);
        expect("XCR0", read(), value)?;
    }
    for (what, index, value) in [
        // TCG lets a TD load what TCG knows: MPX and PKRU are not tried.
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

/// Exceptions that are the guest's own affair.
fn exceptions() -> Check {
    let exception = |vector, error, cr2| Some(Caught::Exception { vector, error, cr2 });
    // SAFETY: each faults, and changes nothing.
    let rows: [(&str, Outcome, Outcome); 5] = unsafe {
        [
            (
                "divide error",
                attempt!("div {o0:e}", o0 = in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _),
                exception(0, 0, 0),
            ),
            ("breakpoint", None, None),
            (
                "segment not present",
                attempt!("mov fs, {o0:e}", o0 = in(reg) 0x80),
                exception(13, 0x80, 0),
            ),
            ("alignment", None, None),
            (
                "page fault",
                attempt!("mov {o0}, [{o1}]", o0 = out(reg) _, o1 = in(reg) 0x6F00_0000_0000u64),
                exception(14, 0, 0),
            ),
        ]
    };
    for (what, found, expected) in rows {
        raises(what, found, expected)?;
    }
    // SAFETY: faults.
    let fault = unsafe { attempt!("mov [{o0}], {o0}", o0 = in(reg) 0x6F00_0000_1008u64) };
    ensure!(
        matches!(
            fault,
            Some(Caught::Exception {
                vector: 14,
                error: 2,
                cr2: 0x6F00_0000_1008
            })
        ),
        "a write: {fault:?}"
    );
    Ok(())
}

/// RIP stays at the instruction, and the flags are those from before, RF apart, which its frame has.
fn flags() -> Check {
    let (before, after): (u64, u64);
    // SAFETY: a port that the host refuses; the handler goes on behind the instruction.
    unsafe {
        asm!("stc", "pushfq", "pop {b}", "in al, dx", "pushfq", "pop {a}",
            in("dx") 0x60u16, out("al") _, b = out(reg) before, a = out(reg) after);
    }
    expect("RFLAGS", after & 0x3F_7FD5, before & 0x3F_7FD5)
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

/// TF traps after an instruction that the module emulates, as after any other.
fn single_steps() -> Check {
    // SAFETY: the trap is caught, and clears TF in the flags that it resumes with: they are put back here.
    let (native, emulated) = unsafe {
        (
            attempt!(
                "pushfq; or qword ptr [rsp], 0x100; popfq; nop; nop; pushfq; and qword ptr [rsp], ~0x100; popfq"
            ),
            attempt!("pushfq; or qword ptr [rsp], 0x100; popfq; cpuid; nop; pushfq; and qword ptr [rsp], ~0x100; popfq",
                inout("eax") 0x15 => _, inout("ecx") 0 => _, out("edx") _, out("r8") _),
        )
    };
    clear_trap_flag();
    ensure!(
        matches!(native, Some(Caught::Elsewhere { .. })),
        "after NOP: {native:?}"
    );
    ensure!(
        matches!(emulated, Some(Caught::Elsewhere { .. })),
        "after CPUID: {emulated:?}"
    );
    Ok(())
}

fn clear_trap_flag() {
    // SAFETY: only TF changes.
    unsafe { asm!("pushfq", "and qword ptr [rsp], ~0x100", "popfq") };
}

/// A second #VE while the first one's information has not been fetched is #DF, and leaves the information alone.
fn nested_ve() -> Check {
    vcpu::current().fault_in_next_ve();
    // SAFETY: raises #VE, in whose handler another is raised.
    let outcome = unsafe { attempt!("hlt") };
    let Ok(info) = tdcall::veinfo_get() else {
        return guest_kit::fail!("the information is gone, {outcome:?}");
    };
    raises(
        "#VE within #VE",
        outcome,
        Some(Caught::Exception {
            vector: 8,
            error: 0,
            cr2: 0,
        }),
    )?;
    expect(
        "the first one's reason",
        info.reason.into(),
        reason::HLT.into(),
    )?;
    expect("its length", info.length.into(), 1)?;
    // And afterwards all is as before.
    // SAFETY: raises #VE.
    let outcome = unsafe { attempt!("hlt") };
    raises_ve("HLT", outcome, (reason::HLT, 0, 1))
}

fn all_at_once() -> Check {
    for _ in 0..100 {
        instructions_quietly()?;
        vmx()?;
        cr4()?;
    }
    Ok(())
}

fn instructions_quietly() -> Check {
    // SAFETY: both raise #VE.
    let (halt, port) = unsafe {
        (
            attempt!("hlt"),
            attempt!("in al, dx", in("dx") 0x70u16, out("al") _),
        )
    };
    raises_ve("hlt", halt, (reason::HLT, 0, 1))?;
    raises_ve("in al, dx", port, (reason::IO, 0x70 << 16 | 8, 1))
}

/// AVX registers and x87 survive exits to the host.
fn extended_state() -> Check {
    const OSXSAVE: u64 = 1 << 18;
    let cr4 = read_cr4();
    raises("OSXSAVE on", write_cr4(cr4 | OSXSAVE), None)?;
    const FLUSH_TO_ZERO: u32 = 0x9F80;
    const MXCSR_INITIAL: u32 = 0x1F80;
    let index = u64::from(vcpu::current().index());
    let values: [u64; 4 * 16] = core::array::from_fn(|i| index << 32 | i as u64 + 1);
    let mut found = [0u64; 4 * 16];
    let (mut x87, mut mxcsr) = (0u64, FLUSH_TO_ZERO);
    // SAFETY: the TD may have AVX; XCR0 and MXCSR are put back. The request changes the registers that are named.
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
