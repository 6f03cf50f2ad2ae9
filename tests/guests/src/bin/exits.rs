//! A guest that checks instructions and exceptions: native, emulated, #VE, #GP, #UD, and a #VE within a #VE.
//!
//! Rows: TDX Module ABI 1.5, "Instruction and exception virtualization".
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "executes instructions that affect the machine")]

use core::arch::asm;

use guest_kit::attempt::{Caught, GP, Outcome, UD};
use guest_kit::check::{Check, Checks, expect};
use guest_kit::ve::reason;
use guest_kit::{attempt, ensure, guest, tdcall, vcpu};
use guests::gone::code_that_is_gone;
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
    checks.each("exceptions", exceptions);
    checks.each("flags-at-a-ve", flags);
    checks.each("single-steps", single_steps);
    checks.each("ve-within-a-ve", nested_ve);
    checks.each("code-that-is-gone", code_that_is_gone);
    checks.together("all-at-once", all_at_once);
}

/// I/O qualification: bytes less one, 8 in, 16 string, 32 repeated, 64 immediate, port.
fn ports() -> Check {
    const PORT: u64 = 0x1234 << 16;
    const IMMEDIATE: u64 = 0x60 << 16 | 64;
    // SAFETY: no port is accessed: each raises #VE.
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

/// Checks that SVM instructions raise #UD, as on an Intel processor.
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
    // SAFETY: only scratch registers and a buffer are changed.
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

/// Checks the exceptions that only the guest handles.
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

/// Checks that RIP stays at the instruction. The flags are those from before, except for RF, which the frame has.
fn flags() -> Check {
    let (before, after): (u64, u64);
    // SAFETY: a port that the host refuses; the handler continues behind the instruction.
    unsafe {
        asm!("stc", "pushfq", "pop {b}", "in al, dx", "pushfq", "pop {a}",
            in("dx") 0x60u16, out("al") _, b = out(reg) before, a = out(reg) after);
    }
    expect("RFLAGS", after & 0x3F_7FD5, before & 0x3F_7FD5)
}

fn single_steps() -> Check {
    // SAFETY: the trap is caught, and clears TF in the flags that it resumes with: they are restored here.
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

/// Checks that a second #VE, before the first one's information has been fetched, is a #DF that leaves the information
/// intact.
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
    // Afterwards everything is as before.
    // SAFETY: raises #VE.
    let outcome = unsafe { attempt!("hlt") };
    raises_ve("HLT", outcome, (reason::HLT, 0, 1))
}

fn all_at_once() -> Check {
    for _ in 0..100 {
        instructions_quietly()?;
        vmx()?;
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
