//! Output that is longer than the screen, shown a screenful at a time.
//!
//! It pauses only on a screen whose size is known: the operator gave it, or his terminal did when it was asked. A
//! script does neither, so nothing pauses for it.

use alloc::string::String;
use core::fmt::{Result, Write};

use super::{keys::Key, screen::Size};

/// The row that is shown while the output pauses.
const BAR: &str = "-- more: Space, Enter, or q to stop --";
/// Goes back to the start of that row and empties it.
const ERASE: &str = "\r\x1b[K";

/// Text that is not shown yet. Its lines end in `\r\n`.
#[derive(Debug)]
pub struct Pager {
    text: String,
    /// The byte at which the rest begins.
    at: usize,
}

/// The rest after a step.
#[derive(Debug)]
pub enum Rest {
    /// Nothing; the prompt follows.
    Nothing,
    /// Text, which waits for a key.
    Waits(Pager),
    /// Nothing; the key begins the next line.
    Key(Key),
}

impl Pager {
    /// Shows the first screenful of `text`.
    pub fn begin(
        text: String,
        size: Size,
        out: &mut dyn Write,
    ) -> core::result::Result<Rest, core::fmt::Error> {
        let pager = Self { text, at: 0 };
        pager.advance(usize::from(size.rows) - 1, size, out)
    }

    /// Handles a key. Any key that means nothing here shows the rest, and begins the next line: lines that were sent at
    /// once are all run.
    pub fn key(
        self,
        key: Key,
        size: Size,
        out: &mut dyn Write,
    ) -> core::result::Result<Rest, core::fmt::Error> {
        out.write_str(ERASE)?;
        match key {
            Key::Char(b' ') | Key::Right | Key::Newer => {
                self.advance(usize::from(size.rows) - 1, size, out)
            }
            Key::Enter => self.advance(1, size, out),
            Key::Char(b'q' | b'Q') | Key::Cancel => Ok(Rest::Nothing),
            key => {
                out.write_str(&self.text[self.at..])?;
                Ok(Rest::Key(key))
            }
        }
    }

    /// Shows the bar again, after something else was shown.
    pub fn bar(out: &mut dyn Write) -> Result {
        out.write_str(BAR)
    }

    fn advance(
        mut self,
        mut rows: usize,
        size: Size,
        out: &mut dyn Write,
    ) -> core::result::Result<Rest, core::fmt::Error> {
        while let Some(line) = self.text[self.at..].split_inclusive('\n').next() {
            let needed = size.rows_of(line.trim_end());
            // A line that is taller than the screen is shown whole.
            if needed > rows && needed < usize::from(size.rows) {
                break;
            }
            out.write_str(line)?;
            self.at += line.len();
            rows = rows.saturating_sub(needed);
            if rows == 0 {
                break;
            }
        }
        if self.at == self.text.len() {
            return Ok(Rest::Nothing);
        }
        Self::bar(out)?;
        Ok(Rest::Waits(self))
    }
}

#[cfg(test)]
mod tests {
    use alloc::{format, string::String};

    use super::{BAR, ERASE, Pager, Rest};
    use crate::{keys::Key, screen::Size};

    const SIZE: Size = Size {
        rows: 4,
        columns: 40,
    };

    fn lines(from: u32, to: u32) -> String {
        (from..=to).map(|line| format!("line {line}\r\n")).collect()
    }

    fn begin(text: String) -> (String, Rest) {
        let mut out = String::new();
        let rest = Pager::begin(text, SIZE, &mut out).expect("a string takes everything");
        (out, rest)
    }

    fn key(rest: Rest, key: Key) -> (String, Rest) {
        let Rest::Waits(pager) = rest else {
            panic!("nothing waits")
        };
        let mut out = String::new();
        let rest = pager
            .key(key, SIZE, &mut out)
            .expect("a string takes everything");
        (out, rest)
    }

    #[test]
    fn what_fits_is_shown_at_once() {
        let (out, rest) = begin(lines(1, 3));
        assert_eq!(out, lines(1, 3));
        assert!(matches!(rest, Rest::Nothing));
    }

    #[test]
    fn a_screenful_or_a_line_follows_a_key() {
        let (out, rest) = begin(lines(1, 8));
        assert_eq!(out, lines(1, 3) + BAR);
        let (out, rest) = key(rest, Key::Enter);
        assert_eq!(out, format!("{ERASE}{}{BAR}", lines(4, 4)));
        let (out, rest) = key(rest, Key::Char(b' '));
        assert_eq!(out, format!("{ERASE}{}{BAR}", lines(5, 7)));
        let (out, rest) = key(rest, Key::Char(b' '));
        assert_eq!(out, format!("{ERASE}{}", lines(8, 8)));
        assert!(matches!(rest, Rest::Nothing));
    }

    #[test]
    fn q_stops_and_another_key_shows_the_rest() {
        let (_, rest) = begin(lines(1, 8));
        let (out, rest) = key(rest, Key::Char(b'q'));
        assert_eq!(out, ERASE);
        assert!(matches!(rest, Rest::Nothing));
        let (_, rest) = begin(lines(1, 8));
        let (out, rest) = key(rest, Key::Char(b'v'));
        assert_eq!(out, format!("{ERASE}{}", lines(4, 8)));
        assert!(matches!(rest, Rest::Key(Key::Char(b'v'))));
    }

    #[test]
    fn a_long_line_counts_as_the_rows_that_it_takes() {
        let long = format!("{}\r\n", "x".repeat(50));
        let (out, _) = begin(lines(1, 2) + &long);
        assert_eq!(out, lines(1, 2) + BAR);
        let tall = format!("{}\r\n", "x".repeat(1000));
        let (out, rest) = begin(tall.clone());
        assert_eq!(out, tall);
        assert!(matches!(rest, Rest::Nothing));
    }
}
