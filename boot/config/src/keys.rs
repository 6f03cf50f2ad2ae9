//! The keys of a table of the configuration: each with the values that it takes, and the way to read and to write them.
//!
//! A key is stated once. The file, `td define`, `td set` and `config show` all go by the same list.

use alloc::{borrow::ToOwned, format, string::String, vec::Vec};
use core::{fmt::Write, ops::RangeInclusive};

use toml::de::{DeTable, DeValue};

/// A key of a table that is read into a `T`.
pub(crate) struct Key<T: 'static> {
    /// The name.
    pub name: &'static str,
    /// The values that it takes. Completes "it must be ...".
    pub form: &'static str,
    /// True if no message may show the value.
    pub secret: bool,
    /// True if a table without the key is incomplete.
    pub required: bool,
    /// Sets the value. Returns `None` if the value does not have the form.
    pub set: fn(&mut T, &DeValue<'_>) -> Option<()>,
    /// Returns the value as TOML; `None` if it is the default.
    pub show: fn(&T) -> Option<String>,
    /// Reports the mistakes within a value that does not have the form, if it has parts.
    pub inside: Option<fn(&DeValue<'_>, &mut Mistakes<'_>)>,
}

impl<T> Key<T> {
    pub const fn new(
        name: &'static str,
        form: &'static str,
        set: fn(&mut T, &DeValue<'_>) -> Option<()>,
        show: fn(&T) -> Option<String>,
    ) -> Self {
        Self {
            name,
            form,
            secret: false,
            required: false,
            set,
            show,
            inside: None,
        }
    }

    pub const fn secret(self) -> Self {
        Self {
            secret: true,
            ..self
        }
    }

    pub const fn required(self) -> Self {
        Self {
            required: true,
            ..self
        }
    }

    pub const fn inside(self, inside: fn(&DeValue<'_>, &mut Mistakes<'_>)) -> Self {
        Self {
            inside: Some(inside),
            ..self
        }
    }
}

/// Something that a host can't do, under the names that an operator may look for.
pub(crate) struct Missed {
    /// The names.
    pub names: &'static [&'static str],
    /// The reason, and what to do instead.
    pub why: &'static str,
}

/// A table with keys.
pub(crate) trait Keyed: Sized + 'static {
    /// The way to name such a table to the operator.
    const TABLE: &'static str;
    /// The keys.
    const KEYS: &'static [Key<Self>];
    /// Keys that an operator may expect, and why there are none. Completes "NAME is not a key of TABLE: ...".
    const MISSED: &'static [Missed] = &[];

    /// Returns a table with defaults. Required keys have no useful value.
    fn blank() -> Self;

    /// Returns the keys that do not have their default, as an inline table.
    fn inline(&self) -> String {
        let keys = Self::KEYS.iter();
        let pairs: Vec<_> = keys
            .filter_map(|key| Some(format!("{} = {}", key.name, (key.show)(self)?)))
            .collect();
        format!("{{ {} }}", pairs.join(", "))
    }

    /// Finds a key.
    fn key(name: &str) -> Option<&'static Key<Self>> {
        Self::KEYS.iter().find(|key| key.name == name)
    }

    /// Writes the keys that do not have their default, each on a line.
    fn write_keys(&self, text: &mut String) {
        for key in Self::KEYS {
            if let Some(value) = (key.show)(self) {
                // Writing to a string does not fail.
                let _ = writeln!(text, "{} = {value}", key.name);
            }
        }
    }
}

/// The mistakes in a text.
pub(crate) struct Mistakes<'t> {
    pub text: &'t str,
    /// Each with its byte offset.
    pub found: Vec<(usize, String)>,
}

impl<'t> Mistakes<'t> {
    pub const fn of(text: &'t str) -> Self {
        Self {
            text,
            found: Vec::new(),
        }
    }

    pub fn add(&mut self, at: usize, what: String) {
        self.found.push((at, what));
    }

    /// Returns the text of a value as it was written, or its beginning.
    fn written(&self, span: core::ops::Range<usize>) -> String {
        const MOST: usize = 40;
        let text = self.text.get(span).unwrap_or_default();
        let line = text.lines().next().unwrap_or_default();
        let short: String = line.chars().take(MOST).collect();
        if short.len() < text.len() {
            short + "..."
        } else {
            short
        }
    }
}

