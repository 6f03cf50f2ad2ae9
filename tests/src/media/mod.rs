//! The media that a machine boots from: the hypervisor, its configuration and the files that this names, on a disk or
//! in a directory for TFTP.

mod disk;
mod dots;
mod seal;

pub use disk::read as read_from_disk;

use std::fs;
use std::path::{Component, Path};

use anyhow::{Context, Error, Result, bail, ensure};

/// The path of the program that UEFI loads from a disk without a boot entry.
pub const REMOVABLE_BOOT_FILE: &str = "EFI/BOOT/BOOTX64.EFI";

/// The folder of [`REMOVABLE_BOOT_FILE`], from which the program reads its other files.
const BOOT_FOLDER: &str = "EFI/BOOT";

/// An EFI program and the files that it reads from the place it was loaded from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Media {
    program: Vec<u8>,
    /// Paths relative to the program's folder, with `/` between their parts.
    files: Vec<(String, Vec<u8>)>,
}

impl Media {
    /// Creates media from the EFI program in `file`.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn of_program(file: &Path) -> Result<Self> {
        Ok(Self {
            program: read(file)?,
            files: Vec::new(),
        })
    }

    /// Adds a configuration unchecked.
    #[must_use]
    pub fn with_config_text(mut self, text: &str) -> Self {
        self.files.push((config::FILE_NAME.to_owned(), text.into()));
        self
    }

    /// Adds a file, as `name` next to the program.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn with_file(mut self, name: &str, file: &Path) -> Result<Self> {
        self.files.push((name.to_owned(), read(file)?));
        Ok(self)
    }

    /// Adds a file with these bytes, as `name` next to the program.
    #[must_use]
    pub fn with_bytes(mut self, name: &str, bytes: &[u8]) -> Self {
        self.files.push((name.to_owned(), bytes.to_owned()));
        self
    }

    /// Adds the configuration in `file` and every file that it names, relative to the configuration's directory.
    ///
    /// # Errors
    /// The hypervisor would not accept the configuration, or a file can't be read.
    pub fn with_config(mut self, file: &Path) -> Result<Self> {
        let text = read(file)?;
        let config = config::parse(&text)
            .map_err(Error::msg)
            .with_context(|| format!("in {}", file.display()))?;
        let home = file.parent().unwrap_or(Path::new("."));
        let mut lengths = Vec::new();
        for named in &config.file {
            ensure!(
                is_inner(&named.path),
                "{} names {}, which is not below its own directory",
                file.display(),
                named.path
            );
            let bytes = read(&home.join(&named.path))?;
            lengths.push((&*named.name, bytes.len() as u64));
            self.files.push((named.path.clone(), bytes));
        }
        let length = |name: &str| {
            let found = lengths.iter().find(|(known, _)| *known == name);
            found.map(|(_, length)| *length)
        };
        if let Some(empty) = config.empty_file(length) {
            bail!("{}: {empty}", file.display());
        }
        self.files.push((config::FILE_NAME.to_owned(), text));
        Ok(self)
    }

    /// Seals the program with the configuration and the SHA-256 of every other file, and signs it for Secure Boot.
    ///
    /// # Errors
    /// There is no configuration, the program can't be sealed, or sbsign refuses the key or the certificate.
    pub fn signed(mut self, key: &Path, certificate: &Path) -> Result<Self> {
        let (config, others): (Vec<_>, Vec<_>) = self
            .files
            .iter()
            .cloned()
            .partition(|(name, _)| name == config::FILE_NAME);
        let (_, config) = config.first().context("there is no configuration")?;
        seal::add(&mut self.program, &seal::seal(config, &others))?;
        self.program = seal::sign(&self.program, key, certificate)?;
        Ok(self)
    }

    /// Replaces the content of the file called `name`.
    ///
    /// # Errors
    /// There is no such file.
    pub fn with_replaced(mut self, name: &str, bytes: &[u8]) -> Result<Self> {
        let file = self.files.iter_mut().find(|(known, _)| known == name);
        let (_, content) = file.with_context(|| format!("there is no file {name}"))?;
        bytes.clone_into(content);
        Ok(self)
    }

    /// Writes a GPT disk image with a FAT32 EFI system partition, replacing `image`.
    ///
    /// # Errors
    /// The image can't be written.
    pub fn write_disk(&self, image: &Path) -> Result<()> {
        let mut files = vec![(REMOVABLE_BOOT_FILE.to_owned(), &*self.program)];
        let beside = |name: &str| format!("{BOOT_FOLDER}/{name}");
        files.extend(
            self.files
                .iter()
                .map(|(name, bytes)| (beside(name), &**bytes)),
        );
        disk::write(image, &files).with_context(|| format!("can't write {}", image.display()))
    }

    /// Writes the files into a directory for TFTP, the program as `name`.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn write_directory(&self, directory: &Path, name: &str) -> Result<()> {
        let files = self.files.iter().map(|(name, bytes)| (&**name, bytes));
        for (name, bytes) in files.chain([(name, &self.program)]) {
            let path = directory.join(name);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)
                    .with_context(|| format!("can't create {}", parent.display()))?;
            }
            fs::write(&path, bytes).with_context(|| format!("can't write {}", path.display()))?;
        }
        ensure!(!self.program.is_empty(), "the EFI program is empty");
        Ok(())
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("can't read {}", file.display()))
}

