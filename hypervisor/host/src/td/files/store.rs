//! The files that TDs are built from, by name: those that were loaded at boot, and those that the operator has put since.
//!
//! A file that is put arrives in order, piece by piece, in memory that is taken for all of it at once. It has no name
//! that a TD can use before its last byte has arrived and its SHA-256 is the one that the operator states.

use alloc::{
    boxed::Box,
    collections::BTreeMap,
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};
use core::fmt;

use seam::address::Hpa;
use sha2::{Digest as _, Sha256};
use sync::Mutex;

use super::{Content, Files, Image, Loaded};

/// Maximum number of files that are put.
pub const MOST_FILES: usize = 64;
/// Maximum number of files that are being put at the same time.
pub const MOST_UPLOADS: usize = 4;
/// Files that are put may take this part of the host's memory: a quarter.
const QUOTA_DIVISOR: u64 = 4;
/// Maximum length of a file's name.
const NAME: usize = 64;

/// A SHA-256.
pub type Digest = [u8; 32];

/// The host's memory for files that are put.
pub trait FileMemory {
    /// Takes memory for a file of `bytes` bytes. Returns `None` if no piece of free memory is large enough.
    fn take(&self, bytes: u64) -> Option<Box<dyn FileSpace>>;

    /// Returns the bytes of all memory of the host.
    fn total_bytes(&self) -> u64;
}

/// Memory of one file, in whole pages that hold nothing else. It is given back when this is dropped.
pub trait FileSpace: Send + Sync {
    /// Returns the physical address, a multiple of 4 KiB.
    fn hpa(&self) -> Hpa;

    /// Returns the content.
    fn bytes(&self) -> &[u8];

    /// Writes a part of the content. What is beyond the end is ignored.
    fn write(&mut self, at: u64, bytes: &[u8]);
}

/// The memory of a host that takes no files.
#[derive(Clone, Copy, Debug)]
pub struct NoMemory;

impl FileMemory for NoMemory {
    fn take(&self, _: u64) -> Option<Box<dyn FileSpace>> {
        None
    }

    fn total_bytes(&self) -> u64 {
        0
    }
}

/// A file that was put. Its memory is in use as long as anything refers to it.
pub struct PutFile {
    space: Box<dyn FileSpace>,
    sha256: Digest,
}

impl fmt::Debug for PutFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PutFile")
            .field("hpa", &self.space.hpa())
            .finish_non_exhaustive()
    }
}

impl PutFile {
    /// Returns the content.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.space.bytes()
    }
}

/// A file that TDs can be built from.
#[derive(Clone, Debug)]
enum Stored {
    /// It was loaded at boot, to this address, and stays.
    Boot(Hpa, &'static [u8]),
    /// It was put.
    Put(Arc<PutFile>),
}

impl Stored {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Boot(_, bytes) => bytes,
            Self::Put(file) => file.bytes(),
        }
    }

    fn loaded(&self) -> Loaded {
        let hpa = match self {
            Self::Boot(hpa, _) => *hpa,
            Self::Put(file) => file.space.hpa(),
        };
        Loaded {
            hpa,
            bytes: self.bytes().len() as u64,
        }
    }

    fn content(&self) -> Content {
        match self {
            Self::Boot(_, bytes) => Content::Boot(bytes),
            Self::Put(file) => Content::Put(Arc::clone(file)),
        }
    }

    fn image<'h>(&self) -> Image<'h> {
        match self {
            Self::Boot(_, bytes) => Image::Given(bytes),
            Self::Put(file) => Image::Put(Arc::clone(file)),
        }
    }

    fn is_used(&self) -> bool {
        matches!(self, Self::Put(file) if Arc::strong_count(file) > 1)
    }
}

/// A file that is being put.
struct Upload {
    space: Box<dyn FileSpace>,
    written: u64,
    sum: Sha256,
}

/// A file as the operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// The name.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// True if the file was put; false if it was loaded at boot.
    pub is_put: bool,
    /// Bytes that have arrived, if the file is being put and not complete.
    pub written: Option<u64>,
}

