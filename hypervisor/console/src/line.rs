//! The command line that is being edited: text, cursor, and the reason why input was rejected.

use alloc::string::{String, ToString};

use super::keys::Key;

/// The maximum length of a command line in bytes.
pub const MAX_LINE: usize = 1024;

/// The maximum length of a line of a script in bytes.
pub const MAX_SCRIPT_LINE: usize = 96 << 10;

/// A line of printable ASCII with a cursor.
///
/// The line remembers that a byte was rejected because it does not fit or is not allowed. Such an incomplete line is
/// never run. Emptying the line clears the mark.
#[derive(Debug, Default)]
pub struct Line {
    text: String,
    cursor: usize,
    spoilt: Option<Spoilt>,
    /// True if the line may have [`MAX_SCRIPT_LINE`] bytes.
    is_script: bool,
}

/// The reason why a line is incomplete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoilt {
    /// The line did not fit.
    TooLong {
        /// Bytes that it may have.
        most: usize,
    },
    /// A byte was not printable ASCII.
    Foreign(u8),
}

/// The effect of a key, as far as the screen needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// No change: the key makes no sense here.
    Refused,
    /// This character was added at the end, and the cursor is behind it.
    Appended(u8),
    /// The last character was removed; the cursor is at the end.
    Shortened,
    /// Anything else.
    Changed,
}

impl Line {
    /// Returns the text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the cursor: the number of characters before it.
    pub fn cursor(&self) -> usize {
        self.cursor
    }

    /// Returns the text before the cursor.
    pub fn before_cursor(&self) -> &str {
        &self.text[..self.cursor]
    }

    /// Replaces the text and puts the cursor at its end.
    pub fn set(&mut self, text: &str) {
        self.text.clear();
        self.spoilt = None;
        self.cursor = 0;
        for byte in text.bytes() {
            self.insert(byte);
        }
    }

    /// Empties the line.
    pub fn clear(&mut self) {
        self.set("");
    }

    /// Empties the line and overwrites its text, which was a secret.
    pub fn wipe(&mut self) {
        let mut bytes = core::mem::take(self).text.into_bytes();
        bytes.fill(0);
        core::hint::black_box(&bytes);
    }

    /// Lets the line have the length of a script's.
    pub fn is_of_script(&mut self) {
        self.is_script = true;
    }

    /// Checks that the line can be run.
    ///
    /// # Errors
    /// A byte of the line was rejected.
    pub fn check(&self) -> Result<(), Spoilt> {
        self.spoilt.map_or(Ok(()), Err)
    }

    /// Inserts one character at the cursor.
    pub fn insert(&mut self, byte: u8) -> Change {
        if !matches!(byte, b' '..=b'~') {
            self.spoilt.get_or_insert(Spoilt::Foreign(byte));
            return Change::Refused;
        }
        let most = match self.is_script {
            true => MAX_SCRIPT_LINE,
            false => MAX_LINE,
        };
        if self.text.len() >= most {
            self.spoilt.get_or_insert(Spoilt::TooLong { most });
            return Change::Refused;
        }
        self.text.insert(self.cursor, char::from(byte));
        self.cursor += 1;
        if self.cursor == self.text.len() {
            Change::Appended(byte)
        } else {
            Change::Changed
        }
    }

    /// Applies an editing key. Keys that concern the console as a whole are refused.
    pub fn apply(&mut self, key: Key) -> Change {
        match key {
            Key::Char(byte) | Key::Foreign(byte) => self.insert(byte),
            Key::Left => self.move_to(self.cursor.saturating_sub(1)),
            Key::Right => self.move_to((self.cursor + 1).min(self.text.len())),
            Key::WordLeft => self.move_to(self.word_start()),
            Key::WordRight => self.move_to(self.word_end()),
            Key::Home => self.move_to(0),
            Key::End => self.move_to(self.text.len()),
            Key::EraseBack if self.cursor == self.text.len() && self.cursor > 0 => {
                self.remove(self.cursor - 1, self.cursor);
                Change::Shortened
            }
            Key::EraseBack => self.remove(self.cursor.saturating_sub(1), self.cursor),
            Key::EraseForward => self.remove(self.cursor, (self.cursor + 1).min(self.text.len())),
            Key::KillToEnd => self.remove(self.cursor, self.text.len()),
            Key::KillToStart => self.remove(0, self.cursor),
            Key::KillWord => self.remove(self.word_start(), self.cursor),
            Key::Enter
            | Key::Complete
            | Key::Cancel
            | Key::ClearScreen
            | Key::Older
            | Key::Newer
            | Key::Cursor(..)
            | Key::Unknown => Change::Refused,
        }
    }

