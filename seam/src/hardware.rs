//! The SEAMCALL instruction, and recovery from faulting instructions.
//!
//! An instruction that may fault has an entry in the link section `seamark_fixups`: its address, and the address at
//! which to continue. An exception handler that finds the faulting address there ([`fixup_for`]) loads RAX with the
//! vector and RDX with the error code, and continues at the second address.
#![expect(
    unsafe_code,
    reason = "SEAMCALL is an instruction without an intrinsic, and the fixup table is made by the linker"
)]

use core::slice;

use crate::{
    abi::{Gprs, x86::vector},
    call::{Fault, SeamCall},
};

/// The CPU's own SEAMCALL instruction.
///
/// The program must run at CPL 0 with an exception handler that uses [`fixup_for`]. Otherwise, on a CPU that does not
/// support the instruction, the fault is fatal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hardware;

impl SeamCall for Hardware {
    fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault> {
        // SAFETY: `regs` is a valid block of registers. The leaf and its operands determine what the module does with
        // memory, and the typed calls are responsible for those.
        match unsafe { seamcall(regs) } {
            0 => Ok(()),
            VM_FAIL_INVALID => Err(Fault::NotLoaded),
            INVALID_OPCODE => Err(Fault::NotVmx),
            _ => Err(Fault::NotEnabled),
        }
    }

    // The instruction has no host. A wrapper that has one records it.
    fn note_shutdown(&self) {}
}

const INVALID_OPCODE: u64 = vector::UD as u64;
const VM_FAIL_INVALID: u64 = 0x100;

/// The body of a naked `extern "sysv64" fn(*mut Gprs) -> u64`: loads the registers, executes the instruction, and
/// stores the registers. To measure the overhead around a SEAMCALL, pass another instruction.
#[doc(hidden)]
#[macro_export]
macro_rules! naked_seamcall {
    ($instruction:literal $(, $($operands:tt)*)?) => {
        $crate::naked_with_gprs!(
            execute: [concat!("2: ", $instruction), "jc 3f"],
            end: ["xor eax, eax", "jmp 4f", "3: mov eax, 0x100", "4:"],
            tail: [
                ".pushsection seamark_fixups, \"aR\", @progbits",
                ".balign 4",
                ".long 2b - .",
                ".long 4b - .",
                ".popsection",
            ],
            $($($operands)*)?
        )
    };
}

/// Executes SEAMCALL with the registers of `regs`. Returns 0 and writes all of them back. With CF = 1 it returns 0x100,
/// and after a fault the vector; `regs` is then unchanged.
#[unsafe(naked)]
unsafe extern "sysv64" fn seamcall(regs: *mut Gprs) -> u64 {
    naked_seamcall!(".byte 0x66, 0x0F, 0x01, 0xCF")
}

/// An entry of the fixup table. Each address is relative to its own field.
#[repr(C)]
struct Fixup {
    at: i32,
    resume: i32,
}

unsafe extern "C" {
    #[link_name = "__start_seamark_fixups"]
    static FIXUPS_START: Fixup;
    #[link_name = "__stop_seamark_fixups"]
    static FIXUPS_END: Fixup;
}

/// Returns the address at which to continue after a fault at `rip`, or `None` if no fixup exists.
#[must_use]
pub fn fixup_for(rip: u64) -> Option<u64> {
    let start = &raw const FIXUPS_START;
    let len = (&raw const FIXUPS_END as usize - start as usize) / size_of::<Fixup>();
    // SAFETY: the linker gathers the entries, all of this layout, between the two symbols.
    let fixups = unsafe { slice::from_raw_parts(start, len) };
    let absolute = |field: &i32| (&raw const *field as u64).wrapping_add_signed(i64::from(*field));
    fixups
        .iter()
        .find(|fixup| absolute(&fixup.at) == rip)
        .map(|fixup| absolute(&fixup.resume))
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn only_registered_instructions_are_survived() {
        let seamcall = seamcall as *const () as u64;
        let survived: Vec<u64> = (seamcall..seamcall + 200).filter_map(fixup_for).collect();
        assert_eq!(
            survived.len(),
            1,
            "the instruction itself, and nothing near it"
        );
        assert!((seamcall..seamcall + 300).contains(&survived[0]));
        assert_eq!(fixup_for(0), None);
    }
}
