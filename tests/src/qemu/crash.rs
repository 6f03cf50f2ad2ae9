//! The hypervisor's crash record in a serial transcript, with its addresses resolved to names.
//!
//! A crash prints lines `crash: ...` from `crash: begin` to `crash: end`. Addresses of code are offsets into the image
//! (`image+0x1234`), which are the addresses of the ELF that the image was made from.

use std::fmt::Write;
use std::path::Path;

use addr2line::{Loader, demangle_auto};

const BEGIN: &str = "crash: begin";

/// The last line of a record.
pub const END: &str = "crash: end\n";

const OFFSET: &str = "image+0x";

/// Returns the last complete crash record in a transcript, with its addresses resolved by the symbols of `elf`.
pub fn record(transcript: &str, elf: &Path) -> Option<String> {
    let end = transcript.rfind(END)? + END.len();
    let start = transcript[..end].rfind(BEGIN)?;
    // Without symbols the record is returned unchanged.
    let symbols = Loader::new(elf).ok();
    let lines = transcript[start..end].lines();
    Some(lines.fold(String::new(), |mut out, line| {
        // Writing to a string can't fail.
        let _ = writeln!(out, "{}", explain(line, |at| name(symbols.as_ref()?, at)));
        out
    }))
}

/// Returns the line with `name`'s result for its first offset.
fn explain(line: &str, name: impl Fn(u64) -> Option<String>) -> String {
    let explained = line.split_once(OFFSET).and_then(|(before, rest)| {
        let digits = rest
            .find(|c: char| !c.is_ascii_hexdigit())
            .unwrap_or(rest.len());
        let offset = u64::from_str_radix(&rest[..digits], 16).ok()?;
        // A return address is behind the call, which may be the last instruction of its line.
        let is_return = before.ends_with("called_from=");
        name(offset - u64::from(is_return && offset > 0))
    });
    match explained {
        Some(name) => format!("{line}  ({name})"),
        None => line.to_owned(),
    }
}

fn name(symbols: &Loader, address: u64) -> Option<String> {
    let function = demangle_auto(symbols.find_symbol(address)?.into(), None);
    let place = symbols.find_location(address).ok().flatten();
    Some(
        match place.and_then(|place| Some((place.file?, place.line?))) {
            Some((file, line)) => format!("{function}, {file}:{line}"),
            None => function.into_owned(),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_record_is_found_between_other_lines() {
        let text = "seamark 0.1.0\ncrash: begin version=1\ncrash: cpu=0 rip=image+0x10\ncrash: end\nmore\n";
        let record = record(text, Path::new("/none")).unwrap();
        assert_eq!(
            record,
            "crash: begin version=1\ncrash: cpu=0 rip=image+0x10\ncrash: end\n"
        );
        assert_eq!(
            super::record("crash: begin version=1\n", Path::new("/none")),
            None
        );
    }

    #[test]
    fn return_addresses_are_named_by_the_call_before_them() {
        let name = |at: u64| Some(format!("at {at:#x}"));
        assert_eq!(
            explain("crash: called_from=image+0x2000", name),
            "crash: called_from=image+0x2000  (at 0x1fff)"
        );
        assert_eq!(
            explain("crash: rip=image+0x2000 cr2=0x0", name),
            "crash: rip=image+0x2000 cr2=0x0  (at 0x2000)"
        );
    }
}
