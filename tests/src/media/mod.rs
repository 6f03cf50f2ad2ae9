//! The media that a machine boots from: the hypervisor, its configurations and the files that these name, on a disk or in
//! a directory for a server.

mod disk;
mod dots;
mod seal;

pub use disk::{Layout, exists as exists_on_disk, read as read_from_disk, root as root_of_disk};

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
    /// Names and contents of the configurations, which are in the program's folder.
    configs: Vec<(String, Vec<u8>)>,
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
            ..Self::default()
        })
    }

    /// Adds a configuration unchecked.
    #[must_use]
    pub fn with_config_text(mut self, text: &str) -> Self {
        self.configs
            .push((config::FILE_NAME.to_owned(), text.into()));
        self
    }

    /// Adds the configuration of the host with this MAC address, UUID or serial number, unchecked.
    ///
    /// # Errors
    /// The identity can't be part of a file's name.
    pub fn with_host_config_text(mut self, identity: &str, text: &str) -> Result<Self> {
        self.configs.push((host_file_name(identity)?, text.into()));
        Ok(self)
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
    /// The hypervisor would not accept the configuration, a file can't be read, or there is another with its name.
    pub fn with_config(self, file: &Path) -> Result<Self> {
        self.with_config_as(config::FILE_NAME.to_owned(), file)
    }

    /// Adds the configuration of the host with this MAC address, UUID or serial number, like [`Media::with_config`].
    ///
    /// # Errors
    /// The identity can't be part of a file's name, or as [`Media::with_config`].
    pub fn with_host_config(self, identity: &str, file: &Path) -> Result<Self> {
        self.with_config_as(host_file_name(identity)?, file)
    }

    fn with_config_as(mut self, name: String, file: &Path) -> Result<Self> {
        ensure!(
            !self.configs.iter().any(|(known, _)| *known == name),
            "{}: there is another configuration for {name}",
            file.display()
        );
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
            match self.files.iter().find(|(path, _)| *path == named.path) {
                Some((_, known)) => ensure!(
                    *known == bytes,
                    "{} names {}, and another configuration names another file of this name: rename one",
                    file.display(),
                    named.path
                ),
                None => self.files.push((named.path.clone(), bytes)),
            }
        }
        let length = |name: &str| {
            let found = lengths.iter().find(|(known, _)| *known == name);
            found.map(|(_, length)| *length)
        };
        if let Some(empty) = config.empty_file(length) {
            bail!("{}: {empty}", file.display());
        }
        self.configs.push((name, text));
        Ok(self)
    }

    /// Seals the program with the configurations and the SHA-256 of every other file, and signs it for Secure Boot.
    ///
    /// # Errors
    /// There is no configuration, the program can't be sealed, or sbsign refuses the key or the certificate.
    pub fn signed(mut self, key: &Path, certificate: &Path) -> Result<Self> {
        ensure!(!self.configs.is_empty(), "there is no configuration");
        seal::add(&mut self.program, &seal::seal(&self.configs, &self.files))?;
        self.program = seal::sign(&self.program, key, certificate)?;
        Ok(self)
    }

    /// Replaces the content of the configuration or file called `name`.
    ///
    /// # Errors
    /// There is no such file.
    pub fn with_replaced(mut self, name: &str, bytes: &[u8]) -> Result<Self> {
        let mut all = self.configs.iter_mut().chain(&mut self.files);
        let file = all.find(|(known, _)| known == name);
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
        files.extend(self.others().map(|(name, bytes)| (beside(name), bytes)));
        disk::write(image, &files).with_context(|| format!("can't write {}", image.display()))
    }

    /// Writes the files into a directory for a TFTP or HTTP server, the program as `name`.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn write_directory(&self, directory: &Path, name: &str) -> Result<()> {
        for (name, bytes) in self.others().chain([(name, &*self.program)]) {
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

    /// Returns the names and contents of everything but the program.
    fn others(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let all = self.configs.iter().chain(&self.files);
        all.map(|(name, bytes)| (&**name, &**bytes))
    }
}

fn host_file_name(identity: &str) -> Result<String> {
    config::host_file_name(identity).with_context(|| {
        format!(
            "{identity:?} can't name a host: write its MAC address, UUID or serial number, which has at most 64 letters, \
             digits, -, _ and ."
        )
    })
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
        let names: Vec<_> = media.others().map(|(name, _)| name).collect();
        assert_eq!(names, ["seamark.toml", "fw/td.fd"]);
    }

    #[test]
    fn hosts_have_configurations_of_their_own_and_share_files() {
        let config = "[[file]]\nname = \"firmware\"\npath = \"td.fd\"\n";
        let home = directory_with(&[
            ("all.toml", "[host]\n"),
            ("1.toml", config),
            ("2.toml", config),
            ("other/3.toml", config),
            ("td.fd", "firmware"),
            ("other/td.fd", "other firmware"),
            ("seamark.efi", "MZ"),
        ]);
        let file = |name: &str| home.path().join(name);
        let media = Media::of_program(&file("seamark.efi")).unwrap();
        let media = media
            .with_config(&file("all.toml"))
            .and_then(|media| media.with_host_config("52:54:00:00:00:0A", &file("1.toml")))
            .and_then(|media| media.with_host_config("SN-2", &file("2.toml")))
            .unwrap();
        let names: Vec<_> = media.others().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            [
                "seamark.toml",
                "seamark-52-54-00-00-00-0a.toml",
                "seamark-SN-2.toml",
                "td.fd"
            ]
        );
        for (identity, config, words) in [
            ("SN-3", "other/3.toml", "another file of this name"),
            (
                "SN-2",
                "2.toml",
                "another configuration for seamark-SN-2.toml",
            ),
            ("a b", "1.toml", "\"a b\" can't name a host"),
        ] {
            let error = media.clone().with_host_config(identity, &file(config));
            let error = error.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
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
