//! The decoder of a terminal's bytes into keys.
//!
//! Any byte is accepted in any state. A control byte inside an escape sequence ends the sequence and keeps its usual
//! meaning, so that Enter and Ctrl-C always work.

/// The key that one or more bytes stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A printable ASCII character.
    Char(u8),
    /// A byte that a command line can't hold.
    Foreign(u8),
    /// The end of the line: `\r`, `\n` or `\r\n`.
    Enter,
    /// Tab.
    Complete,
    /// Ctrl-C.
    Cancel,
    /// Ctrl-L.
    ClearScreen,
    /// Backspace or Ctrl-H.
    EraseBack,
    /// Delete or Ctrl-D.
    EraseForward,
    /// Left or Ctrl-B.
    Left,
    /// Right or Ctrl-F.
    Right,
    /// Alt-B or Ctrl-Left.
    WordLeft,
    /// Alt-F or Ctrl-Right.
    WordRight,
    /// Home or Ctrl-A.
    Home,
    /// End or Ctrl-E.
    End,
    /// Up or Ctrl-P.
    Older,
    /// Down or Ctrl-N.
    Newer,
    /// Ctrl-K: everything from the cursor on.
    KillToEnd,
    /// Ctrl-U: everything before the cursor.
    KillToStart,
    /// Ctrl-W: the word before the cursor.
    KillWord,
    /// The terminal's answer to the question where its cursor is: row and column, from 1.
    Cursor(u16, u16),
    /// A key without a meaning here.
    Unknown,
}

/// The decoder, fed byte by byte.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Ground,
    /// After a `\r`; a `\n` now is the second half of the same line end.
    Return,
    /// After ESC.
    Escape,
    /// After ESC `[`: the numbers so far, and which of the two is being read.
    Sequence { numbers: [u16; 2], second: bool },
    /// After ESC `O`.
    Application,
}

impl Decoder {
    /// Takes one byte. Returns the key that it completes.
    pub fn feed(&mut self, byte: u8) -> Option<Key> {
        let state = core::mem::take(&mut self.state);
        match (state, byte) {
            (State::Return, b'\n') => None,
            (State::Ground | State::Return, _) | (_, 0x00..=0x1F) => self.ground(byte),
            (State::Escape, _) => self.escape(byte),
            (State::Sequence { numbers, second }, _) => self.sequence(numbers, second, byte),
            (State::Application, _) => Some(cursor_key(byte, false)),
        }
    }

    fn ground(&mut self, byte: u8) -> Option<Key> {
        Some(match byte {
            b'\r' => {
                self.state = State::Return;
                Key::Enter
            }
            b'\n' => Key::Enter,
            b'\t' => Key::Complete,
            0x1B => {
                self.state = State::Escape;
                return None;
            }
            // Bytes that a serial line sends by itself: NUL for a break, XON and XOFF.
            0x00 | 0x11 | 0x13 => return None,
            0x01 => Key::Home,
            0x02 => Key::Left,
            0x03 => Key::Cancel,
            0x04 => Key::EraseForward,
            0x05 => Key::End,
            0x06 => Key::Right,
            0x08 | 0x7F => Key::EraseBack,
            0x0B => Key::KillToEnd,
            0x0C => Key::ClearScreen,
            0x0E => Key::Newer,
            0x10 => Key::Older,
            0x15 => Key::KillToStart,
            0x17 => Key::KillWord,
            b' '..=b'~' => Key::Char(byte),
            0x80.. => Key::Foreign(byte),
            _ => Key::Unknown,
        })
    }

    fn escape(&mut self, byte: u8) -> Option<Key> {
        Some(match byte {
            b'[' => {
                self.state = State::Sequence {
                    numbers: [0; 2],
                    second: false,
                };
                return None;
            }
            b'O' => {
                self.state = State::Application;
                return None;
            }
            b'b' => Key::WordLeft,
            b'f' => Key::WordRight,
            0x7F => Key::KillWord,
            _ => Key::Unknown,
        })
    }

    fn sequence(&mut self, mut numbers: [u16; 2], second: bool, byte: u8) -> Option<Key> {
        match byte {
            b'0'..=b'9' => {
                let number = &mut numbers[usize::from(second)];
                *number = number
                    .saturating_mul(10)
                    .saturating_add(u16::from(byte - b'0'));
                self.state = State::Sequence { numbers, second };
                None
            }
            b';' => {
                self.state = State::Sequence {
                    numbers,
                    second: true,
                };
                None
            }
            b' '..=b'?' => {
                self.state = State::Sequence { numbers, second };
                None
            }
            b'~' => Some(match numbers[0] {
                1 | 7 => Key::Home,
                3 => Key::EraseForward,
                4 | 8 => Key::End,
                _ => Key::Unknown,
            }),
            b'R' if second => Some(Key::Cursor(numbers[0], numbers[1])),
            _ => Some(cursor_key(byte, numbers[1] == 5)),
        }
    }
}

fn cursor_key(last: u8, control: bool) -> Key {
    match (last, control) {
        (b'A', _) => Key::Older,
        (b'B', _) => Key::Newer,
        (b'C', false) => Key::Right,
        (b'C', true) => Key::WordRight,
        (b'D', false) => Key::Left,
        (b'D', true) => Key::WordLeft,
        (b'F', _) => Key::End,
        (b'H', _) => Key::Home,
        _ => Key::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};

    use super::{Decoder, Key};

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut decoder = Decoder::default();
        bytes
            .iter()
            .filter_map(|byte| decoder.feed(*byte))
            .collect()
    }

    #[test]
    fn each_kind_of_line_end_is_one_enter() {
        assert_eq!(keys(b"\r\n"), [Key::Enter]);
        assert_eq!(keys(b"\n\n"), [Key::Enter; 2]);
        assert_eq!(keys(b"\r\r\n\n"), [Key::Enter; 3]);
    }

    #[test]
    fn every_terminal_s_home_and_end_are_known() {
        for home in [&b"\x01"[..], b"\x1b[H", b"\x1bOH", b"\x1b[1~", b"\x1b[7~"] {
            assert_eq!(keys(home), [Key::Home], "{home:x?}");
        }
        for end in [&b"\x05"[..], b"\x1b[F", b"\x1bOF", b"\x1b[4~", b"\x1b[8~"] {
            assert_eq!(keys(end), [Key::End], "{end:x?}");
        }
    }

    #[test]
    fn control_and_cursor_moves_by_words() {
        assert_eq!(
            keys(b"\x1b[1;5D\x1b[1;5C\x1b[D"),
            [Key::WordLeft, Key::WordRight, Key::Left]
        );
    }

    #[test]
    fn an_unknown_sequence_is_one_unknown_key_and_inserts_nothing() {
        assert_eq!(keys(b"\x1b[?999;999;1$x"), [Key::Unknown]);
        assert_eq!(keys(b"\x1b[24~a"), [Key::Unknown, Key::Char(b'a')]);
    }

    #[test]
    fn a_control_byte_ends_a_sequence_and_keeps_its_meaning() {
        for start in [&b"\x1b"[..], b"\x1b[", b"\x1b[1;", b"\x1bO", b"\r"] {
            for (byte, key) in [(3, Key::Cancel), (b'\r', Key::Enter)] {
                let mut bytes = start.to_vec();
                bytes.push(byte);
                assert_eq!(keys(&bytes).last(), Some(&key), "{bytes:x?}");
            }
        }
        assert_eq!(keys(b"\x1b[\x1b[A"), vec![Key::Older]);
    }

    #[test]
    fn a_line_break_condition_is_no_key() {
        assert_eq!(keys(b"\0\0\x11\x13"), []);
    }
}
