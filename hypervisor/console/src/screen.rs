//! Display of the command line on a terminal that says nothing about itself.
//!
//! The terminal is never asked for its size: a serial line may have nothing at its other end that answers. The line
//! takes one row of [`COLUMNS`] columns, in which a longer line scrolls sideways. Typing at the end of a line sends
//! only the character, so that the transcript of a script is readable. The prompt is printed only when the console is
//! ready for a new line or had to repeat it, never while a line is edited.

use core::fmt::{Result, Write};

use super::line::{Change, Line};

/// The prompt, which the console prints when it is ready for a line.
pub const PROMPT: &str = "seamark> ";

/// The width that every terminal has.
pub const COLUMNS: usize = 80;

/// Number of characters of the line on the screen at once. The last column stays free, so that nothing wraps.
const WINDOW: usize = COLUMNS - PROMPT.len() - 1;

/// Asks the terminal for its size: saves the cursor, moves it as far as it goes, asks for its place, and restores it.
pub const MEASURE: &str = "\x1b7\x1b[999;999H\x1b[6n\x1b8";

/// The size of the operator's screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

impl Size {
    /// The size of a VT100.
    pub const USUAL: Self = Self {
        rows: 24,
        columns: COLUMNS as u16,
    };
    /// For output that is no screen's.
    pub const UNBOUNDED: Self = Self {
        rows: u16::MAX,
        columns: COLUMNS as u16,
    };

    /// Creates a size. Returns `None` if it is too small to show anything on.
    pub fn new(rows: u64, columns: u64) -> Option<Self> {
        let size = Self {
            rows: rows.min(u16::MAX.into()) as u16,
            columns: columns.min(u16::MAX.into()) as u16,
        };
        (size.rows >= 5 && size.columns >= 20).then_some(size)
    }

    /// Returns the rows that a line takes.
    pub fn rows_of(self, line: &str) -> usize {
        line.chars().count().div_ceil(self.columns.into()).max(1)
    }
}

/// The visible part of the line.
#[derive(Debug, Default)]
pub struct Screen {
    first: usize,
}

impl Screen {
    /// Prints the prompt and the line after it, at the start of a row.
    pub fn prompt(&mut self, line: &Line, out: &mut dyn Write) -> Result {
        self.first = 0;
        out.write_str(PROMPT)?;
        if line.text().is_empty() {
            return Ok(());
        }
        self.redraw(line, out)
    }

    /// Updates the screen after `change`.
    pub fn show(&mut self, line: &Line, change: Change, out: &mut dyn Write) -> Result {
        let visible = (self.first..=self.first + WINDOW).contains(&line.cursor());
        match change {
            Change::Refused => out.write_char('\x07'),
            Change::Appended(byte) if visible => out.write_char(char::from(byte)),
            Change::Shortened if visible => out.write_str("\x08 \x08"),
            _ => self.redraw(line, out),
        }
    }

    /// Empties the row, for output that pushes the line down.
    pub fn erase(&mut self, out: &mut dyn Write) -> Result {
        out.write_str("\r\x1b[K")
    }

    /// Empties the whole screen.
    pub fn clear(&mut self, out: &mut dyn Write) -> Result {
        out.write_str("\x1b[2J\x1b[H")
    }

