//! A disk with an installed system: its partition table, its EFI system partition and its root file system, read from the
//! image without privileges.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ext4_view::{Ext4, Ext4Read};
use seamark_tests::media::{exists_on_disk, read_from_disk, root_of_disk};

const SECTOR: u64 = 512;
/// Bytes of the header of a partition table, and of an entry of OVMF's record.
const HEADER: usize = 92;

/// A disk image.
pub struct Disk {
    path: PathBuf,
    root: Option<Ext4>,
}

impl Disk {
    /// Opens an image. Its second partition need not exist.
    ///
    /// # Errors
    /// The file can't be read, or its partition for Linux is not ext4.
    pub fn open(path: &Path) -> Result<Self> {
        let what = || format!("the disk {}", path.display());
        let root = match root_of_disk(path) {
            Ok(range) => {
                let file = File::open(path).with_context(what)?;
                let part = Part { file, range };
                let root = Ext4::load(Box::new(part)).with_context(what)?;
                Some(root)
            }
            Err(_) => None,
        };
        let path = path.to_owned();
        Ok(Self { path, root })
    }

    /// Reads a file of the EFI system partition.
    ///
    /// # Errors
    /// There is no such partition or file.
    pub fn read_esp(&self, path: &str) -> Result<Vec<u8>> {
        let read = read_from_disk(&self.path, path.trim_start_matches('/'));
        read.with_context(|| format!("the EFI system partition's file {path}"))
    }

    /// Checks that the EFI system partition has none of these files and directories.
    ///
    /// # Errors
    /// There is one; or there is no such partition.
    pub fn has_none(&self, paths: &[&str]) -> Result<()> {
        for path in paths {
            ensure!(
                !exists_on_disk(&self.path, path)?,
                "the EFI system partition has {path}, whose effect is not predicted"
            );
        }
        Ok(())
    }

    /// Reads a file of the root file system; `None` if there is no such file.
    ///
    /// # Errors
    /// There is no such file system, or it can't be read.
    pub fn read_root(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let root = self
            .root
            .as_ref()
            .context("the disk has no root file system")?;
        if !root.exists(path)? || root.metadata(path)?.is_dir() {
            return Ok(None);
        }
        Ok(Some(root.read(path)?))
    }

    /// Returns the name of the only entry of a directory of the root file system.
    ///
    /// # Errors
    /// There is no such directory, or it has more entries or none.
    pub fn only_entry(&self, path: &str) -> Result<String> {
        let root = self.root.as_ref();
        let root = root.context("the disk has no root file system")?;
        let mut names = Vec::new();
        for entry in root.read_dir(path)? {
            let name = entry?.file_name().display().to_string();
            names.extend(Some(name).filter(|name| name != "." && name != ".."));
        }
        match &names[..] {
            [name] => Ok(name.clone()),
            _ => anyhow::bail!("{path} has {} entries", names.len()),
        }
    }

    /// Returns the root file system's UUID.
    pub fn root_uuid(&self) -> Option<String> {
        self.root.as_ref().map(|root| root.uuid().to_string())
    }

    /// Returns the record of the partition table that OVMF measures: the header, and the partitions that there are.
    ///
    /// # Errors
    /// There is no partition table.
    pub fn partitions(&self) -> Result<Vec<u8>> {
        let mut file = File::open(&self.path)?;
        let mut read = |at: u64, bytes: usize| -> Result<Vec<u8>> {
            let mut content = vec![0; bytes];
            file.seek(SeekFrom::Start(at))?;
            file.read_exact(&mut content)?;
            Ok(content)
        };
        let header = read(SECTOR, HEADER)?;
        ensure!(
            header.starts_with(b"EFI PART"),
            "the disk has no partition table (GPT)"
        );
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
        let (count, size) = (word(80) as usize, word(84) as usize);
        ensure!(
            count <= 1024 && (128..=4096).contains(&size),
            "the partition table is damaged"
        );
        let entries = read(u64::from(word(72)) * SECTOR, count * size)?;
        let used = entries.chunks(size).filter(|entry| entry[..16] != [0; 16]);
        let used: Vec<_> = used.collect();
        let mut record = header;
        record.extend((used.len() as u64).to_le_bytes());
        record.extend(used.concat());
        Ok(record)
    }
}

/// A part of a file.
struct Part {
    file: File,
    range: Range<u64>,
}

impl Ext4Read for Part {
    fn read(
        &mut self,
        start: u64,
        to: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        let end = start.checked_add(to.len() as u64);
        if end.is_none_or(|end| end > self.range.end - self.range.start) {
            return Err("behind the end of the partition".into());
        }
        self.file.seek(SeekFrom::Start(self.range.start + start))?;
        Ok(self.file.read_exact(to)?)
    }
}
