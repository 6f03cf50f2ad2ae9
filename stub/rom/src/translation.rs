//! Translation of a TD's SVM exits to VM exits of VMX, each with the fields that VMX fills, in one table.
//!
//! The monitor produces the exits. Before the module sees one, the monitor compares it with its row, except for the
//! exits of TDCALL, whose fields are constants. A mismatch ends that TD.

use core::ops::RangeInclusive;

use seam::abi::x86::exit_reason as reason;

/// Interruption or IDT-vectoring information holds an event.
const VALID: u64 = 1 << 31;
/// Maximum length of an instruction in bytes.
const MOST: usize = 15;

/// A VM exit, with the information that the processor reports about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmExit {
    /// The full exit reason.
    pub reason: u32,
    /// The exit qualification.
    pub qualification: u64,
    /// The guest-physical address.
    pub gpa: u64,
    /// The guest-linear address.
    pub gla: u64,
    /// The length of the instruction.
    pub length: usize,
    /// Interruption information and error code.
    pub interruption: (u64, u64),
    /// IDT-vectoring information and error code.
    pub vectoring: (u64, u64),
}

impl VmExit {
    /// Returns an exit without further information.
    #[must_use]
    pub fn of(reason: u32) -> Self {
        Self {
            reason,
            ..Self::default()
        }
    }

    /// Returns an exit caused by an instruction of `length` bytes.
    #[must_use]
    pub fn by(reason: u32, length: usize) -> Self {
        Self {
            length,
            ..Self::of(reason)
        }
    }

    /// Returns the same exit with a qualification.
    #[must_use]
    pub fn qualified(self, qualification: u64) -> Self {
        Self {
            qualification,
            ..self
        }
    }
}

/// A field of a VM exit that is not zero for every reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Has {
    /// The length of the instruction, 1 to 15.
    Length,
    /// The exit qualification.
    Qualification,
    /// The guest-physical address.
    Gpa,
    /// The guest-linear address, if known.
    Gla,
    /// Valid interruption information.
    Interruption,
    /// IDT-vectoring information, if an event was being delivered.
    Vectoring,
}

/// A VM exit and the fields that VMX fills. All other fields are zero.
#[derive(Clone, Copy, Debug)]
pub struct Becomes {
    /// The full exit reason.
    pub reason: u32,
    /// The other fields that it fills.
    pub has: &'static [Has],
}

/// SVM exits with the same translation. An exit without a VM exit in its list resumes the guest, with or without an
/// exception.
#[derive(Clone, Debug)]
pub struct Row {
    /// The SVM exit codes.
    pub codes: RangeInclusive<u64>,
    /// Their name.
    pub name: &'static str,
    /// The VM exits that they can become.
    pub exits: &'static [Becomes],
}

const fn exit(reason: u32, has: &'static [Has]) -> Becomes {
    Becomes { reason, has }
}

const fn row(first: u64, last: u64, name: &'static str, exits: &'static [Becomes]) -> Row {
    Row {
        codes: first..=last,
        name,
        exits,
    }
}

/// Returns the exit of an instruction without relevant operands.
const fn plain(reason: u32) -> Becomes {
    exit(reason, &[Has::Length])
}

const EXCEPTION: Becomes = exit(
    reason::EXCEPTION_OR_NMI,
    &[Has::Qualification, Has::Interruption, Has::Vectoring],
);
const NMI_WINDOW: Becomes = exit(reason::NMI_WINDOW, &[]);
const QUALIFIED: &[Has] = &[Has::Length, Has::Qualification];

/// The table. Source of the SVM exits: AMD64 Architecture Programmer's Manual, volume 2, appendix C.
pub const ROWS: &[Row] = &[
    row(
        0x10,
        0x18,
        "write to CR0, CR4, CR8",
        &[exit(reason::CR_ACCESS, QUALIFIED)],
    ),
    row(
        0x41,
        0x41,
        "#DB, also of a single step",
        &[EXCEPTION, exit(reason::MONITOR_TRAP, &[]), NMI_WINDOW],
    ),
    row(
        0x46,
        0x46,
        "#UD, also of what TCG does not know",
        &[
            EXCEPTION,
            plain(reason::TDCALL),
            plain(reason::SEAMCALL),
            plain(reason::VMCALL),
            plain(reason::PCONFIG),
        ],
    ),
    row(0x40, 0x5F, "exception", &[EXCEPTION]),
    row(
        0x60,
        0x60,
        "INTR",
        &[exit(reason::EXTERNAL_INTERRUPT, &[Has::Interruption])],
    ),
    row(
        0x61,
        0x61,
        "NMI",
        &[
            exit(reason::EXCEPTION_OR_NMI, &[Has::Interruption]),
            exit(reason::INIT, &[]),
        ],
    ),
    row(0x6F, 0x6F, "RDPMC", &[plain(reason::RDPMC)]),
    row(0x72, 0x72, "CPUID", &[plain(reason::CPUID)]),
    row(0x74, 0x74, "IRET", &[NMI_WINDOW]),
    row(
        0x76,
        0x76,
        "INVD",
        &[plain(reason::INVD), plain(reason::WBINVD)],
    ),
    row(0x78, 0x78, "HLT", &[plain(reason::HLT)]),
    row(0x7A, 0x7A, "INVLPGA", &[]),
    row(0x7B, 0x7B, "I/O", &[exit(reason::IO, QUALIFIED)]),
    row(
        0x7C,
        0x7C,
        "MSR",
        &[
            plain(reason::RDMSR),
            plain(reason::WRMSR),
            exit(reason::APIC_WRITE, &[Has::Qualification]),
        ],
    ),
    row(0x7F, 0x7F, "shutdown", &[]),
    row(0x80, 0x86, "SVM instruction", &[]),
    row(
        0x89,
        0x89,
        "WBINVD",
        &[plain(reason::INVD), plain(reason::WBINVD)],
    ),
    row(0x8A, 0x8A, "MONITOR", &[plain(reason::MONITOR)]),
    row(0x8B, 0x8B, "MWAIT", &[plain(reason::MWAIT)]),
    row(0x8D, 0x8D, "XSETBV", &[plain(reason::XSETBV)]),
    row(
        0x400,
        0x400,
        "nested page fault",
        &[
            exit(
                reason::EPT_VIOLATION,
                &[Has::Qualification, Has::Gpa, Has::Gla, Has::Vectoring],
            ),
            exit(reason::EPT_MISCONFIGURATION, &[Has::Gpa, Has::Vectoring]),
        ],
    ),
    row(
        0xFFFF_FFFF,
        0xFFFF_FFFF,
        "invalid state",
        &[exit(reason::ENTRY_FAILED | reason::ENTRY_GUEST_STATE, &[])],
    ),
];

