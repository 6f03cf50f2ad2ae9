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

/// A configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConfigFile {
    /// Its name, without folders.
    pub name: String,
    /// Its bytes.
    pub content: Vec<u8>,
}

/// The files that the hypervisor may use.
pub(super) enum Trust {
    /// Secure Boot is off: any.
    Any,
    /// Secure Boot is on: the sealed configurations, and files with the sealed digests.
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

    /// Chooses the configuration: the one that was found if any may be used, and otherwise the sealed one with the first
    /// of this machine's `names` that has one. Also returns a sentence if the one that was found is refused, or if none
    /// is sealed for this machine. A sealed configuration does not have to be found.
    pub fn choose(
        &self,
        names: &[String],
        found: Option<ConfigFile>,
    ) -> (Option<ConfigFile>, Option<String>) {
        let Self::Sealed(seal) = self else {
            return (found, None);
        };
        let sealed = names.iter().find_map(|name| {
            let content = seal.config(name)?.to_vec();
            Some(ConfigFile {
                name: name.clone(),
                content,
            })
        });
        let refused = found.filter(|found| seal.config(&found.name) != Some(&found.content));
        let refused = refused.map(|found| found.name);
        let problem = match (&refused, &sealed) {
            (None, Some(_)) => None,
            (Some(refused), Some(sealed)) => Some(format!(
                "{refused}: refused, because it is not the configuration that was signed (Secure Boot is on); the signed \
                 {} is used",
                sealed.name
            )),
            (_, None) => Some(format!(
                "{}: no configuration was signed for this machine (Secure Boot is on); sign one of: {}",
                refused.as_deref().unwrap_or(config::FILE_NAME),
                names.join(", ")
            )),
        };
        (sealed, problem)
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
    use alloc::string::ToString;

    use super::*;

    fn file(name: &str, content: &str) -> ConfigFile {
        ConfigFile {
            name: name.into(),
            content: content.into(),
        }
    }

    /// A seal with these configurations.
    fn sealed(configs: &[ConfigFile]) -> Trust {
        let configs = configs.iter().cloned();
        Trust::Sealed(Seal {
            configs: configs.map(|c| (c.name, c.content)).collect(),
            files: Vec::new(),
        })
    }

    fn names(all: &[&str]) -> Vec<String> {
        all.iter().map(|name| String::from(*name)).collect()
    }

    #[test]
    fn the_sealed_configuration_takes_the_place_of_another() {
        let common = file("seamark.toml", "[host]\n");
        let trust = sealed(core::slice::from_ref(&common));
        let names = names(&["seamark-1.toml", "seamark.toml"]);
        let used = Some(common.clone());
        assert_eq!(trust.choose(&names, used.clone()), (used.clone(), None));
        assert_eq!(trust.choose(&names, None), (used.clone(), None));
        for other in ["seamark.toml", "seamark-1.toml"] {
            let (chosen, told) = trust.choose(&names, Some(file(other, "# mine\n")));
            assert_eq!(chosen, used);
            let told = told.unwrap();
            assert!(told.starts_with(&format!("{other}: refused")), "{told}");
            assert!(told.ends_with("the signed seamark.toml is used"), "{told}");
        }
        let any = Some(file("seamark-1.toml", "# mine\n"));
        assert_eq!(Trust::Any.choose(&names, any.clone()), (any, None));
    }

    #[test]
    fn each_machine_gets_the_configuration_that_was_sealed_for_it() {
        let (one, two) = (file("seamark-1.toml", "# 1"), file("seamark-2.toml", "# 2"));
        let common = file("seamark.toml", "# all");
        let trust = sealed(&[common.clone(), one.clone(), two.clone()]);
        for (own, used) in [
            ("seamark-1.toml", &one),
            ("seamark-2.toml", &two),
            ("seamark-3.toml", &common),
        ] {
            let names = names(&[own, "seamark.toml"]);
            // The medium has nothing, the same, or the signed configuration of all.
            for found in [None, Some(used.clone()), Some(common.clone())] {
                assert_eq!(trust.choose(&names, found), (Some(used.clone()), None));
            }
            // The bytes that were signed for another machine are no configuration of this one.
            let (chosen, told) = trust.choose(&names, Some(file(own, "# 4")));
            assert_eq!(chosen.as_ref(), Some(used));
            assert!(told.unwrap().starts_with(&format!("{own}: refused")));
        }
    }

    #[test]
    fn a_machine_that_nothing_was_signed_for_gets_a_sentence() {
        let trust = sealed(&[file("seamark-1.toml", "# 1")]);
        let names = names(&["seamark-2.toml", "seamark.toml"]);
        for found in [None, Some(file("seamark-2.toml", "# 2"))] {
            let name = found
                .as_ref()
                .map_or("seamark.toml", |f| &f.name)
                .to_string();
            let (chosen, told) = trust.choose(&names, found);
            assert_eq!(chosen, None);
            let told = told.unwrap();
            assert!(
                told.starts_with(&format!("{name}: no configuration was signed")),
                "{told}"
            );
            assert!(
                told.ends_with("sign one of: seamark-2.toml, seamark.toml"),
                "{told}"
            );
        }
    }

    #[test]
    fn a_file_is_what_was_signed_or_refused() {
        let digest: [u8; 32] = Sha256::digest(b"kernel").into();
        let trust = Trust::Sealed(Seal {
            configs: Vec::new(),
            files: Vec::from([("vmlinuz".into(), digest)]),
        });
        assert_eq!(trust.check("vmlinuz", b"kernel"), Ok(()));
        assert!(trust.check("vmlinuz", b"kernel!").is_err());
        assert!(trust.check("initrd", b"kernel").is_err());
        assert_eq!(Trust::Any.check("initrd", b"kernel"), Ok(()));
    }
}
