//! The disk's partitions and what is in them.

use std::ops::Range;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use seamark_tests::media::Layout;
use seamark_tests::programs::Debian;

use crate::guest::packages::{output, write};

/// The size of the root file system.
const ROOT_BYTES: u64 = 3 << 30;

/// Files of the EFI system partition, as Debian's installer puts them there: those of the boot entry `debian`, and those
/// that firmware starts without a boot entry. Each with its place in the system.
const ESP_FILES: [(&str, &str); 8] = [
    ("EFI/debian/shimx64.efi", "usr/lib/shim/shimx64.efi.signed"),
    ("EFI/debian/grubx64.efi", GRUB),
    ("EFI/debian/mmx64.efi", "usr/lib/shim/mmx64.efi.signed"),
    ("EFI/debian/fbx64.efi", "usr/lib/shim/fbx64.efi.signed"),
    ("EFI/debian/BOOTX64.CSV", "usr/lib/shim/BOOTX64.CSV"),
    ("EFI/BOOT/BOOTX64.EFI", "usr/lib/shim/shimx64.efi.signed"),
    ("EFI/BOOT/grubx64.efi", GRUB),
    ("EFI/BOOT/mmx64.efi", "usr/lib/shim/mmx64.efi.signed"),
];
const GRUB: &str = "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed";

/// Unpacks the system and makes the root file system of it. The owners of its files are known only within fakeroot if the
/// user has no privileges. Arguments: the archive, a directory for the files, the image, the file system's UUID, its
/// place and its size.
const MAKE_ROOT: &str = r#"
set -eu
mkdir "$2"
tar --extract --preserve-permissions --numeric-owner --xattrs --xattrs-include='*' --file "$1" --directory "$2"
/sbin/mke2fs -q -F -t ext4 -U "$4" -d "$2" -E "offset=$5,nodiscard,assume_storage_prezeroed=1" "$3" "$6"
chmod -R u+rwX "$2"
rm -r "$2"
"#;

/// Returns everything that the disk's layout depends on, as text.
pub fn recipe(root_uuid: &str, esp_id: u32) -> String {
    format!(
        "{ROOT_BYTES} {ESP_FILES:?} {root_uuid} {esp_id:x}\n{MAKE_ROOT}{}",
        grub_cfg(root_uuid)
    )
}

/// Makes the disk of a system, and puts its kernel beside it.
pub fn make(debian: &Debian, system: &Path, root_uuid: &str, esp_id: u32) -> Result<()> {
    let mut files = Vec::new();
    for (name, source) in ESP_FILES {
        files.push((name.to_owned(), extract(system, source)?));
    }
    files.push(("EFI/debian/grub.cfg".to_owned(), grub_cfg(root_uuid).into()));
    let files: Vec<_> = files.iter().map(|(name, b)| (name.clone(), &**b)).collect();
    let layout = Layout {
        label: *b"NO NAME    ",
        volume_id: esp_id,
        files: &files,
        root: ROOT_BYTES,
    };
    let image = debian.disk();
    let place = layout.write(&image);
    let place = place.with_context(|| format!("can't write {}", image.display()))?;
    make_root(debian, system, root_uuid, &place)?;
    copy_kernel(debian, system)
}

fn make_root(debian: &Debian, system: &Path, uuid: &str, place: &Range<u64>) -> Result<()> {
    let mut make = Command::new("fakeroot");
    make.args(["sh", "-c", MAKE_ROOT, "sh"])
        .arg(system)
        .arg(debian.directory().join("unpacked"))
        .arg(debian.disk())
        .arg(uuid)
        .arg(place.start.to_string())
        .arg(format!("{}k", (place.end - place.start) >> 10));
    output(&mut make).map(drop)
}

fn copy_kernel(debian: &Debian, system: &Path) -> Result<()> {
    let kernel = extract(system, "boot/vmlinuz-*")?;
    write(&debian.kernel(), &kernel)
}

/// Returns the content of the only file of this name in the archive.
fn extract(system: &Path, name: &str) -> Result<Vec<u8>> {
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--to-stdout", "--wildcards", "--file"])
        .arg(system)
        .arg(format!("./{name}"));
    let output = tar.output().context("can't start tar")?;
    ensure!(
        output.status.success() && !output.stdout.is_empty(),
        "the system has no {name}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

/// The first configuration that GRUB reads, from where it was started: it finds the other one on the root file system.
fn grub_cfg(root_uuid: &str) -> String {
    format!(
        "search.fs_uuid {root_uuid} root hd0,gpt2\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"
    )
}

/// Returns a FAT volume's serial number as Linux names it.
pub fn volume_name(id: u32) -> String {
    format!("{:04X}-{:04X}", id >> 16, id & 0xFFFF)
}
