//! The machine's answer when it does not do something: a code for programs and a sentence for people.

use alloc::string::String;
use core::fmt;

use serde::{Serialize, Serializer};

/// The kind of an error. Its name is the `code` of a JSON reply: programs decide by it, because sentences change.
/// A name never changes its meaning; new ones may be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// The line names no command.
    UnknownCommand,
    /// A required argument is missing.
    MissingArgument,
    /// There are more words than the command takes.
    UnexpectedArgument,
    /// An argument's value is not one that the command takes.
    InvalidArgument,
    /// The line did not fit, and was not run.
    LineTooLong,
    /// The line contained a byte that is not printable ASCII, and was not run.
    ForeignByte,
    /// The console is locked, and the command needs more than to read.
    Locked,
    /// The password is wrong.
    WrongPassword,
    /// The password was not read: a delay after wrong ones is not over.
    TooEarly,
    /// No TD has this number or name.
    NoSuchTd,
    /// No file has this name.
    NoSuchFile,
    /// There is a TD or a file of this name already.
    Exists,
    /// A definition, or a value for one, has mistakes.
    InvalidDefinition,
    /// The bytes of a file do not follow those that are there, are not all there, or are not those of its SHA-256.
    WrongContent,
    /// The state of a TD, or of the machine, does not allow the operation.
    WrongState,
    /// Another operation is in progress. The same command can succeed later.
    Busy,
    /// Memory, HKIDs or other resources do not suffice.
    NoResources,
    /// The machine, the TDX module or the TD's configuration does not support the operation.
    Unsupported,
    /// TDX is not available on this machine, or the TDX module has shut down.
    Unavailable,
    /// The operation was tried and failed.
    Failed,
    /// The reply can't be expressed. This is a bug in Seamark.
    Internal,
}

impl Code {
    /// Every code.
    pub const ALL: &[Self] = &[
        Self::UnknownCommand,
        Self::MissingArgument,
        Self::UnexpectedArgument,
        Self::InvalidArgument,
        Self::LineTooLong,
        Self::ForeignByte,
        Self::Locked,
        Self::WrongPassword,
        Self::TooEarly,
        Self::NoSuchTd,
        Self::NoSuchFile,
        Self::Exists,
        Self::InvalidDefinition,
        Self::WrongContent,
        Self::WrongState,
        Self::Busy,
        Self::NoResources,
        Self::Unsupported,
        Self::Unavailable,
        Self::Failed,
        Self::Internal,
    ];

    /// Returns the name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownCommand => "unknown-command",
            Self::MissingArgument => "missing-argument",
            Self::UnexpectedArgument => "unexpected-argument",
            Self::InvalidArgument => "invalid-argument",
            Self::LineTooLong => "line-too-long",
            Self::ForeignByte => "foreign-byte",
            Self::Locked => "locked",
            Self::WrongPassword => "wrong-password",
            Self::TooEarly => "too-early",
            Self::NoSuchTd => "no-such-td",
            Self::NoSuchFile => "no-such-file",
            Self::Exists => "exists",
            Self::InvalidDefinition => "invalid-definition",
            Self::WrongContent => "wrong-content",
            Self::WrongState => "wrong-state",
            Self::Busy => "busy",
            Self::NoResources => "no-resources",
            Self::Unsupported => "unsupported",
            Self::Unavailable => "unavailable",
            Self::Failed => "failed",
            Self::Internal => "internal",
        }
    }

    /// Returns the failure of this kind, with its sentence.
    #[must_use]
    pub fn because(self, why: impl Into<String>) -> Failure {
        Failure {
            code: self,
            why: why.into(),
        }
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The reason why the machine did not do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind of the failure.
    pub code: Code,
    /// One sentence for the operator: what is wrong, where, and what to do.
    pub why: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// A sentence alone: the operation was tried and failed.
impl From<String> for Failure {
    fn from(why: String) -> Self {
        Code::Failed.because(why)
    }
}
