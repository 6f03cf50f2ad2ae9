//! The entries `.` and `..` of directories on a FAT32 volume, corrected to the specification.
//!
//! The crate `fatfs` (0.3) gives them long names, and gives `..` in a directory of the root the root's cluster. The
//! specification wants them without long names, before all other entries, and with cluster 0 for the root; `fsck.vfat`
//! insists.
//!
//! Source: Microsoft, FAT: General Overview of On-Disk Format 1.03, "FAT Directory Structure".

use std::io::{Read, Seek, SeekFrom, Write};

use anyhow::{Context, Result, ensure};

const ENTRY: usize = 32;
const DOT: &[u8; 11] = b".          ";
const DOT_DOT: &[u8; 11] = b"..         ";
/// The first byte of a free entry.
const FREE: u8 = 0xE5;
/// The first byte of the entry behind the last.
const END: u8 = 0;

const ATTRIBUTES: usize = 11;
const DIRECTORY: u8 = 1 << 4;
/// Read only, hidden, system, volume: a part of a long name.
const LONG_NAME: u8 = 0xF;

/// Corrects the entries in every directory of the volume except its root, which has none.
///
/// # Errors
/// The volume can't be read or written, or was not written by `fatfs`.
pub fn mend(volume: impl Read + Write + Seek) -> Result<()> {
    let mut volume = Volume::open(volume)?;
    let root = volume.root;
    let mut todo = vec![(root, 0)];
    while let Some((cluster, parent)) = todo.pop() {
        let mut directory = volume.read_chain(cluster)?;
        if cluster != root {
            let first = mended(&directory, cluster, parent)?;
            directory[..first.len()].copy_from_slice(&first);
            volume.write(cluster, &first)?;
        }
        let here = if cluster == root { 0 } else { cluster };
        todo.extend(subdirectories(&directory).map(|inner| (inner, here)));
    }
    Ok(())
}

/// Returns the clusters of the directories in a directory.
fn subdirectories(directory: &[u8]) -> impl Iterator<Item = u32> {
    directory
        .chunks_exact(ENTRY)
        .take_while(|entry| entry[0] != END)
        .filter(|entry| entry[0] != FREE && entry[0] != b'.')
        .filter(|entry| entry[ATTRIBUTES] & LONG_NAME != LONG_NAME)
        .filter(|entry| entry[ATTRIBUTES] & DIRECTORY != 0)
        .map(cluster_of)
}

/// Returns the corrected first four entries of the directory at `cluster`, which were a long and a short name each.
fn mended(directory: &[u8], cluster: u32, parent: u32) -> Result<[u8; 4 * ENTRY]> {
    let mut entries = [0; 4 * ENTRY];
    let old = directory
        .get(..entries.len())
        .context("a directory without entries")?;
    for (at, name, to) in [(0, DOT, cluster), (1, DOT_DOT, parent)] {
        let short = &old[(2 * at + 1) * ENTRY..][..ENTRY];
        ensure!(
            old[2 * at * ENTRY + ATTRIBUTES] == LONG_NAME && short.starts_with(name),
            "a directory does not begin as fatfs writes it"
        );
        let new = &mut entries[at * ENTRY..][..ENTRY];
        new.copy_from_slice(short);
        new[20..22].copy_from_slice(&to.to_le_bytes()[2..]);
        new[26..28].copy_from_slice(&to.to_le_bytes()[..2]);
        entries[(at + 2) * ENTRY] = FREE;
    }
    Ok(entries)
}

fn cluster_of(entry: &[u8]) -> u32 {
    u32::from_le_bytes([entry[26], entry[27], entry[20], entry[21]])
}

/// A FAT32 volume, accessed by clusters.
struct Volume<T> {
    stream: T,
    /// Size of a cluster in bytes.
    cluster: u64,
    /// Offset of the first table in bytes.
    table: u64,
    /// Offset of cluster 2 in bytes.
    data: u64,
    root: u32,
}

impl<T: Read + Write + Seek> Volume<T> {
    fn open(mut stream: T) -> Result<Self> {
        let mut boot = [0; 512];
        stream.seek(SeekFrom::Start(0))?;
        stream.read_exact(&mut boot)?;
        let short = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
        let long = |at: usize| short(at) | short(at + 2) << 16;
        let sector = short(11);
        let table = short(14) * sector;
        Ok(Self {
            cluster: u64::from(boot[13]) * sector,
            table,
            data: table + u64::from(boot[16]) * long(36) * sector,
            root: u32::try_from(long(44))?,
            stream,
        })
    }

    fn seek(&mut self, cluster: u32) -> Result<()> {
        let index = cluster.checked_sub(2).context("no cluster of data")?;
        let at = self.data + u64::from(index) * self.cluster;
        self.stream.seek(SeekFrom::Start(at))?;
        Ok(())
    }

    /// Reads all clusters from `cluster` on.
    fn read_chain(&mut self, mut cluster: u32) -> Result<Vec<u8>> {
        const LAST: u32 = 0x0FFF_FFF8;
        const NUMBER: u32 = 0x0FFF_FFFF;
        /// Maximum size of a directory in bytes.
        const MOST: usize = 1 << 21;
        let mut bytes = Vec::new();
        while cluster < LAST {
            ensure!(bytes.len() < MOST, "a directory has no end");
            self.seek(cluster)?;
            let from = bytes.len();
            bytes.resize(from + usize::try_from(self.cluster)?, 0);
            self.stream.read_exact(&mut bytes[from..])?;
            let mut next = [0; 4];
            let at = self.table + 4 * u64::from(cluster);
            self.stream.seek(SeekFrom::Start(at))?;
            self.stream.read_exact(&mut next)?;
            cluster = u32::from_le_bytes(next) & NUMBER;
        }
        Ok(bytes)
    }

    fn write(&mut self, cluster: u32, bytes: &[u8]) -> Result<()> {
        self.seek(cluster)?;
        self.stream.write_all(bytes)?;
        Ok(())
    }
}
