//! A disk image: GPT with an EFI system partition, FAT32, and perhaps a partition for Linux.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use fscommon::{BufStream, StreamSlice};
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition_types;
use gpt::{DiskDevice, GptDisk};

use super::dots;

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// Minimum size of the partition: that of a FAT32 with its smallest clusters, plus a reserve.
const SMALLEST_PARTITION: u64 = 48 * MIB;

/// Size of both partition tables, each below a MiB.
const TABLES: u64 = 2 * MIB;

/// The content of a disk: an EFI system partition, and perhaps one for a root file system behind it.
pub struct Layout<'a> {
    /// The label of the EFI system partition's volume.
    pub label: [u8; 11],
    /// The volume's serial number, by which an installed system mounts it.
    pub volume_id: u32,
    /// The EFI system partition's files: paths with `/` between their parts, and contents.
    pub files: &'a [(String, &'a [u8])],
    /// The size of the root file system's partition in bytes, a multiple of 1 MiB; 0 for none.
    pub root: u64,
}

impl Layout<'_> {
    /// Writes a new image. It is sparse: the free space of its file system takes no room. Returns the bytes of the root
    /// file system's partition, which are zero.
    ///
    /// # Errors
    /// The image can't be written.
    pub fn write(&self, image: &Path) -> Result<Range<u64>> {
        let content: u64 = self.files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let partition = SMALLEST_PARTITION + (content + content / 8).next_multiple_of(MIB);
        let size = partition + self.root + TABLES;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(image)?;
        file.set_len(size)?;

        let last_sector = u32::try_from(size / SECTOR - 1).unwrap_or(u32::MAX);
        ProtectiveMBR::with_lb_size(last_sector).overwrite_lba0(&mut file)?;
        let mut disk = gpt::GptConfig::new()
            .writable(true)
            .logical_block_size(LogicalBlockSize::Lb512)
            .create_from_device(file, None)?;
        let start = Some(MIB / SECTOR);
        let id = disk.add_partition("EFI", partition, partition_types::EFI, 0, start)?;
        let esp = place(&disk, id)?;
        let root = if self.root == 0 {
            esp.end..esp.end
        } else {
            let start = Some(esp.end / SECTOR);
            let id = disk.add_partition("root", self.root, partition_types::LINUX_FS, 0, start)?;
            place(&disk, id)?
        };
        let file = disk.write()?;
        self.write_volume(&file, esp)?;
        Ok(root)
    }

    fn write_volume(&self, file: &File, place: Range<u64>) -> Result<()> {
        let stream = || -> Result<_> {
            let slice = StreamSlice::new(file.try_clone()?, place.start, place.end)?;
            Ok(BufStream::new(slice))
        };
        let mut volume = stream()?;
        let format = FormatVolumeOptions::new()
            .fat_type(FatType::Fat32)
            .bytes_per_cluster(512)
            .volume_id(self.volume_id)
            .volume_label(self.label);
        fatfs::format_volume(&mut volume, format)?;
        let volume = FileSystem::new(volume, FsOptions::new())?;
        write_files(&volume, self.files)?;
        volume.unmount()?;
        let mut volume = stream()?;
        dots::mend(&mut volume)?;
        volume.flush()?;
        Ok(())
    }
}

/// Returns the bytes of a partition.
fn place<D: DiskDevice>(disk: &GptDisk<D>, id: u32) -> Result<Range<u64>> {
    let partition = disk.partitions().get(&id);
    let partition = partition.context("the partition just made")?;
    let start = partition.bytes_start(LogicalBlockSize::Lb512)?;
    let len = partition.bytes_len(LogicalBlockSize::Lb512)?;
    Ok(start..start + len)
}

/// Writes `files` (paths with `/` between their parts) to a new image with an EFI system partition alone.
///
/// # Errors
/// The image can't be written.
pub fn write(image: &Path, files: &[(String, &[u8])]) -> Result<()> {
    let layout = Layout {
        label: *b"SEAMARK    ",
        volume_id: 0x5EA3_A4C0,
        files,
        root: 0,
    };
    layout.write(image).map(drop)
}

fn write_files<T: Read + Write + Seek>(
    volume: &FileSystem<T>,
    files: &[(String, &[u8])],
) -> Result<()> {
    let root = volume.root_dir();
    let mut made = BTreeSet::new();
    for (path, bytes) in files {
        for (end, _) in path.match_indices('/') {
            if made.insert(&path[..end]) {
                root.create_dir(&path[..end])?;
            }
        }
        let mut file = root.create_file(path)?;
        file.truncate()?;
        file.write_all(bytes)?;
    }
    Ok(())
}

/// Returns the bytes of the root file system's partition of an image.
///
/// # Errors
/// There is no such partition.
pub fn root(image: &Path) -> Result<Range<u64>> {
    let disk = gpt::GptConfig::new().open(image)?;
    let linux =
        |(_, p): &(&u32, &gpt::partition::Partition)| p.part_type_guid == partition_types::LINUX_FS;
    let found = disk.partitions().iter().find(linux);
    let (id, _) = found.context("no partition for Linux")?;
    place(&disk, *id)
}

