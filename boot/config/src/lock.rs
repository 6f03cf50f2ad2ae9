//! `host.console_lock`: the hash of the console's password.
//!
//! It is written as `$argon2id$v=19$m=4096,t=8,p=1$SALT$HASH`, the PHC string format, in which other programs write it
//! too. The parameters are bounded: the hypervisor computes the hash in memory that it sets aside at boot, and in a time
//! in which nobody misses a CPU.

use alloc::{format, string::String, vec, vec::Vec};
use core::{fmt, ops::RangeInclusive};

use argon2::{Algorithm, Argon2, Block, Params, Version};

/// Memory in KiB.
pub const MEMORY: RangeInclusive<u32> = 8..=4096;
/// Passes over the memory.
pub const PASSES: RangeInclusive<u32> = 1..=64;
/// Maximum of the memory in KiB times the passes.
pub const WORK: u32 = 65_536;
/// The values that the key takes.
pub const FORM: &str = "a hash that \"cargo xtask password\" makes, $argon2id$v=19$m=4096,t=8,p=1$SALT$HASH, with m up \
                        to 4096, t up to 64 and m times t up to 65536";

/// Length of the salt in bytes.
const SALT: RangeInclusive<usize> = 8..=64;
/// Length of the hash in bytes.
const HASH: usize = 32;

/// The Argon2id hash of a password.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash {
    memory_kib: u32,
    passes: u32,
    salt: Vec<u8>,
    hash: [u8; HASH],
}

impl PasswordHash {
    /// Hashes a password. `memory_kib` and `passes` are within their bounds.
    ///
    /// # Errors
    /// A sentence that says which value is not within its bounds.
    pub fn new(password: &[u8], salt: &[u8], memory_kib: u32, passes: u32) -> Result<Self, String> {
        let mut made = Self {
            memory_kib,
            passes,
            salt: salt.into(),
            hash: [0; HASH],
        };
        made.check()?;
        let mut blocks = vec![Block::new(); made.blocks()];
        made.hash = made
            .compute(password, &mut blocks)
            .ok_or("the hash can't be computed")?;
        Ok(made)
    }

    /// Parses the string format.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let malformed = || {
            String::from(
                "console_lock must be a hash such as $argon2id$v=19$m=4096,t=8,p=1$SALT$HASH; \"cargo xtask password\" \
                 makes it",
            )
        };
        let parts: Vec<&str> = text.split('$').collect();
        let ["", "argon2id", "v=19", parameters, salt, hash] = parts[..] else {
            return Err(malformed());
        };
        let parameters: Vec<&str> = parameters.split(',').collect();
        let [memory, passes, "p=1"] = parameters[..] else {
            return Err(malformed());
        };
        let number = |text: &str, key| text.strip_prefix(key)?.parse().ok();
        let parsed = Self {
            memory_kib: number(memory, "m=").ok_or_else(malformed)?,
            passes: number(passes, "t=").ok_or_else(malformed)?,
            salt: decode(salt).ok_or_else(malformed)?,
            hash: decode(hash)
                .and_then(|hash| hash.try_into().ok())
                .ok_or_else(malformed)?,
        };
        parsed.check()?;
        Ok(parsed)
    }

    /// Returns a hash that no password has.
    pub(crate) const fn of_nothing() -> Self {
        Self {
            memory_kib: *MEMORY.start(),
            passes: *PASSES.start(),
            salt: Vec::new(),
            hash: [0; HASH],
        }
    }

    fn check(&self) -> Result<(), String> {
        let (memory, passes) = (self.memory_kib, self.passes);
        if !MEMORY.contains(&memory) || !PASSES.contains(&passes) || memory * passes > WORK {
            return Err(format!(
                "console_lock has m={memory},t={passes}; m must be from {} to {} KiB, t from {} to {}, and their \
                 product at most {WORK}",
                MEMORY.start(),
                MEMORY.end(),
                PASSES.start(),
                PASSES.end()
            ));
        }
        if !SALT.contains(&self.salt.len()) {
            return Err(format!(
                "console_lock has a salt of {} bytes; it must have from {} to {}",
                self.salt.len(),
                SALT.start(),
                SALT.end()
            ));
        }
        Ok(())
    }

    /// Returns the number of blocks of memory that [`Self::is_of`] needs.
    #[must_use]
    pub const fn blocks(&self) -> usize {
        self.memory_kib as usize
    }

    /// Returns whether the hash is that of `password`; `None` if there are fewer than [`Self::blocks`]. The time does
    /// not depend on where the hashes differ.
    #[must_use]
    pub fn is_of(&self, password: &[u8], blocks: &mut [Block]) -> Option<bool> {
        if self.salt.is_empty() {
            return Some(false);
        }
        let hash = self.compute(password, blocks)?;
        let pairs = hash.iter().zip(&self.hash);
        let differing = pairs.fold(0, |sum, (a, b)| core::hint::black_box(sum | (a ^ b)));
        Some(differing == 0)
    }

    fn compute(&self, password: &[u8], blocks: &mut [Block]) -> Option<[u8; HASH]> {
        let params = Params::new(self.memory_kib, self.passes, 1, Some(HASH)).ok()?;
        let mut hash = [0; HASH];
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into_with_memory(password, &self.salt, &mut hash, blocks)
            .ok()?;
        Some(hash)
    }
}

