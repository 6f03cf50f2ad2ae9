//! Mending the syntax of a text: what can't be parsed is blanked out, so that the rest can be read where it is.

use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use core::ops::Range;

use toml::de::DeTable;

/// A part of the text that begins with the header of a table of its own.
pub(crate) struct Section {
    pub range: Range<usize>,
    /// The header's name, such as `td`.
    pub name: String,
    pub state: State,
}

/// The part of a section that is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// All of it.
    Whole,
    /// All but a line.
    Mended,
    /// Nothing.
    Gone,
}

/// A text whose syntax is right.
pub(crate) struct Mended {
    pub text: String,
    pub sections: Vec<Section>,
    /// The mistakes in the syntax, with their offsets.
    pub mistakes: Vec<(usize, String)>,
}

/// Blanks out what can't be parsed: the line with the mistake if that is enough, or else the whole section.
pub(crate) fn mend(text: &str) -> Mended {
    let mut mended = Mended {
        sections: sections(text),
        text: text.into(),
        mistakes: Vec::new(),
    };
    if mistake(text).is_none() {
        return mended;
    }
    for index in 0..mended.sections.len() {
        let range = mended.sections[index].range.clone();
        if let Some((at, what)) = mistake(&mended.text[range.clone()]) {
            mended.report(index, range.start + at, what);
        }
    }
    // The rest are sections that do not go together.
    while let Some((at, what)) = mistake(&mended.text) {
        let Some(index) = mended.sections.iter().rposition(|s| s.range.start <= at) else {
            break;
        };
        if mended.sections[index].state == State::Gone {
            // The parser blames a place that has nothing any more.
            mended.mistakes.push((at, what));
            let all = 0..mended.text.len();
            mended.blank(all);
            break;
        }
        mended.mistakes.push((at, what));
        mended.remove(index);
    }
    mended
}

impl Mended {
    /// Returns the state of the section at an offset.
    pub fn state_at(&self, at: usize) -> State {
        let section = self.sections.iter().rev().find(|s| s.range.start <= at);
        section.map_or(State::Whole, |section| section.state)
    }

    fn report(&mut self, index: usize, at: usize, what: String) {
        self.mistakes.push((at, what));
        let section = self.sections[index].range.clone();
        let kept = self.text.clone();
        let start = kept[..at]
            .rfind('\n')
            .map_or(0, |end| end + 1)
            .max(section.start);
        let end = kept[at..].find('\n').map_or(kept.len(), |end| at + end);
        self.blank(start..end.min(section.end));
        let has_header = start > section.start;
        if has_header && mistake(&self.text[section]).is_none() {
            self.sections[index].state = State::Mended;
        } else {
            self.remove(index);
        }
    }

    fn remove(&mut self, index: usize) {
        self.sections[index].state = State::Gone;
        self.blank(self.sections[index].range.clone());
    }

    /// Replaces a part by blanks, line by line.
    fn blank(&mut self, range: Range<usize>) {
        let blank: String = self.text[range.clone()]
            .bytes()
            .map(|byte| if byte == b'\n' { '\n' } else { ' ' })
            .collect();
        self.text.replace_range(range, &blank);
    }
}

/// Returns the first mistake in the syntax of a text, and its offset.
pub(crate) fn mistake(text: &str) -> Option<(usize, String)> {
    let error = DeTable::parse(text).err()?;
    let at = error.span().map_or(0, |span| span.start);
    // A value that is missing at the end of the text is missing in its last line.
    let mut at = at.min(text.trim_end().len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    Some((at, error.message().trim().replace('\n', "; ")))
}

/// Finds the sections. Tables within a `[[td]]` are a part of its section.
fn sections(text: &str) -> Vec<Section> {
    let mut at = 0;
    let mut all: Vec<Section> = Vec::new();
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim_start();
        let name = trimmed.trim_start_matches(['[', ' ']);
        let end = name.find([']', '.', ' ', '\n']).unwrap_or(name.len());
        let is_part = name[end..].trim_start().starts_with('.');
        let is_new = trimmed.starts_with('[') && !is_part || all.is_empty();
        match all.last_mut() {
            Some(last) if !is_new => last.range.end += line.len(),
            _ => all.push(Section {
                range: at..at + line.len(),
                name: name[..end].to_string(),
                state: State::Whole,
            }),
        }
        at += line.len();
    }
    all
}
