//! The reasons why a line was not run, and suggestions for what the operator may have meant.

use alloc::{string::String, vec::Vec};
use core::fmt;

use super::{
    host::failure::{Code, Failure},
    line::Spoilt,
    spelling::{edits, shorten},
};

/// The reason why a line was not run, or not to its end. Each says what is wrong, where, and what to do.
#[derive(Debug)]
pub enum Error {
    /// No command begins with these words.
    Unknown {
        /// The unknown word.
        word: String,
        /// The most similar name.
        nearest: Option<&'static str>,
    },
    /// A word with which several commands begin, without a word that goes on.
    Incomplete {
        /// The word.
        group: &'static str,
        /// The words that go on.
        next: Vec<&'static str>,
    },
    /// A word of other consoles.
    Foreign {
        /// The word.
        word: String,
        /// The remedy.
        hint: &'static str,
    },
    /// The line contained a semicolon.
    Semicolon,
    /// The number is outside of its range.
    OutOfRange {
        /// The argument.
        arg: &'static str,
        /// The number that was given.
        number: u64,
        /// The smallest and the largest number.
        range: (u64, u64),
    },
    /// A required argument is missing.
    Missing {
        /// The command.
        command: &'static str,
        /// The command's usage.
        usage: String,
        /// The argument.
        arg: &'static str,
    },
    /// There are more words than the command takes.
    Unexpected {
        /// The command.
        command: &'static str,
        /// The command's usage.
        usage: String,
        /// The first word too many.
        word: String,
        /// The longer command that may have been meant.
        nearest: Option<&'static str>,
    },
    /// The argument is not a size.
    NotASize {
        /// The argument.
        arg: &'static str,
        /// The word that was given.
        word: String,
    },
    /// No TD has this number or name.
    NoSuchTd {
        /// The word that was given.
        word: String,
        /// The most similar name.
        nearest: Option<String>,
    },
    /// The argument is not a number.
    NotANumber {
        /// The argument.
        arg: &'static str,
        /// The word that was given.
        word: String,
    },
    /// The number exceeds every physical address.
    AddressTooWide(u64),
    /// The argument is not one of the allowed words.
    NotAChoice {
        /// The argument.
        arg: &'static str,
        /// The word that was given.
        word: String,
        /// The allowed words.
        choices: &'static [&'static str],
    },
    /// The line did not fit.
    LineTooLong {
        /// Bytes that it may have.
        most: usize,
    },
    /// The line contained a byte that is not printable ASCII.
    ForeignByte(u8),
    /// The screen has no such size.
    NoSize {
        /// Rows.
        rows: u64,
        /// Columns.
        columns: u64,
    },
    /// A backslash in a text has no meaning.
    NoEscape,
    /// A bar has no word behind it.
    NoFilter,
    /// The output of JSON mode can't be filtered.
    FilteredJson,
    /// The console is locked.
    Locked,
    /// The password was wrong; the microseconds until another one is read.
    WrongPassword(u64),
    /// The password was not read, because others were wrong; the microseconds until one is.
    TooEarly(u64),
    /// The machine did not run the command.
    Host(Failure),
}