    fn move_to(&mut self, cursor: usize) -> Change {
        if cursor == self.cursor {
            return Change::Refused;
        }
        self.cursor = cursor;
        Change::Changed
    }

    fn remove(&mut self, from: usize, to: usize) -> Change {
        let change = if from == to {
            Change::Refused
        } else {
            Change::Changed
        };
        self.text.replace_range(from..to, "");
        self.cursor = from;
        if self.text.is_empty() {
            self.spoilt = None;
        }
        change
    }

    fn word_start(&self) -> usize {
        let before = self.before_cursor().trim_end();
        before.rfind(' ').map_or(0, |space| space + 1)
    }

    fn word_end(&self) -> usize {
        let after = &self.text[self.cursor..];
        let gap = after.len() - after.trim_start().len();
        let word = after[gap..].find(' ').unwrap_or(after.len() - gap);
        self.cursor + gap + word
    }
}

/// The lines that were run before, and the position of a walk through them.
#[derive(Debug, Default)]
pub struct History {
    lines: alloc::collections::VecDeque<String>,
    /// The walk's position: the number of lines back, and the draft that it started from.
    walk: Option<(usize, String)>,
}

impl History {
    /// The maximum number of lines that are kept.
    pub const LINES: usize = 64;

    /// Keeps a line, unless it is blank or the same as the last one, and ends the walk.
    pub fn push(&mut self, line: &str) {
        self.walk = None;
        if line.trim().is_empty() || self.lines.back().is_some_and(|last| last == line) {
            return;
        }
        if self.lines.len() == Self::LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line.to_string());
    }

    /// Ends the walk.
    pub fn leave(&mut self) {
        self.walk = None;
    }

    /// Goes one line back. `draft` is the line being edited; it is kept when the walk begins.
    pub fn older(&mut self, draft: &str) -> Option<&str> {
        let back = self.walk.as_ref().map_or(0, |(back, _)| *back) + 1;
        let index = self.lines.len().checked_sub(back)?;
        match &mut self.walk {
            Some((now, _)) => *now = back,
            None => self.walk = Some((back, draft.to_string())),
        }
        self.lines.get(index).map(String::as_str)
    }

    /// Goes one line forward. The draft follows the last line.
    pub fn newer(&mut self) -> Option<String> {
        let (back, draft) = self.walk.take()?;
        if back == 1 {
            return Some(draft);
        }
        self.walk = Some((back - 1, draft));
        self.lines.get(self.lines.len() - (back - 1)).cloned()
    }

    /// Iterates over the lines, oldest first.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use alloc::{string::String, vec, vec::Vec};

    use proptest::prelude::*;

    use super::{Change, History, Line, MAX_LINE, Spoilt};
    use crate::keys::Key;

    fn typed(text: &str) -> Line {
        let mut line = Line::default();
        line.set(text);
        line
    }

    #[test]
    fn ctrl_w_takes_the_word_before_the_cursor_and_the_blanks_behind_it() {
        let mut line = typed("mem peek 0x1000  ");
        assert_eq!(line.apply(Key::KillWord), Change::Changed);
        assert_eq!(line.text(), "mem peek ");
        line.apply(Key::KillWord);
        assert_eq!(line.text(), "mem ");
    }

    #[test]
    fn words_are_walked_over_blanks_first() {
        let mut line = typed("mem  peek 1");
        line.apply(Key::Home);
        line.apply(Key::WordRight);
        assert_eq!(line.before_cursor(), "mem");
        line.apply(Key::WordRight);
        assert_eq!(line.before_cursor(), "mem  peek");
        line.apply(Key::WordLeft);
        assert_eq!(line.before_cursor(), "mem  ");
    }

    #[test]
    fn a_line_that_is_too_long_is_not_run_cut_short() {
        let mut line = typed(&"x".repeat(MAX_LINE));
        assert!(line.check().is_ok());
        assert_eq!(line.apply(Key::Char(b'y')), Change::Refused);
        assert!(matches!(line.check(), Err(Spoilt::TooLong { .. })));
        line.apply(Key::EraseBack);
        assert!(
            matches!(line.check(), Err(Spoilt::TooLong { .. })),
            "a byte in the middle is still missing"
        );
        line.apply(Key::KillToStart);
        assert!(line.check().is_ok());
    }

    #[test]
    fn a_line_with_a_foreign_byte_is_not_run_without_it() {
        let mut line = typed("poweroff");
        line.apply(Key::Foreign(0xC3));
        assert!(matches!(line.check(), Err(Spoilt::Foreign(0xC3))));
        line.clear();
        assert!(line.check().is_ok());
    }

    #[test]
    fn history_gives_the_draft_back() {
        let mut history = History::default();
        history.push("cpus");
        history.push("mem");
        assert_eq!(history.older("td"), Some("mem"));
        assert_eq!(history.older("mem"), Some("cpus"));
        assert_eq!(history.older("cpus"), None);
        assert_eq!(history.newer().as_deref(), Some("mem"));
        assert_eq!(history.newer().as_deref(), Some("td"));
        assert_eq!(history.newer(), None);
    }

    #[test]
    fn history_keeps_neither_blanks_nor_repetitions_and_has_a_bound() {
        let mut history = History::default();
        for line in ["cpus", "cpus", " ", "cpus"] {
            history.push(line);
        }
        assert_eq!(history.lines().count(), 1);
        for number in 0..2 * History::LINES {
            history.push(&alloc::format!("help {number}"));
        }
        assert_eq!(history.lines().count(), History::LINES);
        assert_eq!(history.lines().last(), Some("help 127"));
    }

    /// A minimal editor: the text before the cursor, and the text behind it.
    #[derive(Default)]
    struct Model {
        before: Vec<u8>,
        after: Vec<u8>,
    }

    impl Model {
        fn apply(&mut self, key: Key) {
            match key {
                Key::Char(byte) => self.before.push(byte),
                Key::Left => self.after.splice(0..0, self.before.pop()).for_each(drop),
                Key::Right if !self.after.is_empty() => self.before.push(self.after.remove(0)),
                Key::Home => self
                    .after
                    .splice(0..0, self.before.drain(..))
                    .for_each(drop),
                Key::End => self.before.append(&mut self.after),
                Key::EraseBack => drop(self.before.pop()),
                Key::EraseForward if !self.after.is_empty() => drop(self.after.remove(0)),
                Key::KillToEnd => self.after.clear(),
                Key::KillToStart => self.before.clear(),
                Key::WordLeft | Key::KillWord => {
                    let mut word = Vec::new();
                    while self.before.last() == Some(&b' ') {
                        word.extend(self.before.pop());
                    }
                    while self.before.last().is_some_and(|byte| *byte != b' ') {
                        word.extend(self.before.pop());
                    }
                    if key == Key::WordLeft {
                        word.reverse();
                        self.after.splice(0..0, word);
                    }
                }
                Key::WordRight => {
                    while self.after.first() == Some(&b' ') {
                        self.before.push(self.after.remove(0));
                    }
                    while self.after.first().is_some_and(|byte| *byte != b' ') {
                        self.before.push(self.after.remove(0));
                    }
                }
                _ => {}
            }
        }
    }

    fn any_key() -> impl Strategy<Value = Key> {
        prop_oneof![
            4 => (b'a'..=b'e').prop_map(Key::Char),
            2 => Just(Key::Char(b' ')),
            1 => Just(Key::Left),
            1 => Just(Key::Right),
            1 => Just(Key::WordLeft),
            1 => Just(Key::WordRight),
            1 => Just(Key::Home),
            1 => Just(Key::End),
            1 => Just(Key::EraseBack),
            1 => Just(Key::EraseForward),
            1 => Just(Key::KillWord),
            1 => prop_oneof![Just(Key::KillToEnd), Just(Key::KillToStart), Just(Key::Unknown)],
        ]
    }

    proptest! {
        #[test]
        fn the_line_is_what_the_simplest_editor_makes_of_the_same_keys(
            keys in prop::collection::vec(any_key(), 0..200)
        ) {
            let (mut line, mut model) = (Line::default(), Model::default());
            for key in keys {
                let old = (String::from(line.text()), line.cursor());
                let change = line.apply(key);
                model.apply(key);
                prop_assert_eq!(line.before_cursor().as_bytes(), &model.before[..]);
                prop_assert_eq!(&line.text().as_bytes()[line.cursor()..], &model.after[..]);
                prop_assert_eq!(change == Change::Refused, old == (String::from(line.text()), line.cursor()));
            }
        }

        #[test]
        fn history_is_walked_like_a_list_with_the_draft_at_its_end(
            lines in prop::collection::vec("[a-z]{1,4}", 0..100),
            steps in prop::collection::vec(any::<bool>(), 0..200),
        ) {
            let mut history = History::default();
            lines.iter().for_each(|line| history.push(line));
            let mut model = lines.clone();
            model.dedup();
            model.drain(..model.len().saturating_sub(History::LINES));
            model.push("draft".into());
            let (mut at, mut shown) = (model.len() - 1, String::from("draft"));
            for older in steps {
                let (step, expected) = if older {
                    (history.older(&shown).map(String::from), at.checked_sub(1))
                } else {
                    (history.newer(), Some(at + 1).filter(|next| *next < model.len()))
                };
                prop_assert_eq!(step.as_ref(), expected.map(|index| &model[index]));
                at = expected.unwrap_or(at);
                shown = step.unwrap_or(shown);
            }
        }
    }
}
