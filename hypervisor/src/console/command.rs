//! What a command is, and how a line becomes a call: everything is decoded and checked before anything is invoked.

use alloc::{
    borrow::ToOwned,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt;

use super::{Session, commands, host::Host, line::MAX_LINE, reply::Reply};

/// One row of the command table.
#[derive(Debug)]
pub struct Command {
    /// One or more words.
    pub name: &'static str,
    /// The arguments, in order; the optional ones last.
    pub args: &'static [Arg],
    /// One line, without a full stop.
    pub summary: &'static str,
    /// What there is to know beyond the summary.
    pub help: &'static str,
    /// Does it.
    pub run: fn(&mut Context<'_>, &Args) -> Result<Reply, Error>,
}

/// One argument of a command.
#[derive(Debug)]
pub struct Arg {
    /// Its name in help and in errors.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Whether it may be left out.
    pub optional: bool,
}

/// What an argument takes.
#[derive(Debug)]
pub enum Kind {
    /// A physical address, hexadecimal with `0x` or decimal.
    Address,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// The name of a command, which may be several words: always the last argument.
    Command,
}

/// What a handler works on.
pub struct Context<'a> {
    /// The machine.
    pub host: &'a mut dyn Host,
    /// The operator's session.
    pub session: &'a mut Session,
}

/// The decoded arguments of a call, those that were left out missing at the end.
#[derive(Debug, Default)]
pub struct Args(Vec<Value>);

#[derive(Clone, Copy, Debug)]
enum Value {
    Address(u64),
    Choice(&'static str),
    Command(&'static Command),
}

impl Args {
    /// The physical address that argument `index` gives.
    pub fn address(&self, index: usize) -> Option<u64> {
        match self.0.get(index)? {
            Value::Address(address) => Some(*address),
            _ => None,
        }
    }

    /// The word that argument `index` chose.
    pub fn choice(&self, index: usize) -> Option<&'static str> {
        match self.0.get(index)? {
            Value::Choice(word) => Some(word),
            _ => None,
        }
    }

    /// The command that argument `index` names.
    pub fn command(&self, index: usize) -> Option<&'static Command> {
        match self.0.get(index)? {
            Value::Command(command) => Some(command),
            _ => None,
        }
    }
}

/// Why a line was not run, or not to its end. Each says what is wrong, where, and what to do.
#[derive(Debug)]
pub enum Error {
    /// No command begins like this.
    Unknown {
        /// The word in its place.
        word: String,
        /// The name that is most like it.
        nearest: Option<&'static str>,
    },
    /// A required argument is not there.
    Missing {
        /// The command.
        command: &'static Command,
        /// The argument.
        arg: &'static str,
    },
    /// There are more words than the command takes.
    Unexpected {
        /// The command.
        command: &'static Command,
        /// The first word too many.
        word: String,
        /// The longer command that may have been meant.
        nearest: Option<&'static str>,
    },
    /// Not a number.
    NotAnAddress {
        /// The argument.
        arg: &'static str,
        /// What stands there.
        word: String,
    },
    /// A number that no physical address can have.
    AddressTooWide(u64),
    /// Not one of the words that there are.
    NotAChoice {
        /// The argument.
        arg: &'static str,
        /// What stands there.
        word: String,
        /// The words that there are.
        choices: &'static [&'static str],
    },
    /// The line did not fit.
    LineTooLong,
    /// The line had a byte in it that is not printable ASCII.
    ForeignByte(u8),
    /// The machine could not do it.
    Host(String),
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
            Self::Missing { command, arg } => {
                write!(
                    f,
                    "\"{}\" needs {arg}; usage: {}",
                    command.name,
                    command.usage()
                )
            }
            Self::Unexpected {
                command,
                word,
                nearest,
            } => {
                write!(f, "\"{}\" does not take \"{word}\"; ", command.name)?;
                match nearest {
                    Some(nearest) => write!(f, "did you mean \"{nearest}\"?"),
                    None => write!(f, "usage: {}", command.usage()),
                }
            }
            Self::NotAnAddress { arg, word } => {
                write!(
                    f,
                    "{arg} must be a number, but is \"{word}\"; write it as 0x1000 or as 4096"
                )
            }
            Self::AddressTooWide(address) => {
                write!(
                    f,
                    "{address:#x} is no physical address: those have at most 52 bits; check its digits"
                )
            }
            Self::NotAChoice { arg, word, choices } => {
                write!(
                    f,
                    "{arg} must be one of {}, but is \"{word}\"",
                    choices.join(", ")
                )
            }
            Self::LineTooLong => {
                write!(
                    f,
                    "the line is longer than {MAX_LINE} bytes and was not run; its beginning is in the history"
                )
            }
            Self::ForeignByte(byte) => {
                write!(
                    f,
                    "the line held the byte {byte:#04x}, which is not printable ASCII, and was not run; type it again"
                )
            }
            Self::Host(reason) => f.write_str(reason),
        }
    }
}

