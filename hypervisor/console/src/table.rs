//! Aligned tables, lists of facts, and figures with their units.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt::{self, Display, Write};

/// Rows under a header. Each column is as wide as its widest cell. A column whose cells are all numbers is
/// right-aligned.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Creates a table with these columns and no rows.
    pub fn new(header: &[&str]) -> Self {
        Self {
            rows: [header.iter().map(ToString::to_string).collect()].into(),
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: &[&dyn Display]) {
        self.rows
            .push(cells.iter().map(|cell| cell.to_string()).collect());
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cells = |column: usize| self.rows.iter().filter_map(move |row| row.get(column));
        let layout: Vec<(usize, bool)> = (0..columns)
            .map(|column| {
                let width = cells(column)
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0);
                let number =
                    |cell: &String| cell == "-" || cell.starts_with(|c: char| c.is_ascii_digit());
                (width, cells(column).skip(1).all(number))
            })
            .collect();
        for row in &self.rows {
            let mut text = String::new();
            for (cell, (width, right)) in row.iter().zip(&layout) {
                if *right {
                    write!(text, "{cell:>width$}  ")?;
                } else {
                    write!(text, "{cell:<width$}  ")?;
                }
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

/// Facts, one a line: name and value.
#[derive(Default)]
pub struct Facts(Vec<(String, String)>);

impl Facts {
    /// Adds a fact.
    pub fn fact(&mut self, name: &str, value: impl Display) {
        self.0.push((name.to_string(), value.to_string()));
    }
}

impl Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .0
            .iter()
            .map(|(name, _)| name.chars().count())
            .max()
            .unwrap_or(0);
        self.0
            .iter()
            .try_for_each(|(name, value)| writeln!(f, "{name:<width$}  {value}"))
    }
}

/// A number of bytes, shown in the largest binary unit that is not above it.
pub struct Bytes(pub u64);

impl Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        let Some((shift, unit)) = units.into_iter().find(|(shift, _)| self.0 >> shift != 0) else {
            return f.pad(&format!("{} B", self.0));
        };
        let (whole, rest) = (self.0 >> shift, self.0 & ((1 << shift) - 1));
        if rest == 0 {
            return f.pad(&format!("{whole} {unit}"));
        }
        // Rounded down, so that a figure never exceeds the real value.
        f.pad(&format!(
            "{whole}.{:02} {unit}",
            (u128::from(rest) * 100) >> shift
        ))
    }
}

/// Microseconds, shown in a readable unit.
pub struct Micros(pub u64);

impl Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.0;
        f.pad(&match us {
            0..1_000 => format!("{us} us"),
            1_000..1_000_000 => format!("{}.{:03} ms", us / 1_000, us % 1_000),
            _ => format!("{}.{:03} s", us / 1_000_000, us / 1_000 % 1_000),
        })
    }
}

/// Thousandths, shown in percent.
pub struct Permille(pub u64);

impl Permille {
    /// Returns the number that they are, with two digits.
    pub fn as_number(&self) -> String {
        format!("{}.{:02}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

impl Permille {
    /// Returns the percentage without its sign.
    pub fn in_percent(&self) -> String {
        format!("{}.{}", self.0 / 10, self.0 % 10)
    }
}

impl Display for Permille {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{} %", self.0 / 10, self.0 % 10))
    }
}

/// Microseconds since the start, shown in days, hours, minutes and seconds.
pub struct Uptime(pub u64);

impl Display for Uptime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0 / 1_000_000;
        let (days, s) = (s / 86_400, s % 86_400);
        if days > 0 {
            write!(f, "{} ", Count(days as usize, "day"))?;
        }
        write!(f, "{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    }
}

/// Seconds since 1970-01-01 00:00 UTC, shown as date and time in the Gregorian calendar.
pub struct Utc(pub u64);

impl Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut days, s) = (self.0 / 86_400, self.0 % 86_400);
        let leap = |year: u64| {
            year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
        };
        let mut year = 1970;
        while days >= 365 + u64::from(leap(year)) {
            days -= 365 + u64::from(leap(year));
            year += 1;
        }
        let february = 28 + u64::from(leap(year));
        let mut month = 1;
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            if days < length {
                break;
            }
            days -= length;
            month += 1;
        }
        write!(
            f,
            "{year}-{month:02}-{:02} {:02}:{:02}:{:02} UTC",
            days + 1,
            s / 3600,
            s / 60 % 60,
            s % 60
        )
    }
}

/// A number of things, with the right ending: "1 CPU", "4 CPUs".
pub struct Count(pub usize, pub &'static str);

impl Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ending = match self {
            Self(1, _) => "",
            Self(_, name) if name.ends_with("sh") || name.ends_with("ch") => "es",
            _ => "s",
        };
        f.pad(&format!("{} {}{ending}", self.0, self.1))
    }
}

/// Words in columns that fit a row of 80.
pub struct Columns<'a>(pub &'a [String]);

