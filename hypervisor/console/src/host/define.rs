//! The console's interface to definitions: TDs that are defined, changed and forgotten while the host runs, and the files
//! that they start from.

use alloc::{string::String, vec::Vec};

use serde::Serialize;

use super::{
    failure::Failure,
    pci::TdPci,
    td::{TdNow, TdState},
};

/// The definitions of TDs, and their files.
///
/// TDs are identified by their numbers. A [`Failure`] carries one sentence for the operator; nothing has changed then.
pub trait Definitions {
    /// Defines a TD by the text of a `[[td]]`.
    ///
    /// # Errors
    /// All mistakes in the text; another TD has the name; there are too many.
    fn define(&self, text: &str) -> Result<TdDefined, Failure>;

    /// Forgets a TD that has no life.
    ///
    /// # Errors
    /// The TD's state; there is no such TD.
    fn undefine(&self, id: u32) -> Result<TdForgotten, Failure>;

    /// Sets a key of a TD's definition.
    ///
    /// # Errors
    /// There is no such key, or it does not take the value.
    fn set(&self, id: u32, key: &str, value: &str) -> Result<TdSet, Failure>;

    /// Adds a PCI function to those that a TD has while it lives. `device` is its address, or vendor and device.
    ///
    /// # Errors
    /// The TD has a life; the machine has no such function, or no TD can have it.
    fn attach(&self, id: u32, device: &str) -> Result<TdAttached, Failure>;

    /// Removes a PCI function from those that a TD has.
    ///
    /// # Errors
    /// The TD has a life, or no such function.
    fn detach(&self, id: u32, device: &str) -> Result<TdDetached, Failure>;

    /// Presses the power button of a TD's guest, which then has `limit_s` seconds to power off. The TD is terminated
    /// afterwards if `force` is true. It does not wait.
    ///
    /// # Errors
    /// The TD does not run.
    fn shut_down(&self, id: u32, limit_s: u32, force: bool) -> Result<TdAsked, Failure>;

    /// Returns the definitions that are in force, by number.
    fn definitions(&self) -> Vec<config::Td>;

    /// Returns all files.
    fn files(&self) -> Files;

    /// Returns everything about a file.
    ///
    /// # Errors
    /// There is no such file.
    fn file(&self, name: &str) -> Result<FileReport, Failure>;

    /// Begins a file of `bytes` bytes.
    ///
    /// # Errors
    /// The file can't have this name or this size, or there is no memory for it.
    fn begin_file(&self, name: &str, bytes: u64) -> Result<FilePart, Failure>;

    /// Adds bytes to a file that was begun.
    ///
    /// # Errors
    /// The bytes do not follow those that are there, or are too many.
    fn put_file(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<FilePart, Failure>;

    /// Completes a file whose SHA-256 is this one.
    ///
    /// # Errors
    /// Bytes are missing, or the SHA-256 is another one.
    fn end_file(&self, name: &str, sha256: &[u8; 32]) -> Result<FilePart, Failure>;

    /// Drops a file.
    ///
    /// # Errors
    /// The file is in use, or was loaded at boot.
    fn drop_file(&self, name: &str) -> Result<FilePart, Failure>;
}

/// A TD that was just defined.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TdDefined {
    /// The TD's number.
    pub id: u32,
    /// The TD's name.
    pub name: String,
    /// The TD's state.
    pub state: TdState,
    /// Values that are allowed and hardly meant.
    pub warnings: Vec<String>,
}

/// A TD that the host knows no longer.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TdForgotten {
    /// The number that the TD had.
    pub id: u32,
    /// The name that the TD had.
    pub name: String,
}

/// A change of a TD's definition.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TdSet {
    /// The TD's state now.
    #[serde(flatten)]
    pub now: TdNow,
    /// The key.
    pub key: String,
    /// True if the value applies now; false if it applies when the TD is built again.
    pub applies_now: bool,
    /// A value that is allowed and hardly meant.
    pub warnings: Vec<String>,
}

/// A TD that has one more PCI function when it starts.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TdAttached {
    /// The TD's state now.
    #[serde(flatten)]
    pub now: TdNow,
    /// The function.
    pub function: TdPci,
    /// Reasons why the TD could not start with its functions now.
    pub warnings: Vec<String>,
}

/// A TD that has one PCI function less.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TdDetached {
    /// The TD's state now.
    #[serde(flatten)]
    pub now: TdNow,
    /// The function.
    pub function: TdPci,
}

/// A guest that was asked to shut down.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TdAsked {
    /// The TD's state now.
    #[serde(flatten)]
    pub now: TdNow,
    /// False if the guest has not enabled its power button, and so does not notice that it was pressed.
    pub listens: bool,
    /// Seconds that the guest has.
    pub limit_s: u32,
    /// True if the TD is terminated afterwards.
    pub force: bool,
}

/// The files that TDs can start from.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Files {
    /// The files, by name.
    pub files: Vec<FileLine>,
    /// Bytes that files that are put may have together.
    pub quota_bytes: u64,
    /// Bytes that they have.
    pub used_bytes: u64,
}

/// A file in one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FileLine {
    /// The name.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// "boot" or "put".
    pub from: &'static str,
    /// Bytes that have arrived, if the file is not complete.
    pub arrived_bytes: Option<u64>,
}

/// Everything about a file.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FileReport {
    /// The file's line in the list.
    #[serde(flatten)]
    pub line: FileLine,
    /// The SHA-256 in hexadecimal; `None` if the file is not complete.
    pub sha256: Option<String>,
    /// The TDs whose definitions name the file.
    pub tds: Vec<String>,
}

/// A file after a step of putting or dropping it.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FilePart {
    /// The name.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Bytes that have arrived.
    pub arrived_bytes: u64,
}
