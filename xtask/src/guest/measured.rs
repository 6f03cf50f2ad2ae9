//! Disks whose boots are measured: two kernels of Debian's, each with a command line of its own, in a unified kernel image
//! and started by shim and GRUB. A small initial file system has the program that prints the TD's report.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use seamark_tests::media::{Layout, read_from_disk};
use seamark_tests::programs::{Measured, Programs};

use super::cpio::Archive;
use super::debian::ROOT_UUID;
use super::packages::{Packages, output, read, write};
use crate::disk::Disk;

/// The packages that make unified kernel images, and the release that they are from.
const SUITE: &str = "trixie";
const PACKAGES: [&str; 3] = ["python3-pefile", "systemd-boot-efi", "systemd-ukify"];
const STUB: &str = "usr/lib/systemd/boot/efi/linuxx64.efi.stub";
/// The command lines.
const LINES: [&str; 2] = [
    "console=ttyS0 no_timer_check",
    "console=ttyS0 no_timer_check loglevel=4 panic=30",
];
/// Modules that the initial file system loads from `/lib`, where Debian's disk has them.
const MODULES: [&str; 3] = [
    "fs/configfs/configfs",
    "drivers/virt/coco/tsm",
    "drivers/virt/coco/tdx-guest/tdx-guest",
];
/// Files of the EFI system partition that are Debian's.
const ESP_FILES: [&str; 3] = [
    "EFI/BOOT/BOOTX64.EFI",
    "EFI/BOOT/grubx64.efi",
    "EFI/debian/grub.cfg",
];
/// The size of the root file system.
const ROOT_BYTES: u64 = 64 << 20;

/// A kernel to boot.
struct System {
    kernel: Vec<u8>,
    initrd: Vec<u8>,
    line: &'static str,
}

/// Makes the disks.
pub fn make(programs: &Programs) -> Result<()> {
    let measured = programs.measured();
    let packages = Packages::of_release(measured.directory(), SUITE)?;
    packages.fetch(PACKAGES)?;
    let debian = programs.debian().disk();
    for (number, system) in (1..).zip(systems(programs)?) {
        let uki = uki(&measured, &packages.unpacked(), &system)?;
        let files = [("EFI/BOOT/BOOTX64.EFI".to_owned(), &uki[..])];
        layout(&files, 0).write(&measured.disk(&format!("uki-{number}")))?;
        with_grub(&measured.disk(&format!("grub-{number}")), &debian, &system)?;
    }
    Ok(())
}

/// Returns the kernel of the guest `linux` and that of Debian's disk.
fn systems(programs: &Programs) -> Result<[System; 2]> {
    let linux = programs.linux();
    let initrd = read(&linux.initrd())?;
    let mut other = initrd.clone();
    other.resize(other.len().next_multiple_of(4), 0);
    other.extend(modules(programs)?);
    let kernel = read(&programs.debian().kernel())?;
    let [first, second] = LINES;
    Ok([
        System {
            kernel: read(&linux.kernel())?,
            initrd,
            line: first,
        },
        System {
            kernel,
            initrd: other,
            line: second,
        },
    ])
}

/// Returns an archive with the modules of the kernel on Debian's disk.
fn modules(programs: &Programs) -> Result<Vec<u8>> {
    let disk = Disk::open(&programs.debian().disk())?;
    let release = disk.only_entry("/lib/modules")?;
    let scratch = programs.measured().directory().join("module.xz");
    let busybox = programs.linux().directory().join("unpacked/bin/busybox");
    let mut archive = Archive::default();
    for module in MODULES {
        let path = format!("/lib/modules/{release}/kernel/{module}.ko.xz");
        let packed = disk.read_root(&path)?;
        write(&scratch, &packed.with_context(|| format!("no {path}"))?)?;
        let unpacked = Command::new(&busybox).arg("xzcat").arg(&scratch).output();
        let unpacked = unpacked.with_context(|| format!("can't start {}", busybox.display()))?;
        let name = module.rsplit('/').next().unwrap_or(module);
        archive.file(&format!("lib/{name}.ko"), &unpacked.stdout);
    }
    fs::remove_file(scratch)?;
    Ok(archive.finish())
}

