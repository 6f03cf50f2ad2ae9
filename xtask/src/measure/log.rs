//! The event log that firmware leaves for the system (ACPI's CCEL): its entries, and their comparison with a prediction.
//!
//! Linux shows the log as `/sys/firmware/acpi/tables/data/CCEL`.
//!
//! Source: TCG PC Client Platform Firmware Profile 1.06, section 10.2 (the format); Guest-Host-Communication Interface for
//! Intel TDX 1.5, section 4.3.3.

use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use seam::abi::Measurement;

use super::event::{Event, Kind, REGISTERS, Register};

/// TPM_ALG_SHA384.
const SHA384: u16 = 12;
/// Bytes of the first entry's digest, which is of the older format.
const OLD_DIGEST: usize = 20;

/// Reads a log. What follows the last entry is ignored: firmware fills the rest of the memory with ones.
///
/// # Errors
/// The log is cut off, or has other digests than SHA-384.
pub fn parse(log: &[u8]) -> Result<Vec<Event>> {
    let mut rest = Reader(log);
    let first = "the log has no first entry";
    let (register, kind) = (rest.word().context(first)?, rest.word().context(first)?);
    ensure!(
        register == 1 && Kind(kind) == Kind::NO_ACTION,
        "the file does not begin as an event log"
    );
    rest.take(OLD_DIGEST).context(first)?;
    let bytes = rest.word().context(first)?;
    rest.take(bytes as usize).context(first)?;
    let mut events = Vec::new();
    while let Some(register) = rest.word().filter(|word| *word != 0 && *word != u32::MAX) {
        let number = events.len() + 2;
        let event = rest.event(register);
        events.push(event.with_context(|| format!("entry {number} of the log"))?);
    }
    Ok(events)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn word(&mut self) -> Option<u32> {
        let bytes = self.take(4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    /// Reads an entry behind its register, which counts from 1.
    fn event(&mut self, register: u32) -> Result<Event> {
        const CUT: &str = "it is cut off";
        let kind = Kind(self.word().context(CUT)?);
        let register = Register::of(register as usize - 1);
        let register = register.context("it is for a register that there is not")?;
        let count = self.word().context(CUT)?;
        let algorithm = self.take(2).context(CUT)?;
        ensure!(
            count == 1 && algorithm == SHA384.to_le_bytes(),
            "it has another digest than SHA-384"
        );
        let digest: Measurement = self.take(48).context(CUT)?.try_into()?;
        let bytes = self.word().context(CUT)?;
        let data = self.take(bytes as usize).context(CUT)?;
        Ok(Event {
            register,
            kind,
            digest,
            name: description(kind, data),
        })
    }
}

/// Returns a description of an entry from its data.
fn description(kind: Kind, data: &[u8]) -> String {
    match kind {
        Kind::VARIABLE_BOOT | Kind::VARIABLE_CONFIG | Kind::VARIABLE_AUTHORITY => {
            // A GUID, two lengths in eight bytes each, the name in UTF-16.
            let letters = data.get(16).copied().map_or(0, usize::from);
            text(data.get(32..32 + 2 * letters).unwrap_or_default())
        }
        Kind::TAG => text(data.get(8..).unwrap_or_default()),
        Kind::APPLICATION => device_path(data.get(32..).unwrap_or_default()),
        Kind::GPT => "partitions".into(),
        Kind::SEPARATOR => "separator".into(),
        Kind::HANDOFF_TABLES | Kind::FIRMWARE_BLOB => {
            let length = usize::from(data.first().copied().unwrap_or(0));
            text(data.get(1..1 + length).unwrap_or_default())
        }
        _ => text(data),
    }
}

/// Returns the file of a device path, if it names one.
fn device_path(path: &[u8]) -> String {
    const MEDIA: u8 = 4;
    const FILE: u8 = 4;
    let mut rest = path;
    while let [kind, sub, low, high, ..] = *rest {
        let length = usize::from(u16::from_le_bytes([low, high]));
        let Some((node, next)) = rest.split_at_checked(length.max(4)) else {
            break;
        };
        if (kind, sub) == (MEDIA, FILE) {
            return text(&node[4..]);
        }
        rest = next;
    }
    "a program from memory".into()
}

/// Returns the text in some bytes: UTF-16 if every other byte is zero, or ASCII. The guest has written them: what could
/// change a terminal is shown as a dot.
fn text(bytes: &[u8]) -> String {
    let (pairs, _) = bytes.as_chunks::<2>();
    let is_wide = !pairs.is_empty() && pairs.iter().all(|pair| pair[1] == 0);
    let letters: Vec<u8> = if is_wide {
        pairs.iter().map(|pair| pair[0]).collect()
    } else {
        bytes.to_vec()
    };
    let letters = letters.iter().take_while(|letter| **letter != 0);
    let shown = |letter: &u8| match letter {
        b' '..=b'~' => char::from(*letter),
        _ => '.',
    };
    letters.map(shown).collect()
}

/// Compares a prediction with a log, entry by entry in each register. Returns a line for each register, with the first
/// entry that differs; `None` if all are equal. Entries of the operating system's own register are not predicted.
pub fn difference(predicted: &[Event], logged: &[Event]) -> Option<String> {
    let mut lines = String::new();
    for register in (0..REGISTERS - 1).filter_map(Register::of) {
        let of = |events: &[Event]| {
            let events = events.iter().filter(|event| event.kind != Kind::NO_ACTION);
            let events = events.filter(|event| event.register == register);
            events.cloned().collect::<Vec<_>>()
        };
        let (predicted, logged) = (of(predicted), of(logged));
        let differs = |at: &usize| match (predicted.get(*at), logged.get(*at)) {
            (Some(a), Some(b)) => !a.equals(b),
            _ => true,
        };
        let longest = predicted.len().max(logged.len());
        if let Some(at) = (0..longest).find(differs) {
            let show = |event: Option<&Event>| {
                event.map_or_else(|| "nothing more".to_owned(), ToString::to_string)
            };
            // Writing to a string does not fail.
            let _ = writeln!(
                lines,
                "{register}, entry {}:\n  predicted {}\n  log       {}",
                at + 1,
                show(predicted.get(at)),
                show(logged.get(at))
            );
        }
    }
    (!lines.is_empty()).then_some(lines)
}
