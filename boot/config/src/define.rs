//! One TD at a time: its definition as a text, and changes of a key.

use alloc::{format, string::String, vec::Vec};

use toml::de::{DeTable, DeValue};

use super::{
    Td,
    keys::{self, Keyed, Mistakes},
    mend::{mend, mistake},
    network,
    read::{Entry, NO_FILE, Names, Problem, Reader, Wrong, place_of, problems},
};

/// The end of the sentence about a file that a definition names and that is not there.
const NOT_LOADED: &str = "there is no such file (\"file list\" lists them)";

/// Reads the text of one `[[td]]`, with or without that line above it, which may use these names.
///
/// # Errors
/// All mistakes.
pub fn read_td(text: &str, names: &Names<'_>) -> Result<Td, Vec<Problem>> {
    let has_header = text
        .lines()
        .any(|line| line.trim_start().starts_with("[[td]]"));
    let whole = if has_header {
        String::from(text)
    } else {
        format!("[[td]]\n{text}")
    };
    let above = usize::from(!has_header);
    if let Some(syntax) = mistake(&whole) {
        return Err(problems(&whole, Vec::from([syntax]), above));
    }
    let (table, _) = DeTable::parse_recoverable(&whole);
    let root = table.get_ref();
    let mut reader = Reader {
        mended: &mend(&whole),
        mistakes: Mistakes::of(&whole),
    };
    for (name, _) in root.iter().filter(|(name, _)| name.get_ref() != "td") {
        let short: String = name.get_ref().chars().take(40).collect();
        let what =
            format!("{short} does not belong here: a definition is one [[td]] and nothing else");
        reader.mistakes.add(name.span().start, what);
    }
    let mut tds: Vec<Entry<'_, Td>> = reader.entries(root, "td");
    match &*tds {
        [td] => {
            for Wrong { key, what, .. } in td.wrong_references(names) {
                let at = place_of(td.table, key).unwrap_or(0);
                reader.mistakes.add(at, what.replace(NO_FILE, NOT_LOADED));
            }
            if let Some(what) = network::taken(&td.read, core::iter::empty()) {
                let at = place_of(td.table, "net").unwrap_or(0);
                reader.mistakes.add(at, what);
            }
        }
        _ => {
            let what = format!("there are {} [[td]]; a definition is one", tds.len());
            reader.mistakes.add(0, what);
        }
    }
    match tds.pop() {
        Some(td) if reader.mistakes.found.is_empty() => Ok(td.read),
        _ => Err(problems(&whole, reader.mistakes.found, above)),
    }
}

impl Td {
    /// Returns the TD with another value for a key: `value` as TOML, or as a string without its quotes, or `default`.
    ///
    /// # Errors
    /// A sentence: there is no such key, or the value is not one that it takes.
    pub fn with(&self, key: &str, value: &str) -> Result<Self, String> {
        let Some(found) = Self::key(key) else {
            return Err(keys::unknown::<Self>(key));
        };
        if value == "default" {
            return if found.required {
                Err(format!("{key} has no default; it must be {}", found.form))
            } else {
                Ok(self.without(key))
            };
        }
        let mut changed = self.clone();
        let as_toml = DeValue::parse(value).ok();
        let set = as_toml.and_then(|toml| (found.set)(&mut changed, toml.get_ref()));
        let as_string = DeValue::String(value.into());
        if set
            .or_else(|| (found.set)(&mut changed, &as_string))
            .is_some()
        {
            Ok(changed)
        } else {
            let short: String = value.chars().take(40).collect();
            Err(format!("{key} is {short}; it must be {}", found.form))
        }
    }

    /// Returns the TD with the default for a key.
    fn without(&self, key: &str) -> Self {
        let mut td = Self::blank();
        for other in Self::KEYS.iter().filter(|other| other.name != key) {
            if let Some(text) = (other.show)(self)
                && let Ok(value) = DeValue::parse(&text)
            {
                // A value that was shown is one that the key takes.
                let _ = (other.set)(&mut td, value.get_ref());
            }
        }
        td
    }

    /// Returns what is wrong with the files and networks that the TD names after a change of `key`, and with its
    /// addresses, in sentences.
    #[must_use]
    pub fn wrong_names(&self, key: &str, names: &Names<'_>) -> Vec<String> {
        let wrong = self.wrong_references(names).into_iter();
        // A file of another key that is not there is no mistake of this one.
        let of_key = wrong.filter(|wrong| wrong.key == key || !wrong.lacks.is_empty());
        let of_key = of_key.map(|wrong| wrong.what.replace(NO_FILE, NOT_LOADED));
        let taken = network::taken(self, core::iter::empty()).filter(|_| key == "net");
        of_key.chain(taken).collect()
    }

    /// Returns the names of the keys in which two TDs differ.
    pub fn differs_in(&self, other: &Self) -> impl Iterator<Item = &'static str> {
        let keys = Self::KEYS.iter();
        keys.filter(|key| (key.show)(self) != (key.show)(other))
            .map(|key| key.name)
    }

    /// Returns the names of the keys.
    pub fn keys() -> impl Iterator<Item = &'static str> {
        Self::KEYS.iter().map(|key| key.name)
    }

    /// Warns of a value that is allowed and hardly meant, on a machine with `cpus` CPUs.
    #[must_use]
    pub fn warning(&self, cpus: usize) -> Option<String> {
        (usize::from(self.vcpus) > cpus).then(|| {
            format!(
                "TD {}: vcpus is {}, and the machine has {cpus} CPUs: more vCPUs than CPUs only wait for each other",
                self.name, self.vcpus
            )
        })
    }
}
