//! Instructions that may fault. Each is executed under the exception handlers, which return what it raised.

use core::fmt;

use seam::abi::x86::vector;

use crate::tdcall::VeInfo;
use crate::vcpu;

/// The event that ended an instruction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Caught {
    /// An exception.
    Exception {
        /// The vector.
        vector: u8,
        /// The error code, or zero.
        error: u64,
        /// CR2 at the exception.
        cr2: u64,
    },
    /// A #VE, whose information was fetched.
    Ve(VeInfo),
    /// An event at another address than the instruction's.
    Elsewhere {
        /// The address of the event.
        rip: u64,
    },
}

/// The outcome of an instruction: `None` if it completed.
pub type Outcome = Option<Caught>;

/// #GP(0).
pub const GP: Outcome = exception(vector::GP);
/// #UD.
pub const UD: Outcome = exception(vector::UD);

/// Creates an exception with error code zero or none. It is compared without CR2.
const fn exception(vector: u8) -> Outcome {
    Some(Caught::Exception {
        vector,
        error: 0,
        cr2: 0,
    })
}

/// Compares an [`Outcome`] with the expected one.
pub fn is_same(outcome: Outcome, expected: Outcome) -> bool {
    match (outcome, expected) {
        (
            Some(Caught::Exception { vector, error, .. }),
            Some(Caught::Exception {
                vector: expected,
                error: code,
                ..
            }),
        ) => vector == expected && error == code,
        (a, b) => a == b,
    }
}

/// Returns the exit reason of a #VE.
pub fn ve_reason(outcome: Outcome) -> Option<u32> {
    match outcome {
        Some(Caught::Ve(info)) => Some(info.reason),
        _ => None,
    }
}

/// Takes the outcome of the last attempt on this vCPU.
pub fn outcome() -> Outcome {
    vcpu::current().caught.lock().take()
}

impl fmt::Debug for Caught {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exception { vector, error, cr2 } => {
                write!(f, "exception {vector} ({error:#x}), CR2 {cr2:#x}")
            }
            Self::Ve(info) => write!(
                f,
                "#VE {} ({:#x}) GPA {:#x} GLA {:#x} length {}",
                info.reason, info.qualification, info.gpa, info.gla, info.length
            ),
            Self::Elsewhere { rip } => write!(f, "a fault at {rip:#x}"),
        }
    }
}

/// Executes one instruction, with the operands of [`core::arch::asm`]. Returns what it raised as an [`Outcome`].
///
/// # Safety
/// As for `asm!`, whether the instruction completes or not.
#[macro_export]
macro_rules! attempt {
    ($instruction:literal $(, $($operands:tt)*)?) => {{
        core::arch::asm!(
            "lea {scratch}, [rip + 2f]",
            "mov gs:[{attempted}], {scratch}",
            "lea {scratch}, [rip + 3f]",
            "mov gs:[{resume}], {scratch}",
            concat!("2: ", $instruction),
            "3: mov qword ptr gs:[{resume}], 0",
            scratch = out(reg) _,
            attempted = const $crate::vcpu::ATTEMPTED,
            resume = const $crate::vcpu::RESUME,
            $($($operands)*)?
        );
        $crate::attempt::outcome()
    }};
}
