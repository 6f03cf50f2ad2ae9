//! Debian's packages, unpacked side by side without being installed, and what of them a program needs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use object::LittleEndian as LE;
use object::elf::{DT_NEEDED, FileHeader64};
use object::read::elf::FileHeader as _;

use super::cpio::Archive;
use super::mmdebstrap::KEYRING;
use crate::host;

/// Debian's library directory.
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
/// The dynamic loader. Every dynamically linked program names it.
const LOADER: &str = "ld-linux-x86-64.so.2";
const ADVICE: &str = "`apt-get update` may help";

/// Debian's archive.
const ARCHIVE: &str = "http://deb.debian.org/debian";

/// Packages in a directory of their own.
pub struct Packages {
    directory: PathBuf,
    /// The release that they are from, if it is not this machine's.
    suite: Option<&'static str>,
}

impl Packages {
    /// Those in `directory`; what is there already is not fetched again.
    ///
    /// # Errors
    /// When the directory can't be made.
    pub fn in_directory(directory: &Path) -> Result<Self> {
        Self::of_suite(directory, None)
    }

    /// Packages of another release. Its package lists are kept in `directory`; this machine's sources and lists stay as
    /// they are.
    ///
    /// # Errors
    /// When the directory can't be made.
    pub fn of_release(directory: &Path, suite: &'static str) -> Result<Self> {
        Self::of_suite(directory, Some(suite))
    }

    fn of_suite(directory: &Path, suite: Option<&'static str>) -> Result<Self> {
        let packages = Self {
            directory: directory.to_owned(),
            suite,
        };
        for directory in [packages.unpacked(), packages.marks()] {
            fs::create_dir_all(&directory)
                .with_context(|| format!("can't create {}", directory.display()))?;
        }
        Ok(packages)
    }

    /// The directory of the unpacked files.
    pub fn unpacked(&self) -> PathBuf {
        self.directory.join("unpacked")
    }

    /// A file for each package that is there.
    fn marks(&self) -> PathBuf {
        self.directory.join("packages")
    }

