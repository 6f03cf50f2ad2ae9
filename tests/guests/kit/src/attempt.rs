//! Instructions that may fault: each is executed with a net, and says what it raised.

use core::fmt;

use crate::tdcall::VeInfo;
use crate::vcpu;

/// How an instruction ended that did not complete.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Caught {
    /// An exception.
    Exception {
        /// Its vector.
        vector: u8,
        /// Its error code, or zero.
        error: u64,
        /// CR2 then.
        cr2: u64,
    },
    /// A #VE, whose information was fetched.
    Ve(VeInfo),
    /// Any of them, but at another address than the instruction's.
    Elsewhere {
        /// That address.
        rip: u64,
    },
}

/// How an instruction ended: `None` when it completed.
pub type Outcome = Option<Caught>;

/// #GP(0).
pub const GP: Outcome = exception(13);
/// #UD.
pub const UD: Outcome = exception(6);

/// An exception without an error code, or with zero, compared without CR2.
const fn exception(vector: u8) -> Outcome {
    Some(Caught::Exception {
        vector,
        error: 0,
        cr2: 0,
    })
}

/// What is expected of an instruction, to compare an [`Outcome`] with.
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

/// The exit reason of a #VE.
pub fn ve_reason(outcome: Outcome) -> Option<u32> {
    match outcome {
        Some(Caught::Ve(info)) => Some(info.reason),
        _ => None,
    }
}

/// How the last attempt on this vCPU ended.
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

/// Executes one instruction, with the operands of [`core::arch::asm`]; what it raised is an [`Outcome`].
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
