//! A report while it is written.

use core::fmt;

/// Maximum size of a report in bytes. A report has less than 4 KiB, or 32 KiB with the banks of several hundred CPUs.
pub const MAX_TEXT: usize = 32 << 10;

/// Room at the end of the text for the line that says how much was cut, and for the last line.
const RESERVE: usize = 64;

/// A text in a fixed buffer. What does not fit is cut at a line's end and counted.
#[derive(Debug)]
pub struct Text {
    bytes: [u8; MAX_TEXT],
    len: usize,
    cut: usize,
}

impl Text {
    /// Creates an empty text.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bytes: [0; MAX_TEXT],
            len: 0,
            cut: 0,
        }
    }

    /// Returns the text so far.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Returns the text so far.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only whole characters are ever added.
        core::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// Writes the last line, which always fits, after a line with the number of bytes that did not.
    pub fn finish(&mut self, last: &str) {
        if self.cut > 0 {
            let kept = self.as_bytes();
            let end = kept
                .iter()
                .rposition(|b| *b == b'\n')
                .map_or(0, |at| at + 1);
            let cut = self.cut + self.len - end;
            self.len = end;
            let _ = fmt::write(&mut Rest(self), format_args!("crash: cut_bytes={cut}\n"));
        }
        Rest(self).push(last);
    }

    fn push(&mut self, text: &str, room: usize) {
        // After a first cut, nothing more is added: the text has no holes.
        let room = if self.cut > 0 { 0 } else { room - self.len };
        let fits = text.floor_char_boundary(room);
        self.bytes[self.len..self.len + fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.len += fits;
        self.cut += text.len() - fits;
    }
}

impl Default for Text {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text, MAX_TEXT - RESERVE);
        Ok(())
    }
}

/// The text with its reserve.
struct Rest<'a>(&'a mut Text);

impl Rest<'_> {
    fn push(&mut self, text: &str) {
        self.0.cut = 0;
        self.0.push(text, MAX_TEXT);
    }
}

impl fmt::Write for Rest<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text);
        Ok(())
    }
}