impl Command {
    /// The name and the arguments, optional ones in brackets.
    pub fn usage(&self) -> String {
        let mut usage = self.name.to_string();
        for arg in self.args {
            let (open, close) = if arg.optional { ("[", "]") } else { ("", "") };
            let words = match arg.kind {
                Kind::Choice(choices) if !arg.optional => choices.join("|"),
                _ => arg.name.to_string(),
            };
            usage.extend([" ", open, &words, close]);
        }
        usage
    }

    fn words(&self) -> usize {
        self.name.split(' ').count()
    }
}

/// A line that was decoded: what to invoke, with what.
#[derive(Debug)]
pub struct Call {
    /// The command.
    pub command: &'static Command,
    /// Its arguments.
    pub args: Args,
}

/// Decodes a line; `None` when it is blank.
///
/// # Errors
/// When it is no command, or its arguments are not what the command takes.
pub fn decode(line: &str) -> Result<Option<Call>, Error> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let Some(first) = words.first() else {
        return Ok(None);
    };
    let command = longest_match(&words).ok_or_else(|| Error::Unknown {
        word: shorten(first),
        nearest: nearest(&words, 1),
    })?;

    let mut given = words[command.words()..].iter();
    let mut args = Args::default();
    for arg in command.args {
        match given.next() {
            Some(_) if matches!(arg.kind, Kind::Command) => {
                args.0.push(Value::Command(named(
                    &words[command.words() + args.0.len()..],
                )?));
                given = [].iter();
            }
            Some(word) => args.0.push(arg.decode(word)?),
            None if arg.optional => break,
            None => {
                return Err(Error::Missing {
                    command,
                    arg: arg.name,
                });
            }
        }
    }
    match given.next() {
        None => Ok(Some(Call { command, args })),
        Some(word) => {
            let nearest = nearest(&words, command.words() + 1);
            Err(Error::Unexpected {
                command,
                word: shorten(word),
                nearest,
            })
        }
    }
}

impl Arg {
    fn decode(&self, word: &str) -> Result<Value, Error> {
        match &self.kind {
            Kind::Address => {
                let number = match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
                    Some(digits) => u64::from_str_radix(&digits.replace('_', ""), 16),
                    None => word.replace('_', "").parse(),
                };
                match number {
                    Ok(address) if address < 1 << 52 => Ok(Value::Address(address)),
                    Ok(address) => Err(Error::AddressTooWide(address)),
                    Err(_) => Err(Error::NotAnAddress {
                        arg: self.name,
                        word: shorten(word),
                    }),
                }
            }
            Kind::Choice(choices) => match choices.iter().find(|choice| **choice == word) {
                Some(choice) => Ok(Value::Choice(choice)),
                None => Err(Error::NotAChoice {
                    arg: self.name,
                    word: shorten(word),
                    choices,
                }),
            },
            Kind::Command => named(&[word]).map(Value::Command),
        }
    }
}

/// The command whose name is all of `words`.
fn named(words: &[&str]) -> Result<&'static Command, Error> {
    let name = words.join(" ");
    commands::all()
        .find(|command| command.name == name)
        .ok_or_else(|| Error::Unknown {
            word: shorten(&name),
            nearest: nearest(words, 1),
        })
}

fn longest_match(words: &[&str]) -> Option<&'static Command> {
    commands::all()
        .filter(|command| {
            command
                .name
                .split(' ')
                .eq(words.iter().copied().take(command.words()))
        })
        .max_by_key(|command| command.words())
}

/// The name of at least so many words that takes the fewest edits, if these are few enough to be a slip or what was
/// given is its beginning.
fn nearest(words: &[&str], at_least: usize) -> Option<&'static str> {
    let names = commands::all().filter(|command| command.words() >= at_least);
    let candidates = names.filter_map(|command| {
        let given = words
            .iter()
            .copied()
            .take(command.words())
            .collect::<Vec<_>>()
            .join(" ");
        let edits = edits(&given, command.name);
        let close = edits <= 1 + command.name.len() / 4
            || (given.len() > 1 && command.name.starts_with(&given));
        close.then_some((edits, command.name))
    });
    candidates.min().map(|(_, name)| name)
}