/// The reason why a file could not be put or dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileError {
    /// No file can have this name.
    Name(String),
    /// There is a file of this name.
    Exists(String),
    /// There is no file of this name.
    NoSuch(String),
    /// No file of this name is being put.
    NotBegun(String),
    /// A file has a byte at least.
    Empty,
    /// As many files as possible are there.
    TooMany,
    /// As many files as possible are being put: these.
    TooManyUploads(Vec<String>),
    /// The file exceeds what is left for files.
    Quota {
        /// Bytes that all files that are put may have.
        most: u64,
        /// Bytes that are left.
        left: u64,
    },
    /// The host has no piece of memory for the file that is not promised to TDs.
    NoMemory(u64),
    /// The bytes do not follow those that are there.
    Offset {
        /// The number of bytes that are there.
        written: u64,
    },
    /// There are more bytes than the file was to have.
    TooLong {
        /// Length of the file in bytes.
        bytes: u64,
    },
    /// Bytes are missing.
    Incomplete {
        /// The number of bytes that are there.
        written: u64,
        /// Length of the file in bytes.
        bytes: u64,
    },
    /// The SHA-256 of what arrived is another one.
    Digest(Digest),
    /// The file was loaded at boot and stays.
    FromBoot(String),
    /// The definition of a TD names the file.
    Named {
        /// The file.
        file: String,
        /// The TD.
        td: String,
    },
    /// A TD that lives, or whose memory is not reclaimed yet, was built from the file.
    Used(String),
    /// Another operation is in progress.
    Busy,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(
                f,
                "{name:?} can't be the name of a file: it must be a letter or digit, then up to {} letters, digits, '-', \
                 '_' or '.'",
                NAME - 1
            ),
            Self::Exists(name) => write!(
                f,
                "there is a file {name:?} already; \"file drop {name}\" drops it"
            ),
            Self::NoSuch(name) => write!(f, "there is no file {name:?}; \"file list\" lists them"),
            Self::NotBegun(name) => write!(
                f,
                "no file {name:?} is being put; \"file begin {name} SIZE\" begins"
            ),
            Self::Empty => f.write_str("a file can't be empty; give its size in bytes"),
            Self::TooMany => write!(
                f,
                "there are {MOST_FILES} files that were put already; \"file drop\" drops one"
            ),
            Self::TooManyUploads(names) => write!(
                f,
                "{MOST_UPLOADS} files are being put already: {}; complete one, or drop it with \"file drop\"",
                names.join(", ")
            ),
            Self::Quota { most, left } => write!(
                f,
                "files that are put may take {most} bytes, a quarter of the host's memory, and {left} are left; \"file \
                 drop\" drops one"
            ),
            Self::NoMemory(bytes) => write!(
                f,
                "no piece of {bytes} bytes of memory is free and not reserved for TDs; terminate a TD, or drop a file"
            ),
            Self::Offset { written } => write!(
                f,
                "OFFSET must be {written}, the number of bytes that are there; nothing was written"
            ),
            Self::TooLong { bytes } => write!(
                f,
                "the file has {bytes} bytes, and these reach beyond its end; nothing was written"
            ),
            Self::Incomplete { written, bytes } => write!(
                f,
                "{written} of {bytes} bytes are there; put the rest from OFFSET {written} on"
            ),
            Self::Digest(found) => {
                f.write_str("the SHA-256 of what arrived is ")?;
                for byte in found {
                    write!(f, "{byte:02x}")?;
                }
                f.write_str("; all of it is dropped, put the file again")
            }
            Self::FromBoot(name) => write!(
                f,
                "the file {name:?} was loaded at boot and stays until the next one; remove it from seamark.toml"
            ),
            Self::Named { file, td } => write!(
                f,
                "TD {td} is defined with the file {file:?}; \"td undefine {td}\", or give it another file with \"td set\""
            ),
            Self::Used(name) => write!(
                f,
                "a TD that was built from the file {name:?} still has memory; wait until it is reclaimed (\"td list\")"
            ),
            Self::Busy => f.write_str("a TD is being built; try again"),
        }
    }
}