impl From<Spoilt> for Error {
    fn from(spoilt: Spoilt) -> Self {
        match spoilt {
            Spoilt::TooLong { most } => Self::LineTooLong { most },
            Spoilt::Foreign(byte) => Self::ForeignByte(byte),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Host(failure)
    }
}

impl Error {
    /// Returns the kind of the error.
    pub const fn code(&self) -> Code {
        match self {
            Self::Unknown { .. } | Self::Incomplete { .. } | Self::Foreign { .. } => {
                Code::UnknownCommand
            }
            Self::Semicolon => Code::UnexpectedArgument,
            Self::Missing { .. } => Code::MissingArgument,
            Self::Unexpected { .. } => Code::UnexpectedArgument,
            Self::NotASize { .. }
            | Self::NotANumber { .. }
            | Self::AddressTooWide(_)
            | Self::OutOfRange { .. }
            | Self::NoSize { .. }
            | Self::NoEscape
            | Self::NotAChoice { .. } => Code::InvalidArgument,
            Self::NoSuchTd { .. } => Code::NoSuchTd,
            Self::NoFilter => Code::MissingArgument,
            Self::FilteredJson => Code::UnexpectedArgument,
            Self::Locked => Code::Locked,
            Self::WrongPassword(_) => Code::WrongPassword,
            Self::TooEarly(_) => Code::TooEarly,
            Self::LineTooLong { .. } => Code::LineTooLong,
            Self::ForeignByte(_) => Code::ForeignByte,
            Self::Host(failure) => failure.code,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { word, nearest } => match nearest {
                Some(nearest) => {
                    write!(
                        f,
                        "unknown command \"{word}\"; did you mean \"{nearest}\"? \"help\" lists the commands"
                    )
                }
                None => write!(f, "unknown command \"{word}\"; \"help\" lists the commands"),
            },
            Self::Incomplete { group, next } => write!(
                f,
                "\"{group}\" needs one of {}; \"help {group}\" explains them",
                next.join(", ")
            ),
            Self::Foreign { word, hint } => write!(f, "unknown command \"{word}\"; {hint}"),
            Self::Semicolon => write!(
                f,
                "\";\" separates nothing here, and nothing was run: enter one command on each line"
            ),
            Self::OutOfRange {
                arg,
                number,
                range: (from, to),
            } => write!(f, "{arg} must be {from} to {to}, but is {number}"),
            Self::Missing {
                command,
                usage,
                arg,
            } => write!(f, "\"{command}\" needs {arg}; usage: {usage}"),
            Self::Unexpected {
                command,
                usage,
                word,
                nearest,
            } => {
                write!(f, "\"{command}\" does not take \"{word}\"; ")?;
                match nearest {
                    Some(nearest) => write!(f, "did you mean \"{nearest}\"?"),
                    None => write!(f, "usage: {usage}"),
                }
            }
            Self::NotASize { arg, word } => {
                write!(
                    f,
                    "{arg} must be a size, but is \"{word}\"; write it as 256M or as 1G"
                )
            }
            Self::NoSuchTd { word, nearest } => match nearest {
                Some(nearest) => {
                    write!(
                        f,
                        "there is no TD \"{word}\"; did you mean \"{nearest}\"? \"td list\" lists them"
                    )
                }
                None => write!(f, "there is no TD \"{word}\"; \"td list\" lists them"),
            },
            Self::NotANumber { arg, word } => {
                write!(
                    f,
                    "{arg} must be a number, but is \"{word}\"; write it as 0x1000 or as 4096"
                )
            }
            Self::AddressTooWide(address) => {
                write!(
                    f,
                    "{address:#x} is not a physical address, which has at most 52 bits; check the digits"
                )
            }
            Self::NotAChoice { arg, word, choices } => {
                write!(
                    f,
                    "{arg} must be one of {}, but is \"{word}\"",
                    choices.join(", ")
                )
            }
            Self::LineTooLong { most } => {
                write!(f, "the line is longer than {most} bytes and was not run")
            }
            Self::ForeignByte(byte) => {
                write!(
                    f,
                    "the line held the byte {byte:#04x}, which is not printable ASCII, and was not run; type it again"
                )
            }
            Self::NoSize { rows, columns } => write!(
                f,
                "a screen has at least 5 rows of 20 columns, but not {rows} of {columns}; ROWS of 0 forgets the size"
            ),
            Self::NoEscape => f.write_str(
                "TEXT has a backslash before neither r, n, t, e, xNN nor another one; write a backslash as \\\\",
            ),
            Self::NoFilter => f.write_str("a filter needs a word behind its bar; write it as: dmesg | warn"),
            Self::FilteredJson => f.write_str(
                "a filter works on lines of text, and a reply in JSON is one object; leave the bar out",
            ),
            Self::Locked => f.write_str("the console is locked; \"unlock\" takes the password"),
            Self::WrongPassword(0) => f.write_str("the password is wrong; \"unlock\" takes another one"),
            Self::WrongPassword(us) => write!(
                f,
                "the password is wrong; \"unlock\" takes another one in {} s",
                us.div_ceil(1_000_000)
            ),
            Self::TooEarly(us) => write!(
                f,
                "the password was not read, because others were wrong; try again in {} s",
                us.div_ceil(1_000_000)
            ),
            Self::Host(failure) => failure.fmt(f),
        }
    }
}

/// Returns the error for a missing TD `word`, with the most similar of `names`.
pub fn no_such_td(word: &str, names: &[String]) -> Error {
    let near = names
        .iter()
        .map(|name| (edits(word, name), name))
        .filter(|(edits, name)| *edits <= 1 + name.len() / 4 || name.starts_with(word));
    Error::NoSuchTd {
        word: shorten(word),
        nearest: near.min().map(|(_, name)| name.clone()),
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::{String, ToString};

    use super::no_such_td;

    #[test]
    fn an_unknown_td_is_answered_with_the_nearest_name() {
        let names = ["hello", "smp"].map(String::from);
        let said = |word| no_such_td(word, &names).to_string();
        assert!(said("helo").contains("did you mean \"hello\"?"));
        assert!(said("h").contains("did you mean \"hello\"?"));
        assert!(!said("7").contains("did you mean"));
    }
}
