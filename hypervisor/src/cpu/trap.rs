//! Interrupt and exception entry: the stubs that every gate leads to, and the dispatch by vector.
#![expect(
    unsafe_code,
    reason = "the stubs are entered by the CPU itself, with a stack frame of its making"
)]

use core::{
    arch::naked_asm,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use mca::decide::{Next, Place};
use seam::hardware::fixup_for;

use super::{
    apic, check,
    fatal::fatal,
    line, module, nmi, timer,
    vector::{
        ACPI_VECTOR, CALL_VECTOR, CMCI_VECTOR, FAULT_VECTOR, MODULE_VECTOR, NOTIFICATION_VECTOR,
        SERIAL_VECTOR, TIMER_VECTOR,
    },
};
use crate::{
    button::{self, Event},
    exception::{Cause, Frame, GENERAL_PROTECTION, INVALID_OPCODE, MACHINE_CHECK, NMI, PAGE_FAULT},
    io_apic, iommu, msr, runtime, serial, time,
};

const FIRST_INTERRUPT: u8 = 32;

/// Count of interrupts with an unexpected vector.
static UNEXPECTED: AtomicU64 = AtomicU64::new(0);

const STUB_BYTES: u64 = 16;

/// Returns the address of a vector's stub.
pub(super) fn stub(vector: u8) -> u64 {
    stubs as *const () as u64 + u64::from(vector) * STUB_BYTES
}

/// Returns the number of interrupts with an unexpected vector.
pub fn unexpected() -> u64 {
    UNEXPECTED.load(Relaxed)
}

/// The stubs, 16 bytes for each vector. They lay out the stack alike with and without an error code.
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

/// Saves the registers that Rust code may change, calls [`handle`], and returns to the interrupted code.
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
        NMI => serve_nmi_of(frame),
        MACHINE_CHECK => machine_check(frame),
        vector @ 0..FIRST_INTERRUPT => exception(vector, frame),
        apic::SPURIOUS_VECTOR => {}
        vector => serve_interrupt(vector),
    }
}

/// Serves an interrupt that was acknowledged, here or by a TD's exit, and ends it.
pub fn serve_interrupt(vector: u8) {
    match vector {
        CALL_VECTOR => super::serve_calls(),
        TIMER_VECTOR => {
            let fired = timer::fired();
            if let Some(cpu) = super::this() {
                serve_timer(cpu, fired);
            }
            if fired.look {
                check::on_timer();
            }
            if fired.rest {
                line::on_timer();
            }
        }
        SERIAL_VECTOR => {
            if serial::on_interrupt()
                && let Some(cpu) = super::this()
            {
                cpu.attention.poke();
            }
        }
        ACPI_VECTOR => match button::on_interrupt() {
            Event::Pressed => super::wake_console(),
            Event::Other => {}
            Event::Broken => io_apic::mask_acpi(),
        },
        NOTIFICATION_VECTOR => {}
        CMCI_VECTOR => check::on_signal(),
        MODULE_VECTOR => module::on_interrupt(),
        FAULT_VECTOR => {
            iommu::on_interrupt();
            super::wake_console();
        }
        vector if line::on_interrupt(vector) => {}
        _ => {
            UNEXPECTED.fetch_add(1, Relaxed);
        }
    }
    apic::end_of_interrupt();
}

fn serve_timer(cpu: &super::Cpu, fired: timer::Fired) {
    if fired.own {
        cpu.attention.ring();
    }
    if fired.poll {
        let (news, next_us) = serial::on_poll();
        if news {
            cpu.attention.poke();
        }
        timer::poll_at(time::Deadline::after_us(next_us).tsc());
    }
}

/// Serves an NMI that a TD's exit consumed.
pub fn serve_nmi() {
    serve_nmi_of(&Frame::of_td_exit(NMI));
}

fn serve_nmi_of(frame: &Frame) {
    if nmi::serve() {
        fatal(Cause::Nmi, frame);
    }
}

/// Serves a machine check that happened in a TD, which has ended. Returns unless the machine must stop.
pub fn serve_machine_check() {
    if let Next::Stop(_) = check::serve(Place::Td) {
        fatal(Cause::MachineCheck, &Frame::of_td_exit(MACHINE_CHECK));
    }
}

fn machine_check(frame: &mut Frame) {
    let resume = fixup_for(frame.rip).filter(|_| msr::is_load(frame.rip));
    let place = match resume {
        Some(_) => Place::Probe,
        None => Place::Host,
    };
    match (check::serve(place), resume) {
        (Next::Continue, _) => {}
        (Next::Fail, Some(resume)) => survive(frame, resume),
        (Next::Fail | Next::Stop(_), _) => fatal(Cause::MachineCheck, frame),
    }
}

/// Makes the instruction that failed report so, and continues behind it.
fn survive(frame: &mut Frame, resume: u64) {
    frame.rip = resume;
    frame.rax = frame.vector;
    frame.rdx = frame.error;
}

fn exception(vector: u8, frame: &mut Frame) {
    let survivable = matches!(vector, INVALID_OPCODE | GENERAL_PROTECTION | PAGE_FAULT);
    match fixup_for(frame.rip) {
        Some(resume) if survivable => survive(frame, resume),
        None if runtime::recover_from(frame) => {}
        _ => fatal(Cause::Exception, frame),
    }
}