/// The files of a host.
pub struct FileStore<'h> {
    memory: &'h (dyn FileMemory + Sync),
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    files: BTreeMap<String, Stored>,
    uploads: BTreeMap<String, Upload>,
}

impl<'h> FileStore<'h> {
    /// Creates the store, with the files that were loaded at boot: name, physical address, content.
    #[must_use]
    pub fn new(
        memory: &'h (dyn FileMemory + Sync),
        boot: impl IntoIterator<Item = (String, Hpa, &'static [u8])>,
    ) -> Self {
        let files = boot.into_iter();
        let files = files.map(|(name, hpa, bytes)| (name, Stored::Boot(hpa, bytes)));
        Self {
            memory,
            inner: Mutex::new(Inner {
                files: files.collect(),
                uploads: BTreeMap::new(),
            }),
        }
    }

    /// Returns whether TDs can use a file of this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.inner.lock().files.contains_key(name)
    }

    /// Returns the files for a TD. `firmware` is the image of a TD that names none.
    #[must_use]
    pub fn files(&self, td: &config::Td, firmware: Option<&'h [u8]>) -> Files<'h> {
        let inner = self.inner.lock();
        let named = |name: Option<&str>| inner.files.get(name?);
        let all = td.named_files();
        let held = all.filter_map(|(_, name)| match inner.files.get(name) {
            Some(Stored::Put(file)) => Some(Arc::clone(file)),
            _ => None,
        });
        Files {
            image: match td.image_file() {
                Some(name) => named(Some(name)).map(Stored::image),
                None => firmware.map(Image::Given),
            },
            kernel: named(td.kernel.as_deref()).map(Stored::loaded),
            initrd: named(td.initrd.as_deref()).map(Stored::loaded),
            disks: td
                .disk
                .iter()
                .map(|disk| inner.files.get(&disk.file).map(Stored::content))
                .collect(),
            held: held.collect(),
        }
    }

    /// Returns all files, by name: those that are complete, and those that are being put.
    #[must_use]
    pub fn list(&self) -> Vec<FileFacts> {
        let inner = self.inner.lock();
        let complete = inner.files.iter().map(|(name, file)| FileFacts {
            name: name.clone(),
            bytes: file.bytes().len() as u64,
            is_put: matches!(file, Stored::Put(_)),
            written: None,
        });
        let incomplete = inner.uploads.iter().map(|(name, upload)| FileFacts {
            name: name.clone(),
            bytes: upload.space.bytes().len() as u64,
            is_put: true,
            written: Some(upload.written),
        });
        let mut all: Vec<_> = complete.chain(incomplete).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Returns the SHA-256 of a complete file. For one that was loaded at boot it is computed, which takes a while.
    #[must_use]
    pub fn sha256(&self, name: &str) -> Option<Digest> {
        let file = self.inner.lock().files.get(name)?.clone();
        Some(match &file {
            Stored::Boot(_, bytes) => Sha256::digest(bytes).into(),
            Stored::Put(put) => put.sha256,
        })
    }

    /// Returns the bytes that files that are put may have together, and those that they have.
    #[must_use]
    pub fn quota(&self) -> (u64, u64) {
        let inner = self.inner.lock();
        (self.memory.total_bytes() / QUOTA_DIVISOR, inner.taken())
    }

    /// Begins a file of `bytes` bytes. A file of this name that is being put is dropped. `free` is the memory that the
    /// host can do without.
    pub(in crate::td) fn begin(&self, name: &str, bytes: u64, free: u64) -> Result<(), FileError> {
        if !is_name(name) {
            return Err(FileError::Name(name.chars().take(NAME).collect()));
        }
        if bytes == 0 {
            return Err(FileError::Empty);
        }
        let mut inner = self.inner.lock();
        if inner.files.contains_key(name) {
            return Err(FileError::Exists(name.to_string()));
        }
        drop(inner.uploads.remove(name));
        let put = inner
            .files
            .values()
            .filter(|file| matches!(file, Stored::Put(_)));
        if put.count() + inner.uploads.len() >= MOST_FILES {
            return Err(FileError::TooMany);
        }
        if inner.uploads.len() >= MOST_UPLOADS {
            return Err(FileError::TooManyUploads(
                inner.uploads.keys().cloned().collect(),
            ));
        }
        let most = self.memory.total_bytes() / QUOTA_DIVISOR;
        let left = most.saturating_sub(inner.taken());
        if bytes > left {
            return Err(FileError::Quota { most, left });
        }
        let space = if bytes <= free {
            self.memory.take(bytes)
        } else {
            None
        };
        let space = space.ok_or(FileError::NoMemory(bytes))?;
        let upload = Upload {
            space,
            written: 0,
            sum: Sha256::new(),
        };
        inner.uploads.insert(name.to_string(), upload);
        Ok(())
    }

    /// Adds bytes to a file that is being put. Returns the number of bytes that are there, and the file's length.
    ///
    /// # Errors
    /// [`FileError`]; nothing was written.
    pub fn put(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<(u64, u64), FileError> {
        let mut inner = self.inner.lock();
        let upload = inner.upload(name)?;
        if offset != upload.written {
            return Err(FileError::Offset {
                written: upload.written,
            });
        }
        let length = upload.space.bytes().len() as u64;
        if bytes.len() as u64 > length - upload.written {
            return Err(FileError::TooLong { bytes: length });
        }
        upload.space.write(offset, bytes);
        upload.sum.update(bytes);
        upload.written += bytes.len() as u64;
        Ok((upload.written, length))
    }

    /// Completes a file, if its SHA-256 is this one. From now on TDs can use it.
    ///
    /// # Errors
    /// [`FileError`]. After [`FileError::Digest`] the file is dropped.
    pub fn end(&self, name: &str, sha256: &Digest) -> Result<u64, FileError> {
        let mut inner = self.inner.lock();
        let upload = inner.upload(name)?;
        let bytes = upload.space.bytes().len() as u64;
        if upload.written != bytes {
            return Err(FileError::Incomplete {
                written: upload.written,
                bytes,
            });
        }
        let Some(Upload { space, sum, .. }) = inner.uploads.remove(name) else {
            return Err(FileError::NotBegun(name.to_string()));
        };
        let found: Digest = sum.finalize().into();
        if found != *sha256 {
            return Err(FileError::Digest(found));
        }
        let file = PutFile {
            space,
            sha256: found,
        };
        inner
            .files
            .insert(name.to_string(), Stored::Put(Arc::new(file)));
        Ok(bytes)
    }

    /// Drops a file that was put or is being put. The caller has checked that no definition names it.
    pub(in crate::td) fn drop(&self, name: &str) -> Result<u64, FileError> {
        let mut inner = self.inner.lock();
        if let Some(upload) = inner.uploads.remove(name) {
            return Ok(upload.space.bytes().len() as u64);
        }
        match inner.files.get(name) {
            None => Err(FileError::NoSuch(name.chars().take(NAME).collect())),
            Some(Stored::Boot(..)) => Err(FileError::FromBoot(name.to_string())),
            Some(file) if file.is_used() => Err(FileError::Used(name.to_string())),
            Some(file) => {
                let bytes = file.bytes().len() as u64;
                inner.files.remove(name);
                Ok(bytes)
            }
        }
    }
}

impl Inner {
    /// Returns the bytes of all files that were put or are being put.
    fn taken(&self) -> u64 {
        let put = self
            .files
            .values()
            .filter(|file| matches!(file, Stored::Put(_)));
        let put: u64 = put.map(|file| file.bytes().len() as u64).sum();
        let uploads: u64 = self
            .uploads
            .values()
            .map(|upload| upload.space.bytes().len() as u64)
            .sum();
        put + uploads
    }

    fn upload(&mut self, name: &str) -> Result<&mut Upload, FileError> {
        let none = || FileError::NotBegun(name.chars().take(NAME).collect());
        self.uploads.get_mut(name).ok_or_else(none)
    }
}

fn is_name(name: &str) -> bool {
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    begins && name.len() <= NAME && name.chars().all(plain)
}

impl fmt::Debug for FileStore<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStore").finish_non_exhaustive()
    }
}
