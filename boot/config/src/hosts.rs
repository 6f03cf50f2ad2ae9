//! The names of configuration files that one host alone uses.

use alloc::{format, string::String};

use crate::value::uuid;

/// Returns the name of the configuration file of the host with this identity: the address of the network card that it
/// boots from, the UUID or the serial number of the system. `52:54:00:12:34:56` gives
/// `seamark-52-54-00-12-34-56.toml`. Returns `None` if the identity can't be part of a file's name: it has at most 64
/// letters, digits, `-`, `_` and `.`.
#[must_use]
pub fn host_file_name(identity: &str) -> Option<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let identity = match is_mac(identity) {
        true => identity.replace(':', "-"),
        false => identity.into(),
    };
    let identity = match is_mac(&identity) || uuid(&identity).is_some() {
        true => identity.to_ascii_lowercase(),
        false => identity,
    };
    let safe = !identity.is_empty() && identity.len() <= 64 && identity.chars().all(good);
    safe.then(|| format!("seamark-{identity}.toml"))
}

/// Returns true for pairs of hexadecimal digits with the same separator between them.
fn is_mac(text: &str) -> bool {
    [':', '-'].iter().any(|separator| {
        let mut parts = text.split(*separator);
        text.contains(*separator) && parts.all(|part| part.len() == 2 && is_hex(part))
    })
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_uuids_are_written_in_one_way() {
        for (identity, name) in [
            ("52:54:00:AB:34:56", "seamark-52-54-00-ab-34-56.toml"),
            ("52-54-00-AB-34-56", "seamark-52-54-00-ab-34-56.toml"),
            (
                "00112233-4455-6677-8899-AABBCCDDEEFF",
                "seamark-00112233-4455-6677-8899-aabbccddeeff.toml",
            ),
            ("SN-42", "seamark-SN-42.toml"),
            ("AB", "seamark-AB.toml"),
        ] {
            assert_eq!(host_file_name(identity).as_deref(), Some(name));
        }
    }

    #[test]
    fn an_identity_that_is_a_path_or_has_spaces_gives_no_name() {
        let long = "x".repeat(65);
        for identity in [
            "",
            "../../secret",
            "a/b",
            "a\\b",
            "Not Specified",
            "a:b",
            &long,
        ] {
            assert_eq!(host_file_name(identity), None, "{identity}");
        }
    }
}
