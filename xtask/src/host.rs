//! The programs that this machine needs, and their installation.

use std::env;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// A program that a task needs.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// A program on the search path, or an absolute path.
    what: &'static str,
    /// The Debian package that contains it.
    package: &'static str,
}

/// The programs that emulate a machine.
pub const QEMU: [Need; 3] = [
    Need {
        what: "qemu-system-x86_64",
        package: "qemu-system-x86",
    },
    Need {
        what: "/usr/share/OVMF/OVMF_CODE.fd",
        package: "ovmf",
    },
    Need {
        what: "setpriv",
        package: "util-linux",
    },
];

/// Another emulator of a whole machine.
pub const BOCHS: [Need; 3] = [
    Need {
        what: "bochs-bin",
        package: "bochs",
    },
    Need {
        what: "/usr/share/bochs/BIOS-bochs-latest",
        package: "bochsbios",
    },
    Need {
        what: "/usr/share/vgabios/vgabios.bin",
        package: "vgabios",
    },
];

/// The programs that sign an image for Secure Boot.
pub const SIGNING: [Need; 2] = [
    Need {
        what: "sbsign",
        package: "sbsigntool",
    },
    Need {
        what: "openssl",
        package: "openssl",
    },
];

/// The programs that make a network and serve in it.
pub const NETWORK: [Need; 2] = [
    Need {
        what: "dnsmasq",
        package: "dnsmasq-base",
    },
    Need {
        what: "ip",
        package: "iproute2",
    },
];

/// The program that checks a file system.
pub const FSCK: [Need; 1] = [Need {
    what: "fsck.vfat",
    package: "dosfstools",
}];

/// The programs that make a whole Debian.
pub const DEBIAN: [Need; 2] = [
    Need {
        what: "mmdebstrap",
        package: "mmdebstrap",
    },
    Need {
        what: "bsdtar",
        package: "libarchive-tools",
    },
];

/// The programs that make a disk with a whole Debian, and what tells Debian's packages from others.
pub const DEBIAN_DISK: [Need; 5] = [
    Need {
        what: "mmdebstrap",
        package: "mmdebstrap",
    },
    Need {
        what: "/usr/share/keyrings/debian-archive-keyring.gpg",
        package: "debian-archive-keyring",
    },
    Need {
        what: "fakeroot",
        package: "fakeroot",
    },
    Need {
        what: "mke2fs",
        package: "e2fsprogs",
    },
    Need {
        what: "ssh-keygen",
        package: "openssh-client",
    },
];

/// The programs that let a user without privileges make a whole Debian.
pub const UNPRIVILEGED: [Need; 1] = [Need {
    what: "newuidmap",
    package: "uidmap",
}];

/// The programs that build a module for Linux.
pub const KERNEL_MODULE: [Need; 2] = [
    Need {
        what: "make",
        package: "make",
    },
    Need {
        what: "gcc",
        package: "gcc",
    },
];

/// The program that counts instructions.
pub const CALLGRIND: [Need; 1] = [Need {
    what: "valgrind",
    package: "valgrind",
}];

/// Installs missing programs through apt-get.
///
/// # Errors
/// Something is missing and can't be installed; the error says in one line what to install.
pub fn require(needs: &[Need]) -> Result<()> {
    let mut packages: Vec<_> = needs
        .iter()
        .filter(|n| !n.is_there())
        .map(|n| n.package)
        .collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    install_all(&packages)?;
    match needs.iter().find(|need| !need.is_there()) {
        Some(need) => bail!(
            "{} is still missing after the installation of {}",
            need.what,
            need.package
        ),
        None => Ok(()),
    }
}

/// Returns true if this process has root's rights.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Installs packages through apt-get. If that fails, the error says in one line what to install.
fn install_all(packages: &[&str]) -> Result<()> {
    let advice = format!("install {} and try again", packages.join(" "));
    let Some(prefix) = privilege() else {
        bail!("{advice} (neither root nor sudo here)");
    };
    if !on_path("apt-get") {
        bail!("{advice} (no apt-get here)");
    }
    eprintln!("installing {}", packages.join(" "));
    if !install(&prefix, packages)? {
        apt_get(&prefix, &["update"])?;
        ensure!(install(&prefix, packages)?, "{advice}");
    }
    Ok(())
}

/// Updates apt-get's list of packages.
///
/// # Errors
/// The update is not possible here.
pub fn apt_update() -> Result<()> {
    let prefix = privilege().context("neither root nor sudo here")?;
    ensure!(apt_get(&prefix, &["update"])?, "apt-get update failed");
    Ok(())
}

impl Need {
    fn is_there(&self) -> bool {
        on_path(self.what)
            || ["/usr/bin", "/usr/sbin"]
                .iter()
                .any(|d| Path::new(d).join(self.what).exists())
    }
}

/// Returns true if `what` is a file in the search path, or an absolute path to a file.
fn on_path(what: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| directory.join(what).is_file())
}

/// Returns the prefix of a command that only root may run.
fn privilege() -> Option<Vec<&'static str>> {
    if is_root() {
        Some(Vec::new())
    } else if !on_path("sudo") {
        None
    } else if io::stdin().is_terminal() {
        Some(vec!["sudo"])
    } else {
        Some(vec!["sudo", "-n"])
    }
}

fn install(prefix: &[&str], packages: &[&str]) -> Result<bool> {
    let arguments = ["install", "--yes", "--quiet", "--no-install-recommends"];
    apt_get(prefix, &[&arguments, packages].concat())
}

/// Runs apt-get with its output on standard error. Returns true if it succeeded.
fn apt_get(prefix: &[&str], arguments: &[&str]) -> Result<bool> {
    let mut words = prefix.to_vec();
    words.extend(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    words.extend(arguments);
    let status = Command::new(words[0])
        .args(&words[1..])
        .stdout(io::stderr())
        .status()
        .with_context(|| format!("can't start {}", words[0]))?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_paths_are_looked_for() {
        assert!(on_path("sh"));
        assert!(on_path("/bin/sh"));
        assert!(!on_path("no-such-program-anywhere"));
    }
}