/// Makes a unified kernel image with Debian's ukify.
fn uki(measured: &Measured, unpacked: &Path, system: &System) -> Result<Vec<u8>> {
    let file = |name: &str| measured.directory().join(name);
    let (kernel, initrd, release) = (file("kernel"), file("initrd"), file("os-release"));
    write(&kernel, &system.kernel)?;
    write(&initrd, &system.initrd)?;
    write(&release, b"ID=debian\nVERSION_ID=13\n")?;
    let image = file("uki.efi");
    let mut ukify = Command::new("python3");
    ukify
        .env("PYTHONPATH", unpacked.join("usr/lib/python3/dist-packages"))
        .arg(unpacked.join("usr/bin/ukify"))
        .arg("build")
        .arg("--stub")
        .arg(unpacked.join(STUB))
        .arg("--linux")
        .arg(&kernel)
        .arg("--initrd")
        .arg(&initrd)
        .args(["--cmdline", system.line])
        .arg("--os-release")
        .arg(format!("@{}", release.display()))
        .arg("--output")
        .arg(&image);
    output(&mut ukify)?;
    let content = read(&image)?;
    for name in [kernel, initrd, release, image] {
        fs::remove_file(name)?;
    }
    Ok(content)
}

/// Makes a disk with shim, GRUB, and a root file system, whose configuration is that of Debian's disk with this kernel.
fn with_grub(image: &Path, debian: &Path, system: &System) -> Result<()> {
    let mut files = Vec::new();
    for name in ESP_FILES {
        files.push((name.to_owned(), read_from_disk(debian, name)?));
    }
    let files: Vec<_> = files
        .iter()
        .map(|(name, b)| (name.clone(), &b[..]))
        .collect();
    let place = layout(&files, ROOT_BYTES).write(image)?;
    let disk = Disk::open(debian)?;
    let of_debian = |path: &str| {
        let content = disk.read_root(path)?;
        content.with_context(|| format!("Debian's disk has no {path}"))
    };
    let root = image.with_extension("root");
    let grub = root.join("boot/grub");
    fs::create_dir_all(&grub)?;
    let config = String::from_utf8(of_debian("/boot/grub/grub.cfg")?)?;
    write(
        &grub.join("grub.cfg"),
        configured(&config, system.line).as_bytes(),
    )?;
    write(&grub.join("grubenv"), &of_debian("/boot/grub/grubenv")?)?;
    write(&root.join("boot/vmlinuz"), &system.kernel)?;
    write(&root.join("boot/initrd.img"), &system.initrd)?;
    let mut make = Command::new("/sbin/mke2fs");
    make.args(["-q", "-F", "-t", "ext4", "-U", ROOT_UUID, "-d"])
        .arg(&root)
        .arg("-E")
        .arg(format!("offset={}", place.start))
        .arg(image)
        .arg(format!("{}k", (place.end - place.start) >> 10));
    output(&mut make)?;
    Ok(fs::remove_dir_all(root)?)
}

/// Returns a configuration that `update-grub` wrote with another kernel, command line and initial file system.
fn configured(config: &str, line: &str) -> String {
    let other = |written: &str| {
        let indent: String = written.chars().take_while(|c| c.is_whitespace()).collect();
        match written.split_whitespace().next() {
            Some("linux") => format!("{indent}linux\t/boot/vmlinuz {line}\n"),
            Some("initrd") => format!("{indent}initrd\t/boot/initrd.img\n"),
            _ => format!("{written}\n"),
        }
    };
    config.lines().map(other).collect()
}

fn layout<'a>(files: &'a [(String, &'a [u8])], root: u64) -> Layout<'a> {
    Layout {
        label: *b"NO NAME    ",
        volume_id: 0x5EA3_0384,
        files,
        root,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lines_of_kernels_and_initial_file_systems_change() {
        let before =
            "menuentry a {\n\tlinux\t/boot/x root=y\n\techo\t'linux'\n\t\tinitrd\t/boot/z\n}\n";
        let after = "menuentry a {\n\tlinux\t/boot/vmlinuz q\n\techo\t'linux'\n\t\tinitrd\t/boot/initrd.img\n}\n";
        assert_eq!(configured(before, "q"), after);
    }
}
