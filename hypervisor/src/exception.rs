//! The frame that a CPU stores on an exception, and the names of exceptions.

use x86_64::registers::control::Cr2;

use crate::msr::Fault;

pub use seam::abi::x86::vector::{
    GP as GENERAL_PROTECTION, MC as MACHINE_CHECK, NMI, PF as PAGE_FAULT, UD as INVALID_OPCODE,
};

/// The registers of the interrupted code, as the stubs and the CPU stored them.
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

impl Frame {
    /// Stands in for the registers where there are none: a TD's exit consumed the event `vector`, and the interrupted
    /// code is the TD's.
    #[must_use]
    pub fn of_td_exit(vector: u8) -> Self {
        Self {
            vector: vector.into(),
            ..Self::default()
        }
    }

    /// Returns true if the frame has no registers. Interrupted code always has a code segment.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.cs == 0
    }
}

/// The reason why a CPU can't go on.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An unexpected exception.
    Exception = 1,
    /// A non-maskable interrupt that was not this program's own.
    Nmi = 2,
    /// A machine check.
    MachineCheck = 3,
    /// A broken invariant.
    Panic = 4,
    /// The firmware reported a fatal hardware error.
    Firmware = 5,
}

impl Cause {
    /// Returns the name that tools use for the cause.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exception => "exception",
            Self::Nmi => "nmi",
            Self::MachineCheck => "machine-check",
            Self::Panic => "panic",
            Self::Firmware => "firmware-error",
        }
    }
}

/// Describes a fault for people.
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

/// Returns the address of the last page fault on this CPU.
#[must_use]
pub fn fault_address() -> u64 {
    Cr2::read_raw()
}

/// Returns the mnemonic of an exception.
#[must_use]
pub fn name(vector: u8) -> &'static str {
    const NAMES: [&str; 22] = [
        "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "CSO", "#TS", "#NP", "#SS",
        "#GP", "#PF", "-", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
    ];
    NAMES.get(usize::from(vector)).copied().unwrap_or("-")
}
