//! Initial file systems for the tests with third-party programs: Debian's stress-ng and kexec, a whole Debian, and a
//! kernel module of Intel's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use seamark_tests::programs::{Foreign, Linux};

use super::cpio::Archive;
use super::mmdebstrap::System;
use super::packages::{Packages, depends, find, output, read, write};
use crate::host;

/// The kernel and the initial file system that kexec starts, where a TD finds them.
const KEXEC_KERNEL: &str = "boot/vmlinuz";
const KEXEC_INITRD: &str = "boot/initrd";

/// The whole Debian, of the kernel's release: what a serial login needs, and the database without its optional compiler.
/// Root logs in without a password, and the kernel starts the file system's init.
const DEBIAN: System<'_> = System {
    release: "bookworm",
    packages: &["systemd-sysv", "udev", "dbus", "postgresql"],
    left_out: &[
        "/usr/lib/x86_64-linux-gnu/libLLVM*",
        "/usr/lib/postgresql/*/lib/bitcode/*",
        "/usr/lib/postgresql/*/lib/llvmjit.so",
    ],
    hooks: &[
        "chroot \"$1\" passwd --delete root",
        "ln -s sbin/init \"$1/init\"",
        "echo td > \"$1/etc/hostname\"",
    ],
    is_a_machine: false,
};

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
    DEBIAN.make(&tar)?;
    let part = directory.join("debian.part");
    let mut pack = Command::new("bsdtar");
    pack.args(["--create", "--format=newc", "--zstd", "--file"])
        .arg(&part)
        .arg(format!("@{}", tar.display()));
    output(&mut pack)?;
    fs::remove_file(&tar)?;
    // Last, for it is the sign that all is there.
    fs::rename(&part, &initrd).with_context(|| format!("can't create {}", initrd.display()))
}

/// Modules of LKVS: where their sources are in a checkout, and their names.
const MODULES: [(&str, &str); 2] = [
    ("BM/tdx-compliance", "tdx-compliance.ko"),
    ("BM/tdx-guest/tdx_halt_test_module", "halt_test.ko"),
];

/// An initial file system with modules of LKVS, built from a checkout.
pub fn lkvs(linux: &Linux, foreign: &Foreign, checkout: &Path) -> Result<()> {
    for (source, _) in MODULES {
        ensure!(
            checkout.join(source).join("Makefile").exists(),
            "{} is no checkout of LKVS: it has no {source}/Makefile",
            checkout.display()
        );
    }
    let modules = find(&linux.directory().join("unpacked/lib/modules"), "")?;
    let release = modules.file_name().unwrap_or_default().to_string_lossy();
    let headers = headers(foreign, &release)?;
    host::require(&host::KERNEL_MODULE)?;
    let build = foreign.directory().join("lkvs");
    let _ = fs::remove_dir_all(&build);
    fs::create_dir_all(&build).with_context(|| format!("can't create {}", build.display()))?;
    let mut archive = Archive::default();
    for (source, module) in MODULES {
        let place = build.join(module);
        output(
            Command::new("cp")
                .arg("-r")
                .arg(checkout.join(source))
                .arg(&place),
        )?;
        let mut make = Command::new("make");
        // The makefiles have different names for where the kernel is.
        make.arg(format!("KERNEL_SRC={}", headers.display()))
            .arg(format!("KDIR={}", headers.display()))
            .arg(format!("PWD={}", place.display()));
        output(make.current_dir(&place))?;
        archive.file(&format!("lib/{module}"), &read(&place.join(module))?);
    }
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
