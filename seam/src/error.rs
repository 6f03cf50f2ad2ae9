//! Errors of SEAMCALLs, and the ownership of their operands after a failure.

use core::fmt;

use crate::abi::{Gprs, Leaf, Operand, PAGE_MASK, PageSize, Status};
use crate::address::{Hpa, Level};
use crate::advice::{Advice, Remedy};
use crate::call::Fault;
use crate::detail::{Detail, takes_gpa};

/// The failure of a leaf.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Error {
    leaf: Leaf,
    cause: Cause,
    tries: u32,
    /// RCX, RDX, R8, R9, R10 as the leaf left them; zero after a fault.
    outputs: [u64; 5],
}

/// The cause of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The instruction faulted: no module handled the call.
    Fault(Fault),
    /// The module returned this status.
    Status(Status),
    /// The module reported success, but on another page than the host expected. The page that was passed stays with the
    /// module permanently.
    WrongPage {
        /// Page that the host expected.
        expected: Hpa,
        /// Page that the module reported.
        told: Hpa,
    },
    /// The module reported success, but on a smaller page than the host expected, and has released only that.
    WrongSize {
        /// Size that the host expected.
        expected: PageSize,
        /// Size that the module reported; `None` for an undefined code.
        told: Option<PageSize>,
    },
    /// A resumable leaf made no progress for more calls than the work can take.
    NoProgress,
}

/// The caller's options after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// The same call may succeed later.
    Retry,
    /// The call fails again unless something else changes first.
    Change,
    /// The TD can only be torn down.
    TearDown,
}

/// An S-EPT entry, as the S-EPT leafs report it.
///
/// Source: TDX Module ABI 1.5, "Secure EPT entry information".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeptEntry {
    /// The entry in its architectural form. The address is zero unless the entry is a leaf.
    pub entry: u64,
    /// Level of the entry; `None` if the number is not a valid level.
    pub level: Option<Level>,
    /// State of the entry, a number of [`crate::abi::SeptState`].
    pub state: u8,
}

impl SeptEntry {
    pub(crate) const fn new(rcx: u64, rdx: u64) -> Self {
        Self {
            entry: rcx,
            level: Level::from_number(rdx as u8 & 7),
            state: (rdx >> 8) as u8,
        }
    }

    /// Returns the address of the page that the entry maps, if it maps one.
    pub const fn hpa(self) -> Hpa {
        Hpa(self.entry & PAGE_MASK)
    }
}

impl Error {
    pub(crate) const fn fault(leaf: Leaf, fault: Fault) -> Self {
        Self::new(leaf, Cause::Fault(fault), [0; 5])
    }

    pub(crate) const fn status_of(leaf: Leaf, regs: &Gprs) -> Self {
        let outputs = [regs.rcx, regs.rdx, regs.r8, regs.r9, regs.r10];
        Self::new(leaf, Cause::Status(Status(regs.rax)), outputs)
    }

    pub(crate) const fn new(leaf: Leaf, cause: Cause, outputs: [u64; 5]) -> Self {
        Self {
            leaf,
            cause,
            tries: 1,
            outputs,
        }
    }

    pub(crate) const fn after(self, tries: u32) -> Self {
        Self { tries, ..self }
    }

    /// Returns the leaf that failed.
    pub const fn leaf(&self) -> Leaf {
        self.leaf
    }

    /// Returns the cause of the failure.
    pub const fn cause(&self) -> Cause {
        self.cause
    }

    /// Returns the number of tries.
    pub const fn tries(&self) -> u32 {
        self.tries
    }

    /// Returns the status, if the module returned one.
    pub const fn status(&self) -> Option<Status> {
        match self.cause {
            Cause::Status(status) => Some(status),
            _ => None,
        }
    }

    /// Returns whether the module returned this code, with any detail.
    pub fn is(&self, code: Status) -> bool {
        self.status()
            .is_some_and(|status| status.code() == code.code())
    }

    /// Returns whether the module refused the version of the leaf, or the leaf itself.
    pub fn is_unknown_version(&self) -> bool {
        self.status() == Some(Status::OPERAND_INVALID.with(Operand::RAX))
    }

    /// Returns the decoded detail of the status.
    pub fn detail(&self) -> Detail {
        match self.status() {
            Some(status) => Detail::of(status),
            None => Detail::None,
        }
    }

