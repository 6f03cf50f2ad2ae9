//! What the tests with programs of others' take into a TD: Debian's stress-ng and kexec, a whole Debian, a module of Intel's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use seamark_tests::programs::{Foreign, Linux};

use super::cpio::Archive;
use super::packages::{Packages, depends, find, output, read, write};
use crate::host;

/// The kernel and the initial file system that kexec starts, where a TD finds them.
const KEXEC_KERNEL: &str = "boot/vmlinuz";
const KEXEC_INITRD: &str = "boot/initrd";

/// The release of the whole Debian, that of the kernel.
const RELEASE: &str = "bookworm";
/// What is in it beside what a Debian has.
const PACKAGES: &str = "systemd-sysv,udev,dbus,procps,postgresql";

/// An initial file system with stress-ng and kexec in it.
pub fn programs(linux: &Linux, foreign: &Foreign) -> Result<()> {
    let packages = Packages::in_directory(foreign.directory())?;
    let mut archive = Archive::default();
    for directory in ["boot", "sbin", "usr", "usr/bin"] {
        archive.directory(directory);
    }
    packages.add_programs("stress-ng", &["usr/bin/stress-ng"], &mut archive)?;
    packages.add_programs("kexec-tools", &["sbin/kexec"], &mut archive)?;
    let initrd = read(&linux.initrd())?;
    archive.file(KEXEC_KERNEL, &read(&linux.kernel())?);
    archive.file(KEXEC_INITRD, &initrd);
    // Archives one after the other are one.
    write(&foreign.programs(), &[initrd, archive.finish()].concat())
}

/// A whole Debian with systemd and PostgreSQL as an initial file system, made once.
pub fn debian(foreign: &Foreign) -> Result<()> {
    let initrd = foreign.debian();
    if initrd.exists() {
        return Ok(());
    }
    host::require(&host::DEBIAN)?;
    let directory = foreign.directory();
    fs::create_dir_all(directory)
        .with_context(|| format!("can't create {}", directory.display()))?;
    let tar = directory.join("debian.tar");
    println!("making a Debian: some minutes");
    let mut make = Command::new("mmdebstrap");
    make.args(["--quiet", "--variant=important", "--format=tar"])
        .arg(format!("--include={PACKAGES}"))
        // root logs in without a password, and the kernel starts what a file system's init is.
        .arg("--customize-hook=chroot \"$1\" passwd --delete root")
        .arg("--customize-hook=ln -s sbin/init \"$1/init\"")
        .arg("--customize-hook=echo td > \"$1/etc/hostname\"")
        .args(["--aptopt=APT::Install-Recommends \"false\"", RELEASE])
        .arg(&tar);
    output(&mut make)?;
    let part = directory.join("debian.part");
    let file =
        fs::File::create(&part).with_context(|| format!("can't create {}", part.display()))?;
    let status = Command::new("bsdtar")
        .args(["--create", "--format=newc", "--file=-"])
        .arg(format!("@{}", tar.display()))
        .stdout(Stdio::from(file))
        .status()
        .context("can't start bsdtar")?;
    ensure!(
        status.success(),
        "bsdtar can't make an archive of {}",
        tar.display()
    );
    fs::remove_file(&tar)?;
    // Last, for it is the sign that all is there.
    fs::rename(&part, &initrd).with_context(|| format!("can't create {}", initrd.display()))
}

/// An initial file system with the module of LKVS's tdx-compliance, built from a checkout.
pub fn lkvs(linux: &Linux, foreign: &Foreign, checkout: &Path) -> Result<()> {
    const TESTS: &str = "BM/tdx-compliance";
    const MODULE: &str = "tdx-compliance.ko";
    let source = checkout.join(TESTS);
    ensure!(
        source.join("Makefile").exists(),
        "{} is no checkout of LKVS: it has no {TESTS}/Makefile",
        checkout.display()
    );
    let modules = find(&linux.directory().join("unpacked/lib/modules"), "")?;
    let release = modules.file_name().unwrap_or_default().to_string_lossy();
    let headers = headers(foreign, &release)?;
    host::require(&host::KERNEL_MODULE)?;
    let build = foreign.directory().join("lkvs");
    let _ = fs::remove_dir_all(&build);
    fs::create_dir_all(foreign.directory())?;
    output(Command::new("cp").arg("-r").arg(&source).arg(&build))?;
    let mut make = Command::new("make");
    make.arg(format!("KERNEL_SRC={}", headers.display()))
        .arg(format!("PWD={}", build.display()));
    output(make.current_dir(&build))?;
    let mut archive = Archive::default();
    archive.file(&format!("lib/{MODULE}"), &read(&build.join(MODULE))?);
    let initrd = read(&linux.initrd())?;
    write(&foreign.lkvs(), &[initrd, archive.finish()].concat())
}

/// Linux's headers, unpacked; they name each other by where they would be installed.
fn headers(foreign: &Foreign, release: &str) -> Result<PathBuf> {
    const INSTALLED: &str = "/usr/src/";
    let package = format!("linux-headers-{release}");
    let packages = Packages::in_directory(foreign.directory())?;
    let mut names = depends(&package)?;
    names.retain(|name| name.starts_with("linux-headers-") || name.starts_with("linux-kbuild-"));
    names.push(package.clone());
    packages.fetch(names.iter().map(String::as_str))?;
    let unpacked = packages.unpacked().join("usr/src");
    let headers = unpacked.join(package);
    let makefile = headers.join("Makefile");
    let text = String::from_utf8_lossy(&read(&makefile)?).into_owned();
    if let Some(rest) = text.strip_prefix(&format!("include {INSTALLED}")) {
        let text = format!("include {}/{rest}", unpacked.display());
        write(&makefile, text.as_bytes())?;
    }
    Ok(headers)
}