/// Makes the choice of instructions with which hashes are computed. Later calls do not change it.
pub fn choose_instructions() {
    let _ = Argon2::default();
}

/// The salt and the hash are left out.
impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordHash")
            .field("memory_kib", &self.memory_kib)
            .field("passes", &self.passes)
            .finish_non_exhaustive()
    }
}

/// The string format.
impl fmt::Display for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "$argon2id$v=19$m={},t={},p=1${}${}",
            self.memory_kib,
            self.passes,
            encode(&self.salt),
            encode(&self.hash)
        )
    }
}

/// The digits of base64 (RFC 4648, section 4), which the format uses without padding.
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let number = part
            .iter()
            .fold(0u32, |sum, byte| sum << 8 | u32::from(*byte));
        let number = number << (8 * (3 - part.len()));
        for digit in 0..=part.len() {
            text.push(DIGITS[(number >> (18 - 6 * digit) & 63) as usize].into());
        }
    }
    text
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for part in text.as_bytes().chunks(4) {
        let mut number = 0u32;
        for digit in part {
            let value = DIGITS.iter().position(|other| other == digit)?;
            number = number << 6 | value as u32;
        }
        number <<= 6 * (4 - part.len());
        let count = part.len() * 6 / 8;
        let all = number.to_be_bytes();
        // A digit too many, or bits beyond the last byte, are another spelling of the same bytes.
        if part.len() == 1 || all[1 + count..].iter().any(|byte| *byte != 0) {
            return None;
        }
        bytes.extend(&all[1..=count]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by the `argon2` program of Debian 12: `printf password | argon2 somesalt -id -t 3 -k 4096 -p 1 -l 32 -e`.
    const KNOWN: &str =
        "$argon2id$v=19$m=4096,t=3,p=1$c29tZXNhbHQ$qLml5cbqFAO6YxVHhrSBHP0UWdxrIxkNcM8aMX3blzU";

    fn check(hash: &PasswordHash, password: &str) -> Option<bool> {
        hash.is_of(password.as_bytes(), &mut vec![Block::new(); hash.blocks()])
    }

    #[test]
    fn a_hash_of_another_program_is_understood() {
        let hash = PasswordHash::parse(KNOWN).unwrap();
        assert_eq!(hash.to_string(), KNOWN);
        assert_eq!(check(&hash, "password"), Some(true));
        assert_eq!(check(&hash, "Password"), Some(false));
        assert_eq!(hash.is_of(b"password", &mut []), None);
    }

    #[test]
    fn what_is_hashed_is_recognised_and_not_shown() {
        let hash = PasswordHash::new(b"secret", b"saltsalt", 8, 1).unwrap();
        let again = PasswordHash::parse(&hash.to_string()).unwrap();
        assert_eq!(check(&again, "secret"), Some(true));
        assert_eq!(check(&again, ""), Some(false));
        let shown = format!("{again:?}");
        assert!(!shown.contains("salt"), "{shown}");
    }

    #[test]
    fn parameters_have_bounds() {
        for (memory, passes) in [(7, 1), (4097, 1), (8, 0), (8, 65), (4096, 17)] {
            let error = PasswordHash::new(b"x", b"saltsalt", memory, passes).unwrap_err();
            assert!(error.contains("must be from"), "{error}");
        }
        assert!(
            PasswordHash::new(b"x", b"short", 8, 1)
                .unwrap_err()
                .contains("salt")
        );
    }

    #[test]
    fn a_lock_that_is_not_understood_stays_locked() {
        let read = crate::read(b"[host]\nconsole_lock = \"secret\"\n");
        let hash = read.config.host.console_lock.expect("a lock");
        for password in ["", "secret"] {
            assert_eq!(check(&hash, password), Some(false));
        }
        // Somebody may have written his password here.
        let [problem] = &read.problems[..] else {
            panic!("one problem: {:?}", read.problems)
        };
        assert!(!alloc::format!("{problem}").contains("secret"), "{problem}");
    }

    #[test]
    fn a_malformed_hash_is_refused() {
        let good = PasswordHash::new(b"x", b"saltsalt", 8, 1)
            .unwrap()
            .to_string();
        assert!(PasswordHash::parse(&good).is_ok());
        for (from, to) in [
            ("argon2id", "argon2i"),
            ("v=19", "v=16"),
            ("p=1", "p=2"),
            ("m=8", "m=x"),
            ("$", "#"),
            ("c2FsdHNhbHQ", "c2FsdHNhbH"),
            ("c2FsdHNhbHQ", "c2Fsd!NhbHQ"),
        ] {
            let wrong = good.replace(from, to);
            assert!(PasswordHash::parse(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg"),
            (b"fo", "Zm8"),
            (b"foo", "Zm9v"),
            (b"foob", "Zm9vYg"),
            (b"\xff\xfe\xfd", "//79"),
        ] {
            assert_eq!(encode(bytes), text);
            assert_eq!(decode(text).as_deref(), Some(bytes));
        }
        for wrong in ["Z", "Zh", "Zm9", "Zm9vY=", "Zm9v Y"] {
            assert_eq!(decode(wrong), None, "{wrong}");
        }
    }
}