/// Reads a file back from the EFI system partition of an image.
///
/// # Errors
/// There is no such partition, or no such file in it.
pub fn read(image: &Path, path: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let volume = volume(image)?;
    volume.root_dir().open_file(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns whether the EFI system partition of an image has a file or a directory of this name.
///
/// # Errors
/// There is no such partition.
pub fn exists(image: &Path, path: &str) -> Result<bool> {
    let volume = volume(image)?;
    let root = volume.root_dir();
    Ok(root.open_file(path).is_ok() || root.open_dir(path).is_ok())
}

/// Opens the EFI system partition of an image.
fn volume(image: &Path) -> Result<FileSystem<ReadOnly>> {
    let disk = gpt::GptConfig::new().open(image)?;
    let efi = |p: &&gpt::partition::Partition| p.part_type_guid == partition_types::EFI;
    let partition = disk
        .partitions()
        .values()
        .find(efi)
        .context("no EFI partition")?;
    let start = partition.bytes_start(LogicalBlockSize::Lb512)?;
    let len = partition.bytes_len(LogicalBlockSize::Lb512)?;
    let slice = StreamSlice::new(File::open(image)?, start, start + len)?;
    let volume = FileSystem::new(ReadOnly(slice), FsOptions::new())?;
    ensure!(
        volume.fat_type() == FatType::Fat32,
        "the partition is not FAT32"
    );
    Ok(volume)
}

/// A read-only stream with `Write`, which fatfs requires even to read.
struct ReadOnly(StreamSlice<File>);

impl Read for ReadOnly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Seek for ReadOnly {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

impl Write for ReadOnly {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that `fsck.vfat` reports nothing, if it is installed; `cargo xtask test` installs it.
    #[test]
    fn fsck_accepts_the_file_system() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("disk.img");
        let many: Vec<_> = (0..100)
            .map(|i| format!("EFI/BOOT/guests of mine/{i}/a long name for a file.bin"))
            .collect();
        let mut files = vec![("EFI/BOOT/BOOTX64.EFI".to_owned(), &b"MZ"[..])];
        files.extend(many.into_iter().map(|path| (path, &b"x"[..])));
        write(&image, &files).unwrap();
        for (path, bytes) in &files {
            assert_eq!(super::read(&image, path).unwrap(), *bytes);
        }
        let disk = std::fs::read(&image).unwrap();
        let volume = directory.path().join("volume.img");
        let end = disk.len() - usize::try_from(MIB).unwrap();
        std::fs::write(&volume, &disk[usize::try_from(MIB).unwrap()..end]).unwrap();
        let checked = std::process::Command::new("/usr/sbin/fsck.vfat")
            .args(["-n", "-v"])
            .arg(&volume)
            .output();
        match checked {
            Ok(output) => assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stdout)
            ),
            Err(error) => eprintln!("fsck.vfat (package dosfstools) can't be started: {error}"),
        }
    }

    #[test]
    fn a_root_partition_is_behind_the_other_and_empty() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("disk.img");
        let files: [(String, &[u8]); 1] = [("EFI/a.txt".to_owned(), b"a")];
        let layout = Layout {
            label: *b"A          ",
            volume_id: 0x1234_5678,
            files: &files,
            root: 8 * MIB,
        };
        let root = layout.write(&image).unwrap();
        assert_eq!(root.end - root.start, 8 * MIB);
        assert_eq!(super::read(&image, "EFI/a.txt").unwrap(), b"a");
        let disk = gpt::GptConfig::new().open(&image).unwrap();
        let second = disk.partitions().get(&2).unwrap();
        assert_eq!(second.part_type_guid, partition_types::LINUX_FS);
        assert_eq!(second.first_lba * SECTOR, root.start);
        assert_eq!(super::root(&image).unwrap(), root);
        let bytes = std::fs::read(&image).unwrap();
        let [start, end] = [root.start, root.end].map(|at| usize::try_from(at).unwrap());
        assert!(bytes[start..end].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn files_are_read_back_through_gpt_and_fat32() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("disk.img");
        let program = vec![0x5A; 100_000];
        let files: [(String, &[u8]); 3] = [
            ("EFI/BOOT/BOOTX64.EFI".to_owned(), &program),
            ("EFI/a.txt".to_owned(), b"a"),
            ("b.txt".to_owned(), b""),
        ];
        write(&image, &files).unwrap();
        for (path, bytes) in files {
            assert_eq!(super::read(&image, &path).unwrap(), bytes);
        }
        assert!(super::read(&image, "EFI/none").is_err());
        let there = |path| exists(&image, path).unwrap();
        assert!(there("EFI/BOOT") && there("EFI/a.txt") && !there("EFI/none"));
    }
}