    fn redraw(&mut self, line: &Line, out: &mut dyn Write) -> Result {
        let cursor = line.cursor();
        if !(self.first..=self.first + WINDOW).contains(&cursor) || line.text().len() <= WINDOW {
            // Scrolls by half a window, so that a long line that arrives at once is not redrawn for each character.
            self.first = if line.text().len() <= WINDOW {
                0
            } else {
                cursor.saturating_sub(WINDOW / 2)
            };
        }
        let end = line.text().len().min(self.first + WINDOW);
        write!(
            out,
            "\r\x1b[{}C{}\x1b[K",
            PROMPT.len(),
            &line.text()[self.first..end]
        )?;
        match end.saturating_sub(cursor) {
            0 => Ok(()),
            back => write!(out, "\x1b[{back}D"),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::{string::String, vec, vec::Vec};

    use proptest::prelude::*;

    use super::{COLUMNS, PROMPT, Screen, WINDOW};
    use crate::{keys::Key, line::Line};

    /// One row of a terminal, which understands only what the console sends.
    struct Row {
        cells: Vec<u8>,
        column: usize,
    }

    impl Row {
        fn new() -> Self {
            Self {
                cells: vec![b' '; COLUMNS],
                column: 0,
            }
        }

        fn receive(&mut self, text: &str) {
            let mut rest = text;
            while let Some(first) = rest.bytes().next() {
                let mut taken = 1;
                match first {
                    b'\r' => self.column = 0,
                    0x08 => self.column = self.column.checked_sub(1).expect("left of the row"),
                    0x07 => {}
                    0x1B => {
                        let end = rest
                            .find(|letter: char| letter.is_ascii_alphabetic())
                            .expect("a whole sequence");
                        let count = rest[2..end].parse().unwrap_or(1);
                        match rest.as_bytes()[end] {
                            b'C' => self.column += count,
                            b'D' => self.column -= count,
                            b'K' => self.cells[self.column..].fill(b' '),
                            other => panic!("unexpected sequence {}", char::from(other)),
                        }
                        taken = end + 1;
                    }
                    byte => {
                        self.cells[self.column] = byte;
                        self.column += 1;
                    }
                }
                assert!(self.column < COLUMNS, "the row wrapped");
                rest = &rest[taken..];
            }
        }
    }

    #[test]
    fn typing_at_the_end_sends_the_characters_alone() {
        let (mut line, mut screen, mut sent) = (Line::default(), Screen::default(), String::new());
        screen
            .prompt(&line, &mut sent)
            .expect("a string takes everything");
        for byte in b"mem peek 0x1000" {
            let change = line.insert(*byte);
            screen
                .show(&line, change, &mut sent)
                .expect("a string takes everything");
        }
        assert_eq!(sent, "seamark> mem peek 0x1000");
    }

    #[test]
    fn a_long_line_costs_a_redraw_for_each_half_row_and_never_repeats_the_prompt() {
        let (mut line, mut screen, mut sent) = (Line::default(), Screen::default(), String::new());
        for _ in 0..1000 {
            let change = line.insert(b'x');
            screen
                .show(&line, change, &mut sent)
                .expect("a string takes everything");
        }
        assert!(sent.len() < 4000, "{} bytes", sent.len());
        assert!(!sent.contains(PROMPT));
    }

    proptest! {
        #[test]
        fn the_row_shows_a_window_of_the_line_around_the_cursor(
            keys in prop::collection::vec(
                prop_oneof![
                    12 => (b'a'..=b'z').prop_map(Key::Char),
                    2 => Just(Key::EraseBack),
                    2 => Just(Key::Left),
                    1 => prop::sample::select(vec![
                        Key::Home, Key::End, Key::Right, Key::EraseForward, Key::KillToEnd, Key::KillToStart,
                        Key::Char(b' '), Key::KillWord, Key::WordLeft, Key::WordRight,
                    ]),
                ],
                0..400,
            )
        ) {
            let (mut line, mut screen, mut row) = (Line::default(), Screen::default(), Row::new());
            row.receive(PROMPT);
            for key in keys {
                let mut sent = String::new();
                let change = line.apply(key);
                screen.show(&line, change, &mut sent).expect("a string takes everything");
                row.receive(&sent);

                let end = line.text().len().min(screen.first + WINDOW);
                let mut expected = String::from(PROMPT);
                expected.push_str(&line.text()[screen.first..end]);
                let shown = String::from_utf8_lossy(&row.cells);
                prop_assert_eq!(shown.trim_end(), expected.trim_end());
                prop_assert_eq!(row.column, PROMPT.len() + line.cursor() - screen.first);
            }
        }
    }
}