/// Reads a table. The mistakes are added to `mistakes`; the keys that they concern keep their defaults.
pub(crate) fn read<T: Keyed>(table: &DeTable<'_>, at: usize, mistakes: &mut Mistakes<'_>) -> T {
    let read = read_present(table, mistakes);
    for key in T::KEYS.iter().filter(|key| key.required) {
        if !table.iter().any(|(name, _)| name.get_ref() == key.name) {
            let what = format!("{} needs {}: {}", T::TABLE, key.name, key.form);
            mistakes.add(at, what);
        }
    }
    read
}

/// Reads a list of tables, such as those of `[[td.cpuid]]`. Returns `None` if the value is not one.
pub(crate) fn read_list<T: Keyed>(
    value: &DeValue<'_>,
    mistakes: &mut Mistakes<'_>,
) -> Option<Vec<T>> {
    let tables = value.as_array()?.iter().map(|entry| {
        let table = entry.get_ref().as_table()?;
        let at = start_of(table).unwrap_or(entry.span().start);
        Some(read(table, at, mistakes))
    });
    tables.collect()
}

/// Shows a list of tables, unless it is empty.
pub(crate) fn show_list<T: Keyed>(list: &[T]) -> Option<String> {
    let tables: Vec<_> = list.iter().map(T::inline).collect();
    (!tables.is_empty()).then(|| format!("[{}]", tables.join(", ")))
}

/// Reads the keys that a table has.
pub(crate) fn read_present<T: Keyed>(table: &DeTable<'_>, mistakes: &mut Mistakes<'_>) -> T {
    let mut read = T::blank();
    for (name, value) in table.iter() {
        let start = name.span().start;
        let Some(key) = T::key(name.get_ref()) else {
            let unknown = unknown::<T>(name.get_ref());
            mistakes.add(start, unknown);
            continue;
        };
        if (key.set)(&mut read, value.get_ref()).is_some() {
            continue;
        }
        let before = mistakes.found.len();
        if let Some(inside) = key.inside {
            inside(value.get_ref(), mistakes);
        }
        if mistakes.found.len() == before {
            let written = mistakes.written(value.span());
            let written = if key.secret { "not valid" } else { &written };
            let what = format!("{} is {written}; it must be {}", key.name, key.form);
            mistakes.add(value.span().start, what);
        }
    }
    read
}

/// Says that a table has no such key, and why not or which it has.
pub(crate) fn unknown<T: Keyed>(name: &str) -> String {
    let mut missed = T::MISSED.iter();
    if let Some(missed) = missed.find(|missed| missed.names.contains(&name)) {
        return format!("{name} is not a key of {}: {}", T::TABLE, missed.why);
    }
    let short: String = name.chars().take(40).collect();
    let names: Vec<_> = T::KEYS.iter().map(|key| key.name).collect();
    format!(
        "{short} is not a key of {}; its keys are {}",
        T::TABLE,
        names.join(", ")
    )
}

/// Returns the offset of the first key of a table.
pub(crate) fn start_of(table: &DeTable<'_>) -> Option<usize> {
    table.iter().map(|(name, _)| name.span().start).min()
}

pub(crate) fn text(value: &DeValue<'_>) -> Option<String> {
    value.as_str().map(ToOwned::to_owned)
}

pub(crate) fn number(value: &DeValue<'_>, range: RangeInclusive<u64>) -> Option<u64> {
    let number = value.as_integer()?;
    let number = u64::from_str_radix(number.as_str(), number.radix()).ok()?;
    range.contains(&number).then_some(number)
}

/// Returns the value whose word this is.
pub(crate) fn choice<T: Copy>(value: &DeValue<'_>, words: &[(&str, T)]) -> Option<T> {
    let word = value.as_str()?;
    words
        .iter()
        .find(|(name, _)| *name == word)
        .map(|pair| pair.1)
}

/// Returns the word of a value in quotes, unless the value is the default.
pub(crate) fn chosen<T: Copy + PartialEq>(
    value: T,
    default: T,
    words: &[(&str, T)],
) -> Option<String> {
    let (word, _) = words.iter().find(|pair| pair.1 == value)?;
    (value != default).then(|| format!("\"{word}\""))
}

/// Shows a value as it is, unless it is the default.
pub(crate) fn plain<T: PartialEq + core::fmt::Display>(value: T, default: T) -> Option<String> {
    (value != default).then(|| format!("{value}"))
}

/// Returns a TOML string of a text.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\U{:08X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted + "\""
}
