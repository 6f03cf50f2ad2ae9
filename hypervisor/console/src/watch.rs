//! A port of a TD, such as its console, shown in place of the hypervisor's console.

use core::fmt::{self, Write};

use super::{
    host::{
        Management,
        td::{Excerpt, TdPort},
    },
    table::Count,
};

/// The ways to leave, for the operator.
pub const WAYS_BACK: &str = "Ctrl-], or Enter ~ . as in ssh, detaches";

/// Ctrl-], the escape character of telnet and similar programs.
const LEAVE: u8 = 0x1D;
/// At the start of a line, the byte after this one may be for the hypervisor.
const ESCAPE: u8 = b'~';

/// The action for a byte that was typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Typed {
    /// Leave the TD's console.
    Leave,
    /// Do nothing yet.
    Hold,
    /// Pass the byte to the TD.
    Pass,
    /// Pass the held escape and this byte to the TD.
    PassBoth,
}

/// Finds the escape sequences among the typed bytes: Ctrl-], and `~.` at the start of a line. `~~` there types one
/// `~`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Escape {
    /// At the start of a line: nothing was typed yet, or Enter.
    #[default]
    LineStart,
    /// After the escape at the start of a line.
    Held,
    /// Within a line.
    Inside,
}

impl Escape {
    fn take(&mut self, byte: u8) -> Typed {
        let (next, typed) = match (*self, byte) {
            (_, LEAVE) | (Self::Held, b'.') => (Self::LineStart, Typed::Leave),
            (Self::LineStart, ESCAPE) => (Self::Held, Typed::Hold),
            (Self::Held, ESCAPE) => (Self::Inside, Typed::Pass),
            (before, b'\r' | b'\n') => (Self::LineStart, before.pass()),
            (before, _) => (Self::Inside, before.pass()),
        };
        *self = next;
        typed
    }

    /// Handles a byte that leaves nothing held.
    fn pass(self) -> Typed {
        if self == Self::Held {
            Typed::PassBoth
        } else {
            Typed::Pass
        }
    }
}

/// The prefix of the hypervisor's own text. CAN ends a control sequence that the TD has begun, which would swallow
/// some of it.
pub const BREAK: &str = "\x18\r\n";

/// Maximum number of bytes that are copied at once.
const AT_ONCE: usize = 1024;

/// A TD and its port that is shown.
#[derive(Debug)]
pub struct Watch {
    id: u32,
    port: TdPort,
    /// The number of the next byte to show.
    next: u64,
    /// The number of the next byte to read. The bytes in between are the beginning of a character.
    unseen: u64,
    escape: Escape,
}

impl Watch {
    /// Watches a port of the TD `id` from byte number `next` on.
    pub const fn new(id: u32, port: TdPort, next: u64) -> Self {
        Self {
            id,
            port,
            next,
            unseen: next,
            escape: Escape::LineStart,
        }
    }

    /// Returns the TD's number.
    pub const fn td(&self) -> u32 {
        self.id
    }

    /// Handles a typed byte: passes it to the guest or leaves. Returns true if it leaves.
    pub fn type_byte(&mut self, byte: u8, host: &dyn Management) -> bool {
        let bytes: &[u8] = match self.escape.take(byte) {
            Typed::Leave => return true,
            Typed::Hold => &[],
            Typed::Pass => &[byte],
            Typed::PassBoth => &[ESCAPE, byte],
        };
        if let Ok(tds) = host.tds() {
            for byte in bytes {
                // A byte that the TD does not take is lost, as on a serial line.
                let _ = tds.type_byte(self.id, self.port, *byte);
            }
        }
        false
    }

    /// Returns true if the TD has written something since the last call of [`Self::show`].
    pub fn has_news(&self, host: &dyn Management) -> bool {
        host.tds()
            .and_then(|tds| tds.output(self.id, self.port, self.unseen, &mut [0]))
            .is_ok_and(|excerpt| excerpt.count > 0)
    }

    /// Shows the guest's output. Bytes that are text reach the terminal unchanged.
    pub fn show(&mut self, host: &dyn Management, out: &mut dyn Write) -> fmt::Result {
        let Ok(tds) = host.tds() else {
            return Ok(());
        };
        let mut bytes = [0; AT_ONCE];
        loop {
            let excerpt = tds.output(self.id, self.port, self.next, &mut bytes);
            let Ok(Excerpt { from, count, .. }) = excerpt else {
                return Ok(());
            };
            if from > self.next {
                let bytes = Count((from - self.next) as usize, "byte");
                write!(out, "{BREAK}(lost: {bytes})\r\n")?;
            }
            let shown = text(&bytes[..count], out)?;
            self.next = from + shown as u64;
            self.unseen = from + count as u64;
            if shown < AT_ONCE / 2 {
                return Ok(());
            }
        }
    }
}

/// Shows the text in `bytes`, and a mark for each sequence that is not text. Returns the number of bytes shown. An
/// incomplete character at the end is left for later.
fn text(bytes: &[u8], out: &mut dyn Write) -> Result<usize, fmt::Error> {
    let mut shown = 0;
    for chunk in bytes.utf8_chunks() {
        out.write_str(chunk.valid())?;
        shown += chunk.valid().len();
        let invalid = chunk.invalid();
        let is_begun = core::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
        if is_begun && shown + invalid.len() == bytes.len() {
            break;
        }
        if !invalid.is_empty() {
            out.write_char(char::REPLACEMENT_CHARACTER)?;
            shown += invalid.len();
        }
    }
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use alloc::string::String;

    use super::{Escape, Typed, text};

    #[test]
    fn the_escape_works_only_at_the_start_of_a_line() {
        use Typed::{Hold, Leave, Pass, PassBoth};
        for (typed, last) in [
            (&b"~."[..], &[Hold, Leave][..]),
            (b"\r~.", &[Pass, Hold, Leave]),
            (b"a~.", &[Pass, Pass, Pass]),
            (b"~~.", &[Hold, Pass, Pass]),
            (b"~a.", &[Hold, PassBoth, Pass]),
            (b"~\r~.", &[Hold, PassBoth, Hold, Leave]),
            (b"~\x1d", &[Hold, Leave]),
            (b"ab\x1d", &[Pass, Pass, Leave]),
        ] {
            let mut escape = Escape::default();
            let said: alloc::vec::Vec<_> = typed.iter().map(|&b| escape.take(b)).collect();
            assert_eq!(said, last, "{typed:?}");
        }
    }

    #[test]
    fn characters_are_shown_whole_and_what_is_none_with_a_mark() {
        let mut out = String::new();
        let said = "a\u{e9}\u{20ac}".as_bytes();
        assert_eq!(text(&said[..5], &mut out), Ok(3));
        assert_eq!(text(&said[3..], &mut out), Ok(3));
        assert_eq!(text(b"\xFFb\x80", &mut out), Ok(3));
        assert_eq!(out, "a\u{e9}\u{20ac}\u{FFFD}b\u{FFFD}");
    }
}
