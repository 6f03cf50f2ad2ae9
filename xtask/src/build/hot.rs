//! Check of the ROM's linker script, which places hot code together: each of its patterns should match a symbol.

use anyhow::{Context, Result};
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSection, ObjectSymbol};

/// Prefixes of the section names by which the script finds symbols; the symbol follows.
const PREFIXES: [&str; 2] = [".text.", ".bss."];
/// Suffix of the sections that the script creates.
const MADE: &str = ".hot";

/// Returns the patterns of `script` that match no symbol in the sections that it creates in the program `elf`: such
/// functions were renamed or are now inlined. Patterns of constants, which have no names, are not checked.
///
/// # Errors
/// `elf` is no ELF file.
pub fn unmatched<'s>(script: &'s str, elf: &[u8]) -> Result<Vec<&'s str>> {
    let file = ElfFile64::<LittleEndian>::parse(elf).context("not an ELF64 file")?;
    let made: Vec<_> = file
        .sections()
        .filter(|section| section.name().is_ok_and(|name| name.ends_with(MADE)))
        .map(|section| section.index())
        .collect();
    let symbols: Vec<_> = file
        .symbols()
        .filter(|symbol| symbol.section_index().is_some_and(|at| made.contains(&at)))
        .filter_map(|symbol| symbol.name().ok())
        .collect();
    Ok(patterns(script)
        .filter(|pattern| !symbols.iter().any(|symbol| matches(pattern, symbol)))
        .collect())
}

/// Returns the part after the prefix in each of the script's `*(.text.PATTERN …)`.
fn patterns(script: &str) -> impl Iterator<Item = &str> {
    script
        .lines()
        .filter_map(|line| line.trim().strip_prefix("*(")?.strip_suffix(')'))
        .flat_map(str::split_whitespace)
        .filter_map(|name| PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)))
}

/// Returns true if `name` matches a linker pattern, in which `*` stands for any text and `?` for one character.
fn matches(pattern: &str, name: &str) -> bool {
    match (pattern.as_bytes(), name.as_bytes()) {
        ([], rest) => rest.is_empty(),
        ([b'*', ..], _) => {
            let mut rests = name.char_indices().map(|(at, _)| &name[at..]);
            let rest = &pattern[1..];
            rest.is_empty() || rests.any(|name| matches(rest, name))
        }
        ([wanted, ..], [found, ..]) if *wanted == b'?' || wanted == found => {
            matches(&pattern[1..], &name[1..])
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_the_script_s_without_its_constants() {
        let script = "/* *(.text.no) is not */\n  .text.hot : {\n *(.text.*3run*)\n *(.rodata.*3run*)\n\
                      *(.text.memcpy .text.memset)\n *(.bss.*WORLD*)\n}";
        let found: Vec<_> = patterns(script).collect();
        assert_eq!(found, ["*3run*", "memcpy", "memset", "*WORLD*"]);
    }

    #[test]
    fn a_star_stands_for_anything() {
        assert!(matches("*3lib*3run*", "_ZN3lib2td3run17h0E"));
        assert!(matches("memset", "memset"));
        assert!(!matches("memset", "memset2"));
        assert!(!matches("*3run*3lib*", "_ZN3lib2td3run17h0E"));
        assert!(matches("*lib..t?*", "_ZN8_$lib..td"));
        assert!(!matches("*lib..td*", "_ZN8_$lib__td"));
    }
}
