//! Secure Boot: what the image's signature covers, and nothing else, is used.

use alloc::{format, string::String, vec::Vec};

use config::seal::{SECTION, Seal};
use sha2::{Digest, Sha256};
use uefi::{
    cstr16,
    runtime::{self, VariableVendor},
};

use super::Error;
use crate::pe;

/// The files that the hypervisor may use.
pub(super) enum Trust {
    /// Secure Boot is off: any.
    Any,
    /// Secure Boot is on: the sealed configuration, and files with the sealed digests.
    Sealed(Seal),
}

impl Trust {
    /// Finds out whether Secure Boot is on, and reads the seal of the image, whose headers are at the start of `image`.
    ///
    /// # Errors
    /// [`Error::Seal`] if Secure Boot is on and the image has no usable seal.
    pub fn of_image(image: &[u8]) -> Result<Self, Error> {
        if !is_on() {
            return Ok(Self::Any);
        }
        let headers = image.get(..4096).unwrap_or(image);
        let section = pe::sections(headers).and_then(|mut all| all.find(|s| s.name == SECTION));
        let section = section.ok_or_else(|| Error::Seal("there is none".into()))?;
        let bytes = image.get(section.start as usize..(section.start + section.len) as usize);
        let bytes = bytes.ok_or_else(|| Error::Seal("it is outside the image".into()))?;
        Seal::parse(bytes).map(Self::Sealed).map_err(Error::Seal)
    }

    /// Returns true if Secure Boot is on.
    pub fn is_secure(&self) -> bool {
        matches!(self, Self::Sealed(_))
    }

    /// Checks the content of a file.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn check(&self, path: &str, content: &[u8]) -> Result<(), String> {
        match self {
            Self::Any => Ok(()),
            Self::Sealed(seal) => seal.check(path, &Sha256::digest(content).into()),
        }
    }

    /// Replaces the configuration that was found, in the file called `name`, by the sealed one. Returns a sentence if
    /// they differ. A configuration that is missing does not.
    pub fn config(&self, name: Option<&str>, found: &mut Option<Vec<u8>>) -> Option<String> {
        let Self::Sealed(seal) = self else {
            return None;
        };
        let other = found.as_ref().is_some_and(|found| *found != seal.config);
        *found = Some(seal.config.clone());
        other.then(|| {
            format!(
                "{}: refused, because it is not the configuration that was signed (Secure Boot is on); the signed one is \
                 used",
                name.unwrap_or(config::FILE_NAME)
            )
        })
    }
}

/// Returns the firmware's variable SecureBoot. A firmware without it has no Secure Boot.
fn is_on() -> bool {
    let mut value = [0; 1];
    let name = cstr16!("SecureBoot");
    runtime::get_variable(name, &VariableVendor::GLOBAL_VARIABLE, &mut value)
        .is_ok_and(|(value, _)| *value == [1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sealed_configuration_takes_the_place_of_another() {
        let seal = Seal {
            config: b"[host]\n".to_vec(),
            files: Vec::new(),
        };
        let trust = Trust::Sealed(seal.clone());
        let mut same = Some(seal.config.clone());
        assert_eq!(trust.config(Some(config::FILE_NAME), &mut same), None);
        let mut other = Some(b"[host]\non_crash = \"reboot\"\n".to_vec());
        let told = trust.config(Some("seamark-1.toml"), &mut other).unwrap();
        assert!(told.starts_with("seamark-1.toml: refused"), "{told}");
        assert_eq!(other, Some(seal.config.clone()));
        let mut none = None;
        assert_eq!(trust.config(None, &mut none), None);
        assert_eq!(none, Some(seal.config));
        let mut any = other;
        assert_eq!(Trust::Any.config(None, &mut any), None);
    }

    #[test]
    fn a_file_is_what_was_signed_or_refused() {
        let digest: [u8; 32] = Sha256::digest(b"kernel").into();
        let trust = Trust::Sealed(Seal {
            config: Vec::new(),
            files: Vec::from([("vmlinuz".into(), digest)]),
        });
        assert_eq!(trust.check("vmlinuz", b"kernel"), Ok(()));
        assert!(trust.check("vmlinuz", b"kernel!").is_err());
        assert!(trust.check("initrd", b"kernel").is_err());
        assert_eq!(Trust::Any.check("initrd", b"kernel"), Ok(()));
    }
}
