//! A system of Debian's packages, made by mmdebstrap.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::packages::write;

/// Files left out of the packages: documentation and languages.
const LEFT_OUT: [&str; 4] = [
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
];
/// For making a system, in seconds; a quiet machine needs 100.
const LIMIT: u32 = 1500;
/// The key of Debian's archive.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A system.
#[derive(Debug)]
pub struct System<'a> {
    /// The release of Debian.
    pub release: &'a str,
    /// Packages beside the essential ones.
    pub packages: &'a [&'a str],
    /// More files that are left out of the packages.
    pub left_out: &'a [&'a str],
    /// Shell commands that finish the system, whose directory is their `$1`.
    pub hooks: &'a [&'a str],
    /// True if the system is one machine and keeps its identity.
    pub is_a_machine: bool,
}

impl System<'_> {
    /// Returns everything that the system depends on, as text.
    pub fn recipe(&self) -> String {
        format!("{self:?}\n{LEFT_OUT:?}\n{}", self.sources())
    }

    /// Returns the packages' sources in the format of apt's `sources.list`: those of the release and nothing else,
    /// whatever this computer has.
    fn sources(&self) -> String {
        let release = self.release;
        let main = "http://deb.debian.org/debian";
        let security = "http://deb.debian.org/debian-security";
        let suites = [
            (main, release.to_owned()),
            (main, format!("{release}-updates")),
            (security, format!("{release}-security")),
        ];
        suites.iter().fold(String::new(), |mut text, (uri, suite)| {
            // Writing to a string can't fail.
            let _ = writeln!(text, "deb [signed-by={KEYRING}] {uri} {suite} main");
            text
        })
    }

    /// Makes the system as a tar archive.
    ///
    /// # Errors
    /// A package can't be fetched, a hook fails, or the time is over.
    pub fn make(&self, tar: &Path) -> Result<()> {
        println!("making a Debian ({}): some minutes", self.release);
        // apt goes by the name: one source a line.
        let sources = tar.with_extension("list");
        write(&sources, self.sources().as_bytes())?;
        let part = tar.with_extension("part");
        let mut make = Command::new("timeout");
        make.args([&LIMIT.to_string(), "mmdebstrap"])
            .args(["--quiet", "--variant=minbase", "--format=tar"])
            .arg(format!("--include={}", self.packages.join(",")))
            .arg("--aptopt=APT::Install-Recommends \"false\"")
            .arg("--dpkgopt=force-unsafe-io")
            .args(self.all_left_out())
            .args(self.hooks.iter().map(|h| format!("--customize-hook={h}")));
        if self.is_a_machine {
            make.arg("--skip=cleanup/reproducible");
        }
        make.arg(self.release).arg(&part).arg(&sources);
        let output = make.output().context("can't start timeout (coreutils)")?;
        ensure!(
            output.status.success(),
            "mmdebstrap made no Debian ({}) within {LIMIT} s: {}",
            self.release,
            String::from_utf8_lossy(&output.stderr)
        );
        fs::remove_file(&sources)?;
        fs::rename(&part, tar).with_context(|| format!("can't create {}", tar.display()))
    }

    fn all_left_out(&self) -> impl Iterator<Item = String> {
        let all = LEFT_OUT.iter().chain(self.left_out);
        all.map(|path| format!("--dpkgopt=path-exclude={path}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_come_from_the_release_alone_and_are_signed() {
        let system = System {
            release: "trixie",
            packages: &[],
            left_out: &[],
            hooks: &[],
            is_a_machine: false,
        };
        let sources = system.sources();
        assert_eq!(sources.lines().count(), 3);
        for line in sources.lines() {
            assert!(line.starts_with(&format!("deb [signed-by={KEYRING}] http://deb.debian.org/")));
            assert!(line.contains(" trixie"), "{line}");
        }
    }
}
