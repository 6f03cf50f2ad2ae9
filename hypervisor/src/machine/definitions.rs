//! The console's view of definitions: TDs that are defined and changed at run time, and the files that are put.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt::{Display, Write};

use console::host::{
    absent,
    define::{
        Definitions, FileLine, FilePart, FileReport, Files, TdAsked, TdAttached, TdDefined,
        TdDetached, TdForgotten, TdSet,
    },
    failure::{Code, Failure},
};
use host::{
    platform::Platform,
    td::{
        error::Error,
        files::store::{FileError, FileFacts},
        host::Listens,
        registry::{Applies, DefineError},
    },
};

use super::{console_tds::ConsoleTds, failure::Wish};

impl<P: Platform> ConsoleTds<'_, '_, P> {
    /// Says why a definition was refused.
    pub(super) fn refused(&self, id: u32, wish: Wish, error: DefineError) -> Failure {
        match error {
            DefineError::NoSuchTd => absent::no_such_td(id),
            DefineError::State(state) => self.failure(id, wish, &Error::State(state)),
            DefineError::Busy => Code::Busy.because(error.to_string()),
            DefineError::Mistakes(_) => Code::InvalidDefinition.because(error.to_string()),
            DefineError::Exists(_) => Code::Exists.because(error.to_string()),
            DefineError::TooMany => Code::NoResources.because(error.to_string()),
            DefineError::Attached(_) => self.about(id, Code::Exists, error),
            DefineError::NotAttached(_) => self.about(id, Code::InvalidArgument, error),
        }
    }

    /// Returns a failure whose sentence names the TD.
    pub(super) fn about(&self, id: u32, code: Code, why: impl Display) -> Failure {
        code.because(format!("TD {}: {why}", self.name(id)))
    }

    fn warnings(&self, id: u32) -> Vec<String> {
        let config = self.tds.config(id);
        let cpus = self.tds.host().platform.cpus().len();
        let warning = config.and_then(|config| config.warning(cpus));
        warning.into_iter().collect()
    }

    fn part(&self, name: &str, bytes: u64, arrived_bytes: u64) -> FilePart {
        FilePart {
            name: name.into(),
            bytes,
            arrived_bytes,
        }
    }
}

/// Converts the reason why a file could not be put or dropped.
fn failure(error: FileError) -> Failure {
    let code = match error {
        FileError::Name(_) | FileError::Empty => Code::InvalidArgument,
        FileError::Exists(_) => Code::Exists,
        FileError::NoSuch(_) | FileError::NotBegun(_) => Code::NoSuchFile,
        FileError::TooMany
        | FileError::TooManyUploads(_)
        | FileError::Quota { .. }
        | FileError::NoMemory(_) => Code::NoResources,
        FileError::Offset { .. }
        | FileError::TooLong { .. }
        | FileError::Incomplete { .. }
        | FileError::Digest(_) => Code::WrongContent,
        FileError::FromBoot(_) | FileError::Named { .. } | FileError::Used(_) => Code::WrongState,
        FileError::Busy => Code::Busy,
    };
    code.because(error.to_string())
}

fn line(file: FileFacts) -> FileLine {
    FileLine {
        name: file.name,
        bytes: file.bytes,
        from: if file.is_put { "put" } else { "boot" },
        arrived_bytes: file.written,
    }
}

impl<P: Platform> Definitions for ConsoleTds<'_, '_, P> {
    fn define(&self, text: &str) -> Result<TdDefined, Failure> {
        let defined = self.tds.define(text);
        let id = defined.map_err(|error| self.refused(0, Wish::Forget, error))?;
        let now = self.now(id);
        Ok(TdDefined {
            id,
            name: now.name,
            state: now.state,
            warnings: self.warnings(id),
        })
    }

    fn undefine(&self, id: u32) -> Result<TdForgotten, Failure> {
        let name = self.name(id);
        let forgotten = self.tds.undefine(id);
        forgotten.map_err(|error| self.refused(id, Wish::Forget, error))?;
        Ok(TdForgotten { id, name })
    }

    fn set(&self, id: u32, key: &str, value: &str) -> Result<TdSet, Failure> {
        let applies = self.tds.set(id, key, value);
        let applies = applies.map_err(|error| self.refused(id, Wish::Forget, error))?;
        Ok(TdSet {
            now: self.now(id),
            key: key.into(),
            applies_now: applies == Applies::Now,
            warnings: match key {
                "vcpus" => self.warnings(id),
                _ => Vec::new(),
            },
        })
    }

    fn attach(&self, id: u32, device: &str) -> Result<TdAttached, Failure> {
        self.attach_function(id, device)
    }

    fn detach(&self, id: u32, device: &str) -> Result<TdDetached, Failure> {
        self.detach_function(id, device)
    }

    fn shut_down(&self, id: u32, limit_s: u32, force: bool) -> Result<TdAsked, Failure> {
        let pressed = self.tds.shut_down(id, limit_s, force);
        let listens = pressed.map_err(|error| self.failure(id, Wish::ShutDown, &error))?;
        Ok(TdAsked {
            now: self.now(id),
            listens: listens == Listens::Yes,
            limit_s,
            force,
        })
    }

    fn definitions(&self) -> Vec<config::Td> {
        let all = self.tds.ids().filter_map(|id| self.tds.config(id));
        all.map(|config| (*config).clone()).collect()
    }

    fn files(&self) -> Files {
        let files = self.tds.files();
        let (quota_bytes, used_bytes) = files.quota();
        Files {
            files: files.list().into_iter().map(line).collect(),
            quota_bytes,
            used_bytes,
        }
    }

    fn file(&self, name: &str) -> Result<FileReport, Failure> {
        let mut all = self.tds.files().list().into_iter();
        let found = all.find(|file| file.name == name);
        let found =
            found.ok_or_else(|| failure(FileError::NoSuch(name.chars().take(64).collect())))?;
        let names_it = |td: &config::Td| td.named_files().any(|(_, own)| own == name);
        let complete = found.written.is_none();
        let digest = self.tds.files().sha256(name).filter(|_| complete);
        Ok(FileReport {
            line: line(found),
            sha256: digest.map(|digest| hex(&digest)),
            tds: self
                .definitions()
                .into_iter()
                .filter(names_it)
                .map(|td| td.name)
                .collect(),
        })
    }

    fn begin_file(&self, name: &str, bytes: u64) -> Result<FilePart, Failure> {
        self.tds.begin_file(name, bytes).map_err(failure)?;
        Ok(self.part(name, bytes, 0))
    }

    fn put_file(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<FilePart, Failure> {
        let (arrived, all) = self.tds.files().put(name, offset, bytes).map_err(failure)?;
        Ok(self.part(name, all, arrived))
    }

    fn end_file(&self, name: &str, sha256: &[u8; 32]) -> Result<FilePart, Failure> {
        let bytes = self.tds.files().end(name, sha256).map_err(failure)?;
        Ok(self.part(name, bytes, bytes))
    }

    fn drop_file(&self, name: &str) -> Result<FilePart, Failure> {
        let bytes = self.tds.drop_file(name).map_err(failure)?;
        Ok(self.part(name, bytes, 0))
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut digits = String::new();
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}