/// Returns the row of an SVM exit code.
#[must_use]
pub fn find(code: u64) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.codes.contains(&code))
}

/// Checks that this SVM exit can become this VM exit, and that the VM exit sets only fields that VMX fills.
///
/// # Errors
/// The mismatch.
pub fn check(code: u64, found: &VmExit) -> Result<(), &'static str> {
    if *found == VmExit::of(reason::TRIPLE_FAULT) {
        // The end of a vCPU, which any exit can become.
        return Ok(());
    }
    let row = find(code).ok_or("an exit that VMX does not have")?;
    let exit = row.exits.iter().find(|exit| exit.reason == found.reason);
    let has = exit.ok_or("an exit for another reason")?.has;
    let fields = [
        (Has::Qualification, found.qualification == 0),
        (Has::Gpa, found.gpa == 0),
        (Has::Gla, found.gla == 0),
        (Has::Length, found.length == 0),
        (Has::Interruption, found.interruption == (0, 0)),
        (Has::Vectoring, found.vectoring == (0, 0)),
    ];
    if fields
        .iter()
        .any(|(field, is_zero)| !is_zero && !has.contains(field))
    {
        return Err("a field that such an exit does not have");
    }
    if has.contains(&Has::Length) && !(1..=MOST).contains(&found.length) {
        return Err("an instruction without length");
    }
    if has.contains(&Has::Interruption) && found.interruption.0 & VALID == 0 {
        return Err("an event that is none");
    }
    if found.vectoring != (0, 0) && found.vectoring.0 & VALID == 0 {
        return Err("a delivery that is none");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUID: u64 = 0x72;
    const NPF: u64 = 0x400;

    #[test]
    fn an_instruction_has_a_length() {
        let exit = VmExit::by(reason::CPUID, 2);
        assert_eq!(check(CPUID, &exit), Ok(()));
        for length in [0, MOST + 1] {
            assert!(check(CPUID, &VmExit { length, ..exit }).is_err());
        }
    }

    #[test]
    fn an_exit_has_only_the_fields_that_vmx_defines() {
        let exit = VmExit::by(reason::CPUID, 2);
        let delivery = (VALID | 3 << 8 | 14, 0);
        assert!(check(CPUID, &exit.qualified(1)).is_err());
        assert!(
            check(
                CPUID,
                &VmExit {
                    vectoring: delivery,
                    ..exit
                }
            )
            .is_err()
        );
        assert!(
            check(
                CPUID,
                &VmExit {
                    interruption: delivery,
                    ..exit
                }
            )
            .is_err()
        );
        let fault = VmExit {
            gpa: 0x1000,
            gla: 0x2000,
            vectoring: delivery,
            ..VmExit::of(reason::EPT_VIOLATION).qualified(0x181)
        };
        assert_eq!(check(NPF, &fault), Ok(()));
        let none = VmExit {
            vectoring: (1, 0),
            ..fault
        };
        assert!(check(NPF, &none).is_err(), "no valid bit");
    }

    #[test]
    fn each_exit_has_its_own_reasons() {
        assert!(check(CPUID, &VmExit::by(reason::HLT, 1)).is_err());
        assert!(check(0x77, &VmExit::by(reason::HLT, 1)).is_err(), "POPF");
    }

    #[test]
    fn any_exit_may_end_the_vcpu() {
        for code in [CPUID, NPF, 0x77, 0x7F] {
            assert_eq!(check(code, &VmExit::of(reason::TRIPLE_FAULT)), Ok(()));
        }
    }

    #[test]
    fn only_instructions_with_a_length_are_skipped() {
        // An exit whose instruction the module steps over has a length.
        const STEPPED: [u32; 8] = [
            reason::CPUID,
            reason::CR_ACCESS,
            reason::RDMSR,
            reason::WRMSR,
            reason::XSETBV,
            reason::TDCALL,
            reason::RDPMC,
            reason::HLT,
        ];
        for exit in ROWS.iter().flat_map(|row| row.exits) {
            if STEPPED.contains(&exit.reason) {
                assert!(exit.has.contains(&Has::Length), "{exit:?}");
            }
        }
    }
}