    /// Fetches and unpacks packages, unless they are there.
    ///
    /// # Errors
    /// When one can't be had.
    pub fn fetch<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let missing = |name: &&str| !self.marks().join(name).exists();
        let names: Vec<_> = names.into_iter().filter(missing).collect();
        if names.is_empty() {
            return Ok(());
        }
        println!("fetching {}", names.join(", "));
        if !self.download(&names)? {
            // A machine that never asked Debian what there is.
            self.update()?;
            let why = || format!("apt-get can't download {}; {ADVICE}", names.join(", "));
            ensure!(self.download(&names)?, why());
        }
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                let unpacked = self.unpacked();
                output(Command::new("dpkg").arg("-x").arg(&path).arg(unpacked))?;
                fs::remove_file(path)?;
            }
        }
        for name in names {
            write(&self.marks().join(name), b"")?;
        }
        Ok(())
    }

    fn download(&self, names: &[&str]) -> Result<bool> {
        let mut download = Command::new("apt-get");
        download.args(["download", "--quiet"]).args(names);
        download.args(self.options()?);
        let output = download.current_dir(&self.directory).output();
        let output = output.context("can't start apt-get")?;
        Ok(output.status.success())
    }

    /// Asks Debian what packages there are.
    fn update(&self) -> Result<()> {
        if self.suite.is_none() {
            return host::apt_update();
        }
        let mut update = Command::new("apt-get");
        update.args(["update", "--quiet"]).args(self.options()?);
        output(&mut update).map(drop)
    }

    /// Returns apt's options for a release of its own: a source list, and state, in this directory.
    fn options(&self) -> Result<Vec<String>> {
        let Some(suite) = self.suite else {
            return Ok(Vec::new());
        };
        let state = self.directory.join("apt");
        for directory in ["lists/partial", "cache/archives/partial"] {
            let directory = state.join(directory);
            fs::create_dir_all(&directory)
                .with_context(|| format!("can't create {}", directory.display()))?;
        }
        let list = state.join("sources.list");
        let source = format!("deb [signed-by={KEYRING}] {ARCHIVE} {suite} main\n");
        write(&list, source.as_bytes())?;
        let state = fs::canonicalize(&state)?;
        let options = [
            ("Dir::Etc::sourcelist", state.join("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("Dir::State::lists", state.join("lists")),
            ("Dir::Cache", state.join("cache")),
        ];
        let options = options.into_iter();
        Ok(options
            .flat_map(|(name, path)| ["-o".into(), format!("{name}={}", path.display())])
            .collect())
    }

    /// Adds programs of a package to an archive, at the paths that they have in it, with all libraries that they are linked with.
    ///
    /// # Errors
    /// When something can't be fetched, or no package on the way has a library.
    pub fn add_programs(
        &self,
        package: &str,
        programs: &[&str],
        archive: &mut Archive,
    ) -> Result<()> {
        /// From a program's package to that of its last library.
        const STEPS: usize = 6;
        self.fetch([package])?;
        let mut known = BTreeSet::from([package.to_owned()]);
        let mut latest = known.clone();
        for _ in 0..STEPS {
            let found = self.needed(programs)?;
            if let Ok(libraries) = found {
                for program in programs {
                    archive.program(program, &read(&self.unpacked().join(program))?);
                }
                archive.libraries(&libraries)?;
                return Ok(());
            }
            let mut next = BTreeSet::new();
            for package in &latest {
                next.extend(depends(package)?);
            }
            latest = next.difference(&known).cloned().collect();
            known.extend(latest.iter().cloned());
            self.fetch(latest.iter().map(String::as_str))?;
        }
        match self.needed(programs)? {
            Ok(_) => bail!("{package} depends on too much"),
            Err(missing) => bail!("nothing that {package} depends on has {missing}"),
        }
    }

    /// The libraries that programs need, directly or not; or the name of the first that is missing.
    fn needed(&self, programs: &[&str]) -> Result<Result<Vec<PathBuf>, String>> {
        let mut names = BTreeSet::new();
        let mut files: Vec<_> = programs.iter().map(|p| self.unpacked().join(p)).collect();
        let mut at = 0;
        while let Some(file) = files.get(at) {
            for name in needed(&read(file)?).with_context(|| format!("{}", file.display()))? {
                if !names.insert(name.clone()) {
                    continue;
                }
                let places = LIBRARIES.map(|place| self.unpacked().join(place).join(&name));
                match places.into_iter().find(|place| place.exists()) {
                    Some(place) => files.push(place),
                    None => return Ok(Err(name)),
                }
            }
            at += 1;
        }
        Ok(Ok(files.split_off(programs.len())))
    }
}

impl Archive {
    /// Adds libraries where the loader looks for them, and the loader where programs do.
    fn libraries(&mut self, files: &[PathBuf]) -> Result<()> {
        let place = LIBRARIES[0];
        for directory in ["lib64", "lib", place] {
            self.directory(directory);
        }
        for file in files {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            self.program(&format!("{place}/{name}"), &read(file)?);
        }
        self.link(&format!("lib64/{LOADER}"), &format!("../{place}/{LOADER}"));
        Ok(())
    }
}

/// The libraries that a program or library names.
fn needed(file: &[u8]) -> Result<Vec<String>> {
    let header = FileHeader64::<LE>::parse(file)?;
    let sections = header.sections(LE, file)?;
    let table = sections.dynamic_table(LE, file)?;
    let names = table.iter().filter(|entry| entry.tag == DT_NEEDED);
    names
        .map(|entry| Ok(String::from_utf8_lossy(table.string(entry)?).into_owned()))
        .collect()
}

/// The packages that a package depends on; of alternatives the first.
///
/// # Errors
/// When apt knows no such package.
pub fn depends(package: &str) -> Result<Vec<String>> {
    let said = output(Command::new("apt-cache").args(["depends", "--important", package]))?;
    Ok(dependencies(&said))
}

fn dependencies(said: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_alternative = false;
    for line in said.lines().map(str::trim) {
        let is_first = line.starts_with('|');
        let name = line.trim_start_matches('|');
        let name = name.strip_prefix("Depends: ");
        let name = name.or_else(|| line.trim_start_matches('|').strip_prefix("PreDepends: "));
        if let Some(name) = name {
            // A name in angle brackets is no package, but what several provide.
            if !is_alternative && !name.starts_with('<') {
                names.push(name.to_owned());
            }
            is_alternative = is_first;
        }
    }
    names
}

/// The one entry of a directory whose name begins like that.
///
/// # Errors
/// When there is none.
pub fn find(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory)
        .with_context(|| format!("{} is no directory", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(entry.path());
        }
    }
    bail!("{} has no {prefix}*", directory.display())
}

/// Returns the output of a command.
///
/// # Errors
/// When it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("can't start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// # Errors
/// With the file's name.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("can't read {}", path.display()))
}

/// # Errors
/// With the file's name.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_alternatives_the_first_is_taken_and_what_is_no_package_is_left_out() {
        let said = "kexec-tools\n  PreDepends: init-system\n |Depends: debconf\n  Depends: <debconf-2.0>\n    cdebconf\n  \
                    Depends: libc6\n |Depends: <virtual>\n  Depends: second\n  Depends: libz\n";
        assert_eq!(
            dependencies(said),
            ["init-system", "debconf", "libc6", "libz"]
        );
    }

    #[test]
    fn a_program_names_its_libraries() {
        let me = std::env::current_exe().unwrap();
        let names = needed(&fs::read(me).unwrap()).unwrap();
        assert!(names.iter().any(|name| name == "libc.so.6"), "{names:?}");
    }
}