    /// Returns the name of the status class, or `None` if there is no status or the class is unknown.
    pub const fn class(&self) -> Option<&'static str> {
        let Cause::Status(status) = self.cause else {
            return None;
        };
        Some(match status.class() {
            0x00 => "general",
            0x01 => "invalid operand",
            0x02 => "resource busy",
            0x03 => "page metadata",
            0x04 => "dependent resources",
            0x05 => "module state",
            0x06 => "TD state",
            0x07 => "vCPU state",
            0x08 => "key management",
            0x09 => "platform state",
            0x0a => "physical memory",
            0x0b => "TD memory",
            0x0c => "metadata",
            0x0d => "service TD",
            0x0e => "migration",
            0x10 => "attestation",
            0x11 => "TD partitioning",
            _ => return None,
        })
    }

    /// Returns the options after this failure.
    pub const fn recovery(&self) -> Recovery {
        match self.cause {
            Cause::Status(status) if status.is_fatal() => Recovery::TearDown,
            Cause::Status(status) if !status.is_non_recoverable() => Recovery::Retry,
            _ => Recovery::Change,
        }
    }

    /// Returns the S-EPT entry that the leaf reported with its status. `None` for leafs that report none, and for
    /// errors found before the S-EPT walk.
    pub fn sept_entry(&self) -> Option<SeptEntry> {
        let [rcx, rdx, ..] = self.outputs;
        (takes_gpa(self.leaf) && (rcx, rdx) != (0, 0)).then(|| SeptEntry::new(rcx, rdx))
    }

    /// Returns RCX, RDX, R8, R9, R10 as the leaf left them. TDH.SYS.INIT, TDH.SYS.LP.INIT and TDH.MNG.INIT report the
    /// CPUID leaf (bits 31:0), sub-leaf (63:32) and bits at fault there.
    pub const fn outputs(&self) -> [u64; 5] {
        self.outputs
    }

    /// Returns the meaning and the remedy, or `None` for an unknown status.
    pub fn advice(&self) -> Option<Advice> {
        match self.cause {
            Cause::Fault(fault) => Some(fault.advice()),
            Cause::Status(status) => status.advice(),
            Cause::WrongPage { .. } | Cause::WrongSize { .. } => Some(Advice {
                meaning: "The host's record of the TD's pages and the module's differ; the page is kept out of use.",
                about: Detail::None,
                remedy: Remedy::Report,
            }),
            Cause::NoProgress => Some(Advice {
                meaning: "The module asks to be called again repeatedly without making progress.",
                about: Detail::None,
                remedy: Remedy::Restart,
            }),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.leaf.name())?;
        match self.cause {
            Cause::Fault(fault) => write!(f, "{fault:?}")?,
            Cause::Status(status) => {
                match status.name() {
                    Some(name) => write!(f, "{name} ({:#018x})", status.0)?,
                    None => write!(f, "status {:#018x}", status.0)?,
                }
                let detail = self.detail();
                if detail != Detail::None {
                    write!(f, ", {detail}")?;
                }
                if let Some(role) = detail.role(self.leaf) {
                    write!(f, ", {role}")?;
                }
                if let Some(entry) = self.sept_entry() {
                    write!(f, ", entry {:#x} state {:#x}", entry.entry, entry.state)?;
                }
            }
            Cause::WrongPage { expected, told } => {
                write!(f, "page {:#x} where {:#x} was", told.0, expected.0)?;
            }
            Cause::WrongSize { expected, told } => {
                let told = told.map_or(0, PageSize::bytes) >> 10;
                write!(
                    f,
                    "page of {told} KiB where one of {} KiB was",
                    expected.bytes() >> 10
                )?;
            }
            Cause::NoProgress => f.write_str("no progress")?,
        }
        if self.tries > 1 {
            write!(f, ", {} tries", self.tries)?;
        }
        match self.advice() {
            Some(advice) => write!(f, ". {} {}", advice.meaning, advice.remedy),
            None => f.write_str("."),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.leaf.name(), self.cause)
    }
}

impl core::error::Error for Error {}

/// The error of a call that takes ownership, with its operands, which the caller owns again.
#[must_use = "what was given is in it"]
#[derive(Debug)]
pub struct Rejected<T> {
    /// The error.
    pub error: Error,
    /// The operands of the failed call.
    pub given: T,
}

/// The result of a call that takes `Given` and turns it into `Out`.
pub type Handover<Out, Given> = Result<Out, Rejected<Given>>;

impl<T> Rejected<T> {
    pub(crate) fn new(error: Error, given: T) -> Self {
        Self { error, given }
    }

    /// Separates the error from the operands, so that the caller can put the operands back.
    pub fn into_parts(self) -> (Error, T) {
        (self.error, self.given)
    }
}

impl<T: fmt::Debug> fmt::Display for Rejected<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::abi::{Operand, SeptState};
    use std::string::ToString;

    fn refused(leaf: Leaf, status: Status, rcx: u64, rdx: u64) -> Error {
        let regs = Gprs {
            rax: status.0,
            rcx,
            rdx,
            ..Gprs::default()
        };
        Error::status_of(leaf, &regs)
    }

    #[test]
    fn an_error_reads_name_number_operand_tries_advice() {
        let status = Status::OPERAND_BUSY.with(Operand::KOT);
        let error = refused(Leaf::MngCreate, status, 0, 0).after(128);
        let text = error.to_string();
        assert!(
            text.starts_with("TDH.MNG.CREATE: OPERAND_BUSY (0x80000200000000ba), KOT, 128 tries. "),
            "{text}"
        );
        assert_eq!(error.recovery(), Recovery::Retry);
        assert_eq!(error.class(), Some("resource busy"));
        assert!(error.is(Status::OPERAND_BUSY) && !error.is(Status::SYS_BUSY));
    }

    #[test]
    fn s_ept_errors_carry_the_entry() {
        let status = Status::EPT_ENTRY_STATE_INCORRECT.with(Operand::RCX);
        let error = refused(Leaf::MemPageAug, status, 0x8000_0000_1234_50f7, 0x0401);
        let entry = error.sept_entry().unwrap();
        assert_eq!(entry.level, Some(Level::Pd));
        assert_eq!(entry.state, SeptState::Mapped as u8);
        assert_eq!(entry.hpa(), Hpa(0x1234_5000));
        assert_eq!(refused(Leaf::MngRd, status, 1, 2).sept_entry(), None);
    }

    #[test]
    fn a_fatal_td_can_only_be_torn_down() {
        let error = refused(Leaf::MemTrack, Status::TD_FATAL, 0, 0);
        assert_eq!(error.recovery(), Recovery::TearDown);
        let error = Error::fault(Leaf::SysInit, Fault::NotLoaded);
        assert_eq!(error.recovery(), Recovery::Change);
        assert_eq!(error.status(), None);
    }
}
