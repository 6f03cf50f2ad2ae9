//! The size of each crate in a program, from the ELF's symbols.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSection, ObjectSymbol, SectionKind};
use rustc_demangle::demangle;

/// Parts without a symbol, or with one that names no crate: strings, tables of constants, assembly.
const NAMELESS: &str = "(strings, tables, assembly)";
/// Number of crates that are listed; the rest are added up.
const NAMED: usize = 12;

/// The size of a program's image in bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The sizes by crate, the largest first.
    by_crate: Vec<(String, u64)>,
    /// The sum.
    total: u64,
}

impl Sizes {
    /// Adds up the sizes of the symbols in the image of the program `elf`.
    ///
    /// # Errors
    /// `elf` is no ELF file.
    pub fn of(elf: &[u8]) -> Result<Self> {
        let file = ElfFile64::<LittleEndian>::parse(elf).context("not an ELF64 file")?;
        let sections: Vec<_> = file
            .sections()
            .filter(|section| is_in_image(section.kind()))
            .collect();
        let total = sections.iter().map(|section| section.size()).sum();
        let symbols = file.symbols().filter(|symbol| {
            let section = symbol.section_index();
            sections.iter().any(|s| section == Some(s.index()))
        });
        // Functions with the same code share their address; its first name counts.
        let mut places = BTreeMap::new();
        for symbol in symbols {
            if let (Ok(name), 1..) = (symbol.name(), symbol.size()) {
                places
                    .entry(symbol.address())
                    .or_insert((name, symbol.size()));
            }
        }
        let named = places.into_values().map(|(name, size)| {
            let name = demangle(name).to_string();
            (crate_of(&name).unwrap_or(NAMELESS).to_owned(), size)
        });
        Ok(Self::sum(named, total))
    }

    fn sum(named: impl Iterator<Item = (String, u64)>, total: u64) -> Self {
        let mut sums: BTreeMap<String, u64> = BTreeMap::new();
        for (name, size) in named {
            *sums.entry(name).or_default() += size;
        }
        let known: u64 = sums.values().sum();
        *sums.entry(NAMELESS.into()).or_default() += total.saturating_sub(known);
        let mut by_crate: Vec<_> = sums.into_iter().collect();
        by_crate.sort_by_key(|(_, size)| Reverse(*size));
        Self { by_crate, total }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, bytes: u64| {
            let percent = bytes * 100 / self.total.max(1);
            writeln!(f, "{bytes:>10} {percent:>3} %  {name}")
        };
        let (named, rest) = self.by_crate.split_at(NAMED.min(self.by_crate.len()));
        for (name, bytes) in named {
            line(name, *bytes)?;
        }
        if !rest.is_empty() {
            let bytes = rest.iter().map(|(_, bytes)| bytes).sum();
            line(&format!("({} other crates)", rest.len()), bytes)?;
        }
        Ok(())
    }
}

const fn is_in_image(kind: SectionKind) -> bool {
    matches!(
        kind,
        SectionKind::Text
            | SectionKind::Data
            | SectionKind::ReadOnlyData
            | SectionKind::ReadOnlyDataWithRel
            | SectionKind::ReadOnlyString
    )
}

/// Returns the crate at the start of a demangled name; in an implementation, the type's.
fn crate_of(name: &str) -> Option<&str> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let mut rest = name;
    while let Some(start) = rest.find(is_part) {
        rest = &rest[start..];
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        // Other words are keywords, primitive types and lifetimes.
        if after.starts_with("::") || after.starts_with('[') {
            return Some(word);
        }
        rest = after;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_belongs_to_the_crate_that_it_begins_with() {
        for (name, expected) in [
            ("host::td::end::give_back", Some("host")),
            (
                "<alloc::vec::Vec<T> as core::fmt::Debug>::fmt",
                Some("alloc"),
            ),
            (
                "<&mut dyn log::Log as core::any::Any>::type_id",
                Some("log"),
            ),
            ("core[0a1b]::fmt::write", Some("core")),
            ("memcpy", None),
        ] {
            assert_eq!(crate_of(name), expected, "{name}");
        }
    }

    #[test]
    fn what_has_no_name_makes_up_the_total() {
        let named = [("a", 10), ("b", 20), ("a", 15)].map(|(name, size)| (name.to_owned(), size));
        let sizes = Sizes::sum(named.into_iter(), 100);
        let expected = [(NAMELESS, 55), ("a", 25), ("b", 20)];
        assert_eq!(
            sizes.by_crate,
            expected.map(|(name, size)| (name.to_owned(), size))
        );
    }
}
