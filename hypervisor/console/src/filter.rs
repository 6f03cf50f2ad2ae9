//! `COMMAND | WORD`: shows the lines of a reply that contain a word.

use alloc::{string::String, vec::Vec};
use core::fmt::{Result, Write};

/// Splits a line at its bars: the command, and the words after it. Blanks around them do not count.
pub fn split(line: &str) -> (&str, Vec<&str>) {
    let mut parts = line.split('|').map(str::trim);
    let command = parts.next().unwrap_or_default();
    (command, parts.collect())
}

/// A writer that passes on the lines that contain all words, whatever their case.
pub struct Filter<'a> {
    out: &'a mut dyn Write,
    words: Vec<String>,
    /// The line so far.
    line: String,
}

impl<'a> Filter<'a> {
    /// Creates a filter in front of `out`.
    pub fn new(words: &[String], out: &'a mut dyn Write) -> Self {
        Self {
            out,
            words: words.iter().map(|word| word.to_ascii_lowercase()).collect(),
            line: String::new(),
        }
    }

    /// Passes on a last line without an end.
    pub fn finish(mut self) -> Result {
        if self.line.is_empty() {
            return Ok(());
        }
        self.end_line()
    }

    fn end_line(&mut self) -> Result {
        let line = self.line.to_ascii_lowercase();
        if self.words.iter().all(|word| line.contains(word.as_str())) {
            writeln!(self.out, "{}", self.line)?;
        }
        self.line.clear();
        Ok(())
    }
}

impl Write for Filter<'_> {
    fn write_str(&mut self, text: &str) -> Result {
        for part in text.split_inclusive('\n') {
            let line = part.strip_suffix('\n');
            self.line.push_str(line.unwrap_or(part));
            if line.is_some() {
                self.end_line()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;
    use core::fmt::Write;

    use super::{Filter, split};

    #[test]
    fn a_line_is_split_at_its_bars() {
        assert_eq!(split("dmesg"), ("dmesg", [].into()));
        assert_eq!(split("td list | run|x "), ("td list", ["run", "x"].into()));
        assert_eq!(split("dmesg |"), ("dmesg", [""].into()));
    }

    #[test]
    fn lines_with_all_words_pass_however_they_are_written() {
        let mut out = String::new();
        let mut filter = Filter::new(&["td".into(), "one".into()], &mut out);
        for part in ["TD", " One\nTD two\n", "one ", "TD\nnone TD"] {
            filter.write_str(part).expect("a string takes everything");
        }
        filter.finish().expect("a string takes everything");
        assert_eq!(out, "TD One\none TD\nnone TD\n");
    }
}