impl Display for Columns<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ROW: usize = 80;
        const GAP: usize = 2;
        let widths = || self.0.iter().map(|word| word.chars().count() + GAP);
        // The last word of a row needs no gap behind it.
        if widths().sum::<usize>() <= ROW + GAP {
            return writeln!(f, "{}", self.0.join("  "));
        }
        let width = widths().max().unwrap_or(GAP);
        for row in self.0.chunks(((ROW + GAP) / width).max(1)) {
            let cells = row.iter().map(|word| format!("{word:<width$}"));
            writeln!(f, "{}", cells.collect::<String>().trim_end())?;
        }
        Ok(())
    }
}

/// A value that may be missing, which is shown as "-".
pub struct Maybe<T>(pub Option<T>);

impl<T: Display> Display for Maybe<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.pad("-"),
        }
    }
}

/// A sentence cut to fit a table: whole words, and dots for the rest.
pub struct Short<'a>(pub &'a str);

/// Maximum length in characters of a [`Short`] sentence.
const SHORT: usize = 64;

impl Short<'_> {
    /// Returns true if the sentence is longer than what is shown.
    pub fn is_cut(&self) -> bool {
        self.0.chars().count() > SHORT
    }
}

impl Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_cut() {
            return f.pad(self.0);
        }
        let end = self.0.char_indices().nth(SHORT - 4);
        let start = &self.0[..end.map_or(0, |(at, _)| at)];
        let words = start.rsplit_once(' ').map_or(start, |(words, _)| words);
        f.pad(&format!("{} ...", words.trim_end_matches([';', ':', ','])))
    }
}

#[cfg(test)]
mod tests {
    use alloc::{
        format,
        string::{String, ToString},
        vec::Vec,
    };

    use super::{Bytes, Columns, Count, Facts, Maybe, Micros, Permille, Short, Table, Uptime, Utc};

    #[test]
    fn numbers_are_flush_right_and_words_flush_left() {
        let mut table = Table::new(&["CPU", "STATE", "NODE"]);
        table.row(&[&0, &"online", &Maybe(Some(1))]);
        table.row(&[&10, &"idle", &Maybe(None::<u32>)]);
        assert_eq!(
            table.to_string(),
            "CPU  STATE   NODE\n  0  online     1\n 10  idle       -\n"
        );
    }

    #[test]
    fn a_long_sentence_ends_with_a_word_and_dots() {
        let long =
            "TDH.MNG.CREATE: OPERAND_BUSY (0x80000200000000ba), KOT, 128 tries. Others are at it.";
        let short = Short(long).to_string();
        assert_eq!(
            short,
            "TDH.MNG.CREATE: OPERAND_BUSY (0x80000200000000ba), KOT, 128 ..."
        );
        assert_eq!(Short("it is busy").to_string(), "it is busy");
        assert!(Short(&"x".repeat(400)).to_string().len() <= 64);
    }

    #[test]
    fn words_that_do_not_fit_a_row_stand_in_columns() {
        let words =
            |count: usize| -> Vec<String> { (0..count).map(|i| format!("word{i}")).collect() };
        assert_eq!(Columns(&words(3)).to_string(), "word0  word1  word2\n");
        let many = words(40);
        let shown = Columns(&many).to_string();
        assert!(shown.lines().all(|line| line.len() <= 80), "{shown}");
        assert_eq!(shown.split_whitespace().collect::<Vec<_>>(), many);
        let long = ["x".repeat(100), "y".into()];
        assert_eq!(Columns(&long).to_string().lines().count(), 2);
    }

    #[test]
    fn times_are_shown_as_people_write_them() {
        assert_eq!(Uptime(3_723_000_000).to_string(), "01:02:03");
        assert_eq!(Uptime(90_000_000_000).to_string(), "1 day 01:00:00");
        for (seconds, date) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_827_696, "2000-02-29 12:34:56 UTC"),
            (1_795_651_199, "2026-11-25 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(Utc(seconds).to_string(), date);
        }
        assert_eq!(Permille(1005).to_string(), "100.5 %");
        assert_eq!(Permille(1259).as_number(), "1.25");
    }

    #[test]
    fn facts_stand_under_each_other() {
        let mut facts = Facts::default();
        facts.fact("a", 1);
        facts.fact("long", "two");
        assert_eq!(facts.to_string(), "a     1\nlong  two\n");
    }

    #[test]
    fn figures_have_the_unit_that_fits() {
        let bytes = [0, 1023, 4096, 3 << 20, (1 << 30) + (1 << 29), u64::MAX]
            .map(|bytes| Bytes(bytes).to_string());
        assert_eq!(
            bytes,
            [
                "0 B",
                "1023 B",
                "4 KiB",
                "3 MiB",
                "1.50 GiB",
                "16777215.99 TiB"
            ]
        );
        let times = [7, 1_500, 2_000_000, 61_042_000].map(|us| Micros(us).to_string());
        assert_eq!(times, ["7 us", "1.500 ms", "2.000 s", "61.042 s"]);
        assert_eq!(
            Count(1, "CPU").to_string() + ", " + &Count(2, "CPU").to_string(),
            "1 CPU, 2 CPUs"
        );
        let more = [Count(1, "batch"), Count(0, "batch"), Count(2, "crash")];
        assert_eq!(
            more.map(|count| count.to_string()),
            ["1 batch", "0 batches", "2 crashes"]
        );
    }
}
