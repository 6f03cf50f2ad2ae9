//! A report, put together from the pieces that were found after a reset.

use alloc::{
    collections::BTreeMap,
    string::{String, ToString},
    vec,
    vec::Vec,
};

use crate::{
    piece::{Identity, Piece},
    text::MAX_TEXT,
};

/// A place that keeps reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Store {
    /// Variables of the UEFI firmware.
    Variables,
    /// The error records that ACPI's ERST describes.
    Erst,
    /// Memory that the reset left alone.
    Memory,
}

impl Store {
    /// Returns the store's name for people and tools.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Variables => "uefi-variables",
            Self::Erst => "erst",
            Self::Memory => "memory",
        }
    }
}

/// The newest report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The report's identity.
    pub of: Identity,
    /// The stores that hold a part of it, each once.
    pub stores: Vec<Store>,
    /// Number of bytes of the text that were found in no store.
    pub missing: u32,
    /// The lines. What is not printable is escaped, and a part that is missing has a line that says so.
    pub lines: Vec<String>,
}

impl Report {
    /// Puts the newest report together. Anything that is not a piece is ignored, and so are pieces of other reports.
    pub fn newest<'a>(found: impl IntoIterator<Item = (Store, &'a [u8])>) -> Option<Self> {
        let mut reports: BTreeMap<Identity, Vec<(Store, Piece<'a>)>> = BTreeMap::new();
        for (store, bytes) in found {
            if let Some(piece) = Piece::decode(bytes)
                && piece.of.total as usize <= MAX_TEXT
            {
                reports.entry(piece.of).or_default().push((store, piece));
            }
        }
        // The identity orders by the number of the crash, then by time.
        let (of, pieces) = reports.pop_last()?;
        let mut bytes: Vec<Option<u8>> = vec![None; of.total as usize];
        for (_, piece) in &pieces {
            let start = piece.offset as usize;
            for (to, from) in bytes[start..].iter_mut().zip(piece.part) {
                *to = Some(*from);
            }
        }
        let mut stores: Vec<Store> = pieces.iter().map(|(store, _)| *store).collect();
        stores.sort_unstable();
        stores.dedup();
        let missing = bytes.iter().filter(|byte| byte.is_none()).count() as u32;
        let lines = lines(&bytes);
        Some(Self {
            of,
            stores,
            missing,
            lines,
        })
    }

    /// Returns true if the whole text was found.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.missing == 0
    }
}

fn lines(bytes: &[Option<u8>]) -> Vec<String> {
    let mut text = Vec::new();
    for run in bytes.chunk_by(|a, b| a.is_some() == b.is_some()) {
        if run[0].is_some() {
            text.extend(run.iter().flatten());
        } else {
            text.extend(b"\n[missing: ");
            text.extend(run.len().to_string().into_bytes());
            text.extend(b" bytes]\n");
        }
    }
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().filter(|line| !line.is_empty());
    lines.map(printable).collect()
}

fn printable(line: &str) -> String {
    let mut out = String::new();
    for c in line.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}