/// The Levenshtein distance.
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (above, left) in from.bytes().enumerate() {
        let mut diagonal = core::mem::replace(&mut row[0], above + 1);
        for (column, right) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

/// What an error repeats of the operator's words.
fn shorten(word: &str) -> String {
    match word.get(..32) {
        Some(start) if word.len() > 32 => start.to_owned() + "...",
        _ => word.to_string(),
    }
}

/// What Tab makes of the text before the cursor.
#[derive(Debug, PartialEq, Eq)]
pub enum Completion {
    /// Put this behind it.
    Insert(String),
    /// Nothing is certain; these words are possible.
    Choose(Vec<&'static str>),
}

/// Completes the last word of `text`, which is what stands before the cursor.
pub fn complete(text: &str) -> Completion {
    let start = text.rfind(' ').map_or(0, |space| space + 1);
    let (before, partial) = text.split_at(start);
    let before: Vec<&str> = before.split_ascii_whitespace().collect();

    let mut words = next_words(&before);
    words.retain(|word| word.starts_with(partial));
    match words.as_slice() {
        [] => Completion::Choose(Vec::new()),
        [only] => Completion::Insert(only[partial.len()..].to_owned() + " "),
        [first, others @ ..] => {
            let common = |other: &&str| {
                first
                    .bytes()
                    .zip(other.bytes())
                    .take_while(|(a, b)| a == b)
                    .count()
            };
            let shared = others.iter().map(common).min().unwrap_or(0);
            if shared > partial.len() {
                Completion::Insert(first[partial.len()..shared].to_owned())
            } else {
                Completion::Choose(words)
            }
        }
    }
}

/// Every word that can stand behind `before`, sorted.
fn next_words(before: &[&str]) -> Vec<&'static str> {
    let mut words = name_words(before);
    if let Some(command) = longest_match(before) {
        let given = &before[command.words()..];
        match command.args.get(given.len()).map(|arg| &arg.kind) {
            Some(Kind::Choice(choices)) => words.extend(*choices),
            Some(Kind::Command) => words.extend(name_words(given)),
            Some(Kind::Address) => {}
            // A name of several words goes on behind its first.
            None if matches!(
                command.args.last(),
                Some(Arg {
                    kind: Kind::Command,
                    ..
                })
            ) =>
            {
                words.extend(name_words(&given[command.args.len() - 1..]));
            }
            None => {}
        }
    }
    words.sort_unstable();
    words.dedup();
    words
}

/// The words that go on with a command's name behind `before`.
fn name_words(before: &[&str]) -> Vec<&'static str> {
    let next = |command: &'static Command| {
        let mut words = command.name.split(' ');
        before
            .iter()
            .all(|word| words.next() == Some(word))
            .then(|| words.next())
            .flatten()
    };
    commands::all().filter_map(next).collect()
}

#[cfg(test)]
mod tests {
    use alloc::string::{String, ToString};

    use super::{Completion, complete, decode, edits};

    fn error(line: &str) -> String {
        decode(line).expect_err("should not be a call").to_string()
    }

    #[test]
    fn the_longest_name_wins() {
        let call = decode("mem peek 0x1_0040")
            .expect("a call")
            .expect("not blank");
        assert_eq!(call.command.name, "mem peek");
        assert_eq!(call.args.address(0), Some(0x1_0040));
        assert_eq!(
            decode(" mem ")
                .expect("a call")
                .expect("not blank")
                .command
                .name,
            "mem"
        );
        assert!(decode(" \t ").expect("no error").is_none());
    }

    #[test]
    fn an_unknown_command_is_answered_with_the_nearest_name() {
        assert!(error("cpu").contains("did you mean \"cpus\"?"));
        assert!(error("hepl").contains("did you mean \"help\"?"));
        assert!(error("ver").contains("did you mean \"version\"?"));
        assert!(error("mem pek 0").contains("did you mean \"mem peek\"?"));
        assert_eq!(
            error("xyzzy"),
            "unknown command \"xyzzy\"; \"help\" lists the commands"
        );
    }

    #[test]
    fn arguments_are_checked_before_anything_is_done() {
        assert_eq!(
            error("mem peek"),
            "\"mem peek\" needs PA; usage: mem peek PA"
        );
        assert!(error("mem peek fred").starts_with("PA must be a number, but is \"fred\""));
        assert!(error("mem peek 0x10000000000000").contains("at most 52 bits"));
        assert!(error("mem peek 99999999999999999999").starts_with("PA must be a number"));
        assert_eq!(
            error("json maybe"),
            "STATE must be one of on, off, but is \"maybe\""
        );
        assert_eq!(error("json"), "\"json\" needs STATE; usage: json on|off");
        assert_eq!(
            error("cpus now"),
            "\"cpus\" does not take \"now\"; usage: cpus"
        );
        assert!(error("help me").contains("unknown command \"me\""));
    }

    #[test]
    fn an_error_never_repeats_a_whole_screen_of_input() {
        assert!(error(&"y".repeat(1000)).len() < 120);
    }

    #[test]
    fn tab_completes_names_choices_and_names_as_arguments() {
        assert_eq!(complete("vers"), Completion::Insert("ion ".into()));
        assert_eq!(complete("mem "), Completion::Insert("peek ".into()));
        assert_eq!(complete("log in"), Completion::Insert("fo ".into()));
        assert_eq!(complete("help mem p"), Completion::Insert("eek ".into()));
        assert_eq!(complete("json o"), Completion::Choose(["off", "on"].into()));
        assert_eq!(complete("nothing like it"), Completion::Choose([].into()));
        assert_eq!(complete("mem peek "), Completion::Choose([].into()));
    }

    #[test]
    fn the_distance_is_levenshtein_s() {
        for (from, to, distance) in [
            ("", "", 0),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("mem", "mem", 0),
        ] {
            assert_eq!(edits(from, to), distance);
            assert_eq!(edits(to, from), distance);
        }
    }
}
