//! Exceptions, #VE, interrupts: the tables of a vCPU, and the handling of events.
#![expect(
    unsafe_code,
    reason = "loads descriptor tables and contains their handlers"
)]

use core::arch::{asm, naked_asm};
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use seam::abi::x86::{rflags, vector};
use spin::Once;
use td_base::long_mode::{CODE, DATA, SEGMENTS};

use crate::attempt::Caught;
use crate::vcpu::{self, EVENT_STACKS};
use crate::{apic, console, cpu, tdcall, ve, vmcall};

/// The non-maskable interrupt.
const NMI: u64 = vector::NMI as u64;
/// The double fault.
const DOUBLE_FAULT: u64 = 8;
/// The virtualization exception.
const VIRTUALIZATION: u64 = vector::VE as u64;
/// The first vector of interrupts.
const FIRST_INTERRUPT: u64 = 32;
/// The vector of spurious interrupts, which are not ended.
pub(crate) const SPURIOUS: u8 = 0xFF;

/// A vCPU's segments and task state. The words are atomic so that zeroed memory can become tables without a lock.
#[repr(C)]
pub(crate) struct Tables {
    gdt: [AtomicU64; SEGMENTS.len() + 2],
    /// The task state, from its byte 4 on: three stacks of other privilege levels, a reserved word, the event stacks,
    /// and the offset of the I/O map.
    task: [AtomicU64; 13],
}

const TASK_SELECTOR: u16 = 8 * SEGMENTS.len() as u16;
/// A present, available 64-bit task state.
const TASK_TYPE: u64 = 0x89 << 40;

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

type Idt = [[u64; 2]; 256];

/// Loads a vCPU's tables, and the shared interrupt descriptors.
pub(crate) fn load(tables: &'static Tables, event_stacks: [u64; EVENT_STACKS]) {
    // RSP0 to RSP2 and the reserved word precede the event stacks; the whole begins with four reserved bytes.
    let mut bytes = [0u8; 104];
    for (at, stack) in (0x24..).step_by(8).zip(event_stacks) {
        bytes[at..at + 8].copy_from_slice(&stack.to_le_bytes());
    }
    bytes[0x66..].copy_from_slice(&104u16.to_le_bytes());
    for (word, chunk) in tables.task.iter().zip(bytes.as_chunks::<8>().0) {
        word.store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
    }
    let base = tables.task.as_ptr() as u64;
    let limit = bytes.len() as u64 - 1;
    let low = limit | (base & 0xFF_FFFF) << 16 | TASK_TYPE | (base >> 24 & 0xFF) << 56;
    for (entry, value) in tables
        .gdt
        .iter()
        .zip(SEGMENTS.into_iter().chain([low, base >> 32]))
    {
        entry.store(value, Ordering::Relaxed);
    }
    let gdt = Pointer {
        limit: size_of_val(&tables.gdt) as u16 - 1,
        base: tables.gdt.as_ptr() as u64,
    };
    let idt = Pointer {
        limit: size_of::<Idt>() as u16 - 1,
        base: interrupt_descriptors() as *const Idt as u64,
    };
    // SAFETY: the tables live as long as the program, and the segments are those in use.
    unsafe {
        asm!("lgdt [{}]", in(reg) &gdt, options(nostack));
        asm!("ltr {:x}", in(reg) TASK_SELECTOR, options(nostack));
        asm!("lidt [{}]", in(reg) &idt, options(nostack));
        asm!("mov ss, {:e}", in(reg) u32::from(DATA), options(nostack));
    }
}

fn interrupt_descriptors() -> &'static Idt {
    static IDT: Once<Idt> = Once::new();
    IDT.call_once(|| {
        core::array::from_fn(|vector| {
            let at = stubs as *const () as u64 + (STUB_BYTES * vector) as u64;
            // The prebuilt `core` uses the red zone, so every event has its own stack.
            let stack = match vector as u64 {
                VIRTUALIZATION => 2,
                NMI => 3,
                DOUBLE_FAULT => 4,
                FIRST_INTERRUPT.. => 5,
                _ => 1u64,
            };
            let gate = 0x8E00 << 32;
            [
                at & 0xFFFF
                    | u64::from(CODE) << 16
                    | stack << 32
                    | gate
                    | (at >> 16 & 0xFFFF) << 48,
                at >> 32,
            ]
        })
    })
}

/// The state that an event interrupted.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    vector: u64,
    error: u64,
    pub rip: u64,
    cs: u64,
    pub rflags: u64,
    rsp: u64,
    ss: u64,
}

const STUB_BYTES: usize = 16;

/// One stub per vector: it pushes the error code, or zero if there is none, then the vector, and continues.
#[unsafe(naked)]
unsafe extern "C" fn stubs() {
    naked_asm!(
        ".set guest_vector, 0",
        ".rept 256",
        ".balign {stub}, 0xCC",
        ".if !(guest_vector == 8 || (guest_vector >= 10 && guest_vector <= 14) || guest_vector == 17 || guest_vector == 21 || guest_vector == 29 || guest_vector == 30)",
        "push 0",
        ".endif",
        // PUSH of four bytes; the assembler would make it a load from memory.
        ".byte 0x68",
        ".long guest_vector",
        "jmp {common}",
        ".set guest_vector, guest_vector + 1",
        ".endr",
        stub = const STUB_BYTES,
        common = sym common,
    )
}