/// Returns true if a path stays below its start.
fn is_inner(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    !name.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        directory
    }

    #[test]
    fn a_config_includes_the_files_that_it_names() {
        let config = "[[file]]\nname = \"firmware\"\npath = \"fw/td.fd\"\n";
        let home = directory_with(&[
            ("seamark.toml", config),
            ("fw/td.fd", "firmware"),
            ("seamark.efi", "MZ"),
            ("other", "not named"),
        ]);
        let media = Media::of_program(&home.path().join("seamark.efi"))
            .unwrap()
            .with_config(&home.path().join("seamark.toml"))
            .unwrap();
        let names: Vec<_> = media.files.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["fw/td.fd", "seamark.toml"]);
    }

    #[test]
    fn an_invalid_config_is_refused() {
        let home = directory_with(&[("seamark.toml", "colour = 3\n"), ("seamark.efi", "MZ")]);
        let media = Media::of_program(&home.path().join("seamark.efi")).unwrap();
        let error = media.with_config(&home.path().join("seamark.toml"));
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains("seamark.toml:1"), "{error}");
    }

    #[test]
    fn an_empty_file_of_a_td_is_refused_with_its_name() {
        let config = "[[file]]\nname = \"k\"\npath = \"vmlinuz\"\n[[td]]\nname = \"linux\"\nmemory = \"64M\"\n\
                      kernel = \"k\"\n";
        let home = directory_with(&[
            ("seamark.toml", config),
            ("vmlinuz", ""),
            ("seamark.efi", "MZ"),
        ]);
        let media = Media::of_program(&home.path().join("seamark.efi")).unwrap();
        let error = media.with_config(&home.path().join("seamark.toml"));
        let error = format!("{:#}", error.unwrap_err());
        assert!(
            error.ends_with("TD linux: its kernel \"k\" is an empty file"),
            "{error}"
        );
    }

    #[test]
    fn a_path_cannot_leave_the_configs_directory() {
        assert!(is_inner("a/b"));
        assert!(!is_inner("../a") && !is_inner("/a") && !is_inner(""));
    }

    #[test]
    fn the_tftp_directory_holds_the_program_under_its_name() {
        let home = directory_with(&[("p.efi", "MZ")]);
        let media = Media::of_program(&home.path().join("p.efi")).unwrap();
        let tftp = tempfile::tempdir().unwrap();
        media
            .with_config_text("x = 1")
            .write_directory(tftp.path(), "seamark.efi")
            .unwrap();
        assert_eq!(fs::read(tftp.path().join("seamark.efi")).unwrap(), b"MZ");
        assert_eq!(
            fs::read(tftp.path().join("seamark.toml")).unwrap(),
            b"x = 1"
        );
    }
}
