//! What happens when the CPU is interrupted: the stubs that every gate leads to, and who deals with which vector.
#![expect(
    unsafe_code,
    reason = "the stubs are entered by the CPU itself, with a stack frame of its making"
)]

use core::{
    arch::naked_asm,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use seam::hardware::fixup_for;
use x86_64::registers::control::Cr2;

use super::{apic, msr::Fault};
use crate::{crash, serial};

/// The vector of calls from other CPUs.
pub const CALL_VECTOR: u8 = 0xE0;
/// The vector of a CPU's own timer.
pub const TIMER_VECTOR: u8 = 0xE1;
/// The vector by which a CPU in a TD learns that something was posted for the vCPU. Outside of a TD nothing comes of it: the
/// CPU looks before it enters one.
pub const NOTIFICATION_VECTOR: u8 = 0xE2;
/// The vector of the serial port.
pub const SERIAL_VECTOR: u8 = 0x40;

const NMI: u8 = 2;
const INVALID_OPCODE: u8 = 6;
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;
const MACHINE_CHECK: u8 = 18;
const FIRST_INTERRUPT: u8 = 32;

/// Interrupts with a vector that nobody asked for.
static UNEXPECTED: AtomicU64 = AtomicU64::new(0);

/// The registers of what was interrupted, as the stubs and the CPU stored them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[expect(
    missing_docs,
    reason = "the fields are the registers of the same names"
)]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

const STUB_BYTES: u64 = 16;

/// The address of the stub of a vector.
pub(super) fn stub(vector: u8) -> u64 {
    stubs as *const () as u64 + u64::from(vector) * STUB_BYTES
}

/// How many interrupts came with a vector that nobody asked for.
pub fn unexpected() -> u64 {
    UNEXPECTED.load(Relaxed)
}

/// One stub of 16 bytes for each vector: it makes the stack look the same with and without an error code.
#[unsafe(naked)]
unsafe extern "sysv64" fn stubs() {
    naked_asm!(
        ".balign 16",
        ".set seamark_vector, 0",
        ".rept 256",
        ".balign 16",
        ".if seamark_vector == 8 || (seamark_vector >= 10 && seamark_vector <= 14) || seamark_vector == 17 || seamark_vector == 21 || seamark_vector == 29 || seamark_vector == 30",
        ".else",
        "pushq $0",
        ".endif",
        "pushq $seamark_vector",
        "jmp {common}",
        ".set seamark_vector, seamark_vector + 1",
        ".endr",
        common = sym common,
        options(att_syntax)
    )
}

/// Saves what Rust code may change, calls [`handle`], and returns to what was interrupted.
#[unsafe(naked)]
unsafe extern "sysv64" fn common() {
    naked_asm!(
        "push rax",
        "push rbx",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "push rbp",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "cld",
        "mov rdi, rsp",
        "mov rbx, rsp",
        boot::with_xmm_kept!("call {handle}"),
        "mov rsp, rbx",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rbp",
        "pop rdi",
        "pop rsi",
        "pop rdx",
        "pop rcx",
        "pop rbx",
        "pop rax",
        "add rsp, 16",
        "iretq",
        handle = sym handle,
    )
}

extern "sysv64" fn handle(frame: &mut Frame) {
    match frame.vector as u8 {
        NMI => nmi(frame),
        MACHINE_CHECK => crash::crash(crash::Cause::MachineCheck, frame),
        vector @ 0..FIRST_INTERRUPT => exception(vector, frame),
        apic::SPURIOUS_VECTOR => {}
        vector => serve_interrupt(vector),
    }
}

/// Serves an interrupt that was acknowledged, and ends it: here, or by a TD's exit.
pub fn serve_interrupt(vector: u8) {
    match vector {
        CALL_VECTOR => super::serve_calls(),
        TIMER_VECTOR => {
            if let Some(cpu) = super::this() {
                cpu.timer.went_off();
                cpu.attention.ring();
            }
        }
        SERIAL_VECTOR => {
            serial::on_interrupt();
            if let Some(cpu) = super::this() {
                cpu.attention.poke();
            }
        }
        NOTIFICATION_VECTOR => {}
        _ => {
            UNEXPECTED.fetch_add(1, Relaxed);
        }
    }
    apic::end_of_interrupt();
}

/// Serves an NMI that a TD's exit consumed.
pub fn serve_nmi() {
    nmi(&Frame::default());
}

/// A machine check happened in a TD: the record tells of the banks.
pub fn serve_machine_check() {
    crash::crash(crash::Cause::MachineCheck, &Frame::default());
}

fn exception(vector: u8, frame: &mut Frame) {
    let survivable = matches!(vector, INVALID_OPCODE | GENERAL_PROTECTION | PAGE_FAULT);
    match fixup_for(frame.rip) {
        Some(resume) if survivable => {
            frame.rip = resume;
            frame.rax = u64::from(vector);
            frame.rdx = frame.error;
        }
        _ => crash::crash(crash::Cause::Exception, frame),
    }
}

/// A CPU that crashed, or ends this boot, stops the others by NMI. Any other NMI is the machine's own cry for help.
fn nmi(frame: &Frame) {
    if super::stopping() {
        super::stop_here();
    }
    crash::crash(crash::Cause::Nmi, frame);
}

/// What a fault was, for people.
#[must_use]
pub fn describe(fault: Fault) -> alloc::string::String {
    let name = name(fault.vector);
    match fault.vector {
        PAGE_FAULT => {
            let why = match fault.code {
                code if code & 1 << 3 != 0 => {
                    "a reserved bit is set: the address exceeds the CPU's"
                }
                code if code & 1 == 0 => "nothing is mapped there",
                _ => "the access is not allowed",
            };
            alloc::format!("{name}, error code {:#x}: {why}", fault.code)
        }
        _ => alloc::format!("{name}, error code {:#x}", fault.code),
    }
}

/// The address of the last page fault on this CPU.
#[must_use]
pub fn fault_address() -> u64 {
    Cr2::read_raw()
}

/// The mnemonic of an exception.
#[must_use]
pub fn name(vector: u8) -> &'static str {
    const NAMES: [&str; 22] = [
        "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "CSO", "#TS", "#NP", "#SS",
        "#GP", "#PF", "-", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
    ];
    NAMES.get(usize::from(vector)).copied().unwrap_or("-")
}
