//! The seal: what a signed image vouches for beside itself. It is a section of the image, so the image's signature
//! covers it. It holds the configurations, each under the name of its file, and the SHA-256 of every file that they
//! name.
//!
//! The format is text: `seamark-seal 2`, a line `file HEX PATH` for each file, a line `config LENGTH NAME` and the bytes
//! for each configuration, and `end`.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt::Write;

/// The name of the section.
pub const SECTION: [u8; 8] = *b".seal\0\0\0";

/// A SHA-256.
pub type Digest = [u8; 32];

/// The configurations and files that a signed image vouches for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    /// The configurations, byte for byte: name of the file, and content.
    pub configs: Vec<(String, Vec<u8>)>,
    /// The files: path as in the configuration, and SHA-256.
    pub files: Vec<(String, Digest)>,
}

const FIRST_LINE: &str = "seamark-seal 2";

impl Seal {
    /// Writes the section's content.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = format!("{FIRST_LINE}\n");
        for (path, digest) in &self.files {
            text.push_str("file ");
            for byte in digest {
                // Writing to a string does not fail.
                let _ = write!(text, "{byte:02x}");
            }
            let _ = writeln!(text, " {path}");
        }
        let mut bytes = text.into_bytes();
        for (name, config) in &self.configs {
            bytes.extend(format!("config {} {name}\n", config.len()).into_bytes());
            bytes.extend_from_slice(config);
        }
        bytes.extend(b"end\n");
        bytes
    }

    /// Returns the configuration with this name.
    #[must_use]
    pub fn config(&self, name: &str) -> Option<&[u8]> {
        let found = self.configs.iter().find(|(known, _)| known == name);
        found.map(|(_, config)| &**config)
    }

    /// Reads the section's content. Bytes behind the last line are padding.
    ///
    /// # Errors
    /// The fault that was found.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let (first, mut rest) = line(bytes)?;
        if first != FIRST_LINE {
            return Err(format!("it begins with {first:?}, not {FIRST_LINE:?}"));
        }
        let mut seal = Self::default();
        loop {
            let (text, after) = line(rest)?;
            rest = after;
            match text.split_once(' ') {
                Some(("file", file)) => seal.files.push(parse_file(file)?),
                Some(("config", config)) => {
                    let (length, name) = config.split_once(' ').ok_or_else(|| bad(text))?;
                    let length = length.parse().map_err(|_| bad(text))?;
                    let (config, after) = rest
                        .split_at_checked(length)
                        .ok_or("it ends in a configuration")?;
                    seal.configs.push((name.to_string(), config.to_vec()));
                    rest = after;
                }
                None if text == "end" => return Ok(seal),
                _ => return Err(bad(text)),
            }
        }
    }

    /// Checks a file against its signed SHA-256.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn check(&self, path: &str, digest: &Digest) -> Result<(), String> {
        match self.files.iter().find(|(known, _)| known == path) {
            Some((_, signed)) if signed == digest => Ok(()),
            Some(_) => Err(format!(
                "{path}: refused, because it is not the file that was signed (Secure Boot is on); sign it with \"cargo \
                 xtask image --sign\""
            )),
            None => Err(format!(
                "{path}: refused, because the signed image does not know it (Secure Boot is on)"
            )),
        }
    }
}

fn bad(line: &str) -> String {
    format!("the line {line:?} has no meaning")
}

fn parse_file(text: &str) -> Result<(String, Digest), String> {
    let (hex, path) = text.split_once(' ').ok_or_else(|| bad(text))?;
    let mut digest = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return Err(bad(text));
    }
    for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&hex[at..at + 2], 16).map_err(|_| bad(text))?;
    }
    Ok((path.to_string(), digest))
}

/// Splits the first line off.
fn line(bytes: &[u8]) -> Result<(&str, &[u8]), String> {
    let end = bytes.iter().position(|b| *b == b'\n');
    let end = end.ok_or("it ends in a line")?;
    let text = core::str::from_utf8(&bytes[..end]).map_err(|_| "it is not UTF-8")?;
    Ok((text, &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn seal() -> Seal {
        Seal {
            configs: vec![
                ("seamark.toml".into(), b"[host]\n".to_vec()),
                ("seamark-SN-42.toml".into(), b"end\n".to_vec()),
                ("seamark-SN-43.toml".into(), Vec::new()),
            ],
            files: vec![
                ("vmlinuz".into(), [0x5A; 32]),
                ("a folder/initrd".into(), [7; 32]),
            ],
        }
    }

    #[test]
    fn a_seal_is_read_as_it_was_written() {
        let mut bytes = seal().to_bytes();
        assert_eq!(Seal::parse(&bytes), Ok(seal()));
        bytes.extend([0; 300]);
        assert_eq!(Seal::parse(&bytes), Ok(seal()));
        assert_eq!(seal().config("seamark-SN-42.toml"), Some(&b"end\n"[..]));
        assert_eq!(seal().config("seamark-SN-44.toml"), None);
    }

    #[test]
    fn only_what_was_signed_is_accepted() {
        let seal = seal();
        assert_eq!(seal.check("vmlinuz", &[0x5A; 32]), Ok(()));
        let changed = seal.check("vmlinuz", &[0x5B; 32]).unwrap_err();
        assert!(
            changed.starts_with("vmlinuz: refused, because it is not the file that was signed"),
            "{changed}"
        );
        let unknown = seal.check("other", &[0x5A; 32]).unwrap_err();
        assert!(unknown.starts_with("other: refused"), "{unknown}");
    }

    #[test]
    fn what_is_no_seal_is_an_error() {
        let hex = "0".repeat(64);
        for text in [
            "",
            "seamark-seal 2",
            "seamark-seal 1\nend\n",
            "seamark-seal 2\nconfig 0 a\n",
            "seamark-seal 2\nconfig 9 a\nshort",
            "seamark-seal 2\nconfig 0\nend\n",
            "seamark-seal 2\nconfig -1 a\nend\n",
            "seamark-seal 2\nfile 00 a\nend\n",
            &format!("seamark-seal 2\nfile {hex}\nend\n"),
            &format!("seamark-seal 2\nfile {}é a\nend\n", &hex[..62]),
        ] {
            assert!(Seal::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, at in 0usize..120, byte: u8) {
            let _ = Seal::parse(&bytes);
            let mut good = seal().to_bytes();
            good[at] = byte;
            let _ = Seal::parse(&good);
        }
    }
}
