//! A configuration of TDs with the files that it names.

use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, bail};

use super::read;
use crate::build;

/// A configuration, and the folder that its paths start from.
pub struct Config {
    pub parsed: config::Config,
    home: PathBuf,
}

impl Config {
    pub fn read(file: &Path) -> Result<Self> {
        let parsed = config::parse(&read(file)?)
            .map_err(Error::msg)
            .with_context(|| format!("in {}", file.display()))?;
        let home = file.parent().unwrap_or(Path::new(".")).to_owned();
        Ok(Self { parsed, home })
    }

    /// Returns the TD of this name, or the only one, that has UEFI firmware.
    pub fn uefi_td(&self, name: Option<&str>) -> Result<&config::Td> {
        let tds = self.parsed.td.iter().filter(|td| td.firmware.is_some());
        let tds: Vec<_> = tds
            .filter(|td| name.is_none_or(|name| td.name == name))
            .collect();
        let [td] = tds[..] else {
            bail!(
                "{} TDs with firmware{}: choose one with --td",
                tds.len(),
                name.map(|name| format!(" are called {name}"))
                    .unwrap_or_default()
            )
        };
        Ok(td)
    }

    /// Returns the path of a `[[file]]`.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        // The parser ensures that there is one.
        let mut files = self.parsed.file.iter().filter(|file| file.name == name);
        let file = files.next().context("no [[file]] has that name")?;
        Ok(self.home.join(&file.path))
    }

    /// Returns the image that a TD starts from.
    pub fn firmware(&self, td: &config::Td) -> Result<PathBuf> {
        match td.image_file() {
            Some(image) => self.path(image),
            None => Ok(build::td_firmware_image()),
        }
    }
}