/// Saves all registers, calls [`event`], and returns to the interrupted code.
#[unsafe(naked)]
unsafe extern "C" fn common() {
    naked_asm!(
        "push rax",
        "push rcx",
        "push rdx",
        "push rbx",
        "push rbp",
        "push rsi",
        "push rdi",
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
        "mov rbp, rsp",
        boot::with_xmm_kept!("call {event}"),
        "mov rsp, rbp",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rdi",
        "pop rsi",
        "pop rbp",
        "pop rbx",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "add rsp, 16",
        "iretq",
        event = sym event,
    )
}

extern "sysv64" fn event(frame: &mut Frame) {
    let vcpu = vcpu::current();
    match frame.vector {
        NMI => {
            if vcpu.in_nmi.swap(true, Ordering::Relaxed) {
                vcpu.nested_nmis.fetch_add(1, Ordering::Relaxed);
            }
            vcpu.nmis.fetch_add(1, Ordering::Release);
            vcpu::call(vcpu.nmi_hook.swap(0, Ordering::Relaxed));
            vcpu.in_nmi.store(false, Ordering::Relaxed);
        }
        FIRST_INTERRUPT.. => {
            vcpu.interrupts[frame.vector as usize].fetch_add(1, Ordering::Release);
            let order = vcpu.order.load(Ordering::Relaxed);
            vcpu.order
                .store(order << 8 | frame.vector, Ordering::Relaxed);
            if frame.vector != u64::from(SPURIOUS) {
                apic::end_of_interrupt();
            }
        }
        VIRTUALIZATION => virtualization(frame),
        vector => {
            if vector == DOUBLE_FAULT {
                give_up_ve(frame);
            }
            let caught = Caught::Exception {
                vector: vector as u8,
                error: frame.error,
                cr2: cr2(),
            };
            if !resume_attempt(frame, caught) {
                die(frame, format_args!("exception"));
            }
        }
    }
}

/// A check's request to the next #VE's handler: raise another #VE.
pub(crate) const FAULT: u32 = 1;
/// A check's request to the next #VE's handler: call the function that it named.
pub(crate) const ASK: u32 = 2;

/// Attributes a #DF in the handler of a #VE to the code that the #VE interrupted, and continues there.
fn give_up_ve(frame: &mut Frame) {
    let interrupted = vcpu::current().ve_frame.swap(0, Ordering::Relaxed) as *const Frame;
    // SAFETY: zero, or the frame of the handler that was interrupted, on a stack that nothing has used since.
    if let Some(interrupted) = unsafe { interrupted.as_ref() } {
        let error = frame.error;
        *frame = *interrupted;
        (frame.vector, frame.error) = (DOUBLE_FAULT, error);
    }
}

fn virtualization(frame: &mut Frame) {
    match vcpu::current().mischief.swap(0, Ordering::Relaxed) {
        FAULT => {
            let at = &raw const *frame as u64;
            vcpu::current().ve_frame.store(at, Ordering::Relaxed);
            // The module does not answer this leaf.
            cpu::cpuid(0x4000_0000, 0);
        }
        ASK => vcpu::call_ve_hook(),
        _ => {}
    }
    let info = match tdcall::veinfo_get() {
        Ok(info) => info,
        Err(status) => die(frame, format_args!("#VE without information ({status:?})")),
    };
    if resume_attempt(frame, Caught::Ve(info)) {
        return;
    }
    match ve::serve(&info, frame) {
        Ok(()) => {
            vcpu::current().served.fetch_add(1, Ordering::Relaxed);
        }
        Err(why) => die(frame, format_args!("#VE {why}: {info:x?}")),
    }
}

/// Ends an attempt with `caught`, if one is in progress.
fn resume_attempt(frame: &mut Frame, caught: Caught) -> bool {
    let vcpu = vcpu::current();
    let resume = vcpu.resume.swap(0, Ordering::Relaxed);
    if resume == 0 {
        return false;
    }
    let at = vcpu.attempted.load(Ordering::Relaxed);
    let is_double =
        matches!(caught, Caught::Exception { vector, .. } if u64::from(vector) == DOUBLE_FAULT);
    let caught = if frame.rip == at || is_double {
        caught
    } else {
        Caught::Elsewhere { rip: frame.rip }
    };
    if matches!(caught, Caught::Elsewhere { .. }) {
        // The attempted event was a trap; it must not be repeated.
        frame.rflags &= !rflags::TF;
    }
    *vcpu.caught.lock() = Some(caught);
    frame.rip = resume;
    true
}

fn cr2() -> u64 {
    let value;
    // SAFETY: reading it changes nothing.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack)) };
    value
}

/// Ends the guest because of an unexpected event.
fn die(frame: &Frame, what: fmt::Arguments<'_>) -> ! {
    console::last_words(format_args!(
        "FAIL vCPU {}: {what}: vector {} error {:#x} rip {:#x} rsp {:#x} rax {:#x} rcx {:#x} rdx {:#x} cr2 {:#x}",
        vcpu::current().index(),
        frame.vector,
        frame.error,
        frame.rip,
        frame.rsp,
        frame.rax,
        frame.rcx,
        frame.rdx,
        cr2(),
    ));
    vmcall::report_fatal_error(0, "unexpected exception")
}
