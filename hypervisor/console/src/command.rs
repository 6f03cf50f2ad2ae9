//! Commands, and the decoding of a line into a call. Everything is decoded and checked before anything is invoked.

use alloc::{
    string::{String, ToString},
    vec::Vec,
};

use serde::{Serialize, Serializer};

use super::{
    argument::{Arg, Args, Kind},
    error::Error,
    host::Management,
    reply::Reply,
    session::Session,
    spelling::{edits, shorten},
};

/// The most that a command does: the right that a channel needs to run it. Each class includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Shows the state of the host and of TDs, or changes the session. Shows nothing of what is inside a TD.
    Read,
    /// Acts on the one TD that it names, within what that TD was given, or shows what is inside it. A TD may be
    /// allowed to do it to itself.
    OwnTd,
    /// Acts on a TD in a way that concerns others: takes resources of the host, defines or changes a TD, or makes the
    /// host work for it.
    Td,
    /// Acts on the host.
    Host,
}

impl Class {
    /// Returns the name, as in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::OwnTd => "own-td",
            Self::Td => "td",
            Self::Host => "host",
        }
    }
}

impl Serialize for Class {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// One row of the command table.
#[derive(Debug)]
pub struct Command {
    /// One or more words.
    pub name: &'static str,
    /// The right that it needs.
    pub class: Class,
    /// The arguments, in order; the optional ones last.
    pub args: &'static [Arg],
    /// One line, without a full stop.
    pub summary: &'static str,
    /// Details beyond the summary.
    pub help: &'static str,
    /// Runs the command.
    pub run: fn(&mut Context<'_>, &Args) -> Result<Reply, Error>,
}

/// The state that a handler works on.
pub struct Context<'a> {
    /// All commands.
    pub commands: Commands,
    /// The machine.
    pub host: &'a mut dyn Management,
    /// The operator's session.
    pub session: &'a mut Session,
}

impl Command {
    /// Returns the name and the arguments, optional ones in brackets.
    pub fn usage(&self) -> String {
        let mut usage = self.name.to_string();
        for arg in self.args {
            let (open, close) = match arg.kind {
                Kind::Flag => ("[", "]"),
                _ if arg.optional => ("[", "]"),
                _ => ("", ""),
            };
            let words = match arg.kind {
                Kind::Choice(choices) if !arg.optional => choices.join("|"),
                _ => arg.name.to_string(),
            };
            usage.extend([" ", open, &words, close]);
        }
        usage
    }

    pub(super) fn words(&self) -> usize {
        self.name.split(' ').count()
    }

    /// Returns the arguments whose place in the line matters: all but the flags.
    pub(super) fn positional(&self) -> impl Iterator<Item = &'static Arg> {
        self.args
            .iter()
            .filter(|arg| !matches!(arg.kind, Kind::Flag))
    }

    /// Returns how many of a line's first `count` words are no part of a text, which may have any words.
    fn before_text(&self, count: usize) -> usize {
        let text = self
            .positional()
            .position(|arg| matches!(arg.kind, Kind::Text));
        text.map_or(count, |at| count.min(self.words() + at))
    }

    pub(super) fn flag(&self, word: &str) -> Option<&'static str> {
        let mut flags = self
            .args
            .iter()
            .filter(|arg| matches!(arg.kind, Kind::Flag));
        flags.find(|arg| arg.name == word).map(|arg| arg.name)
    }
}

/// Words that other consoles know, and what to do here.
const FOREIGN: &[(&[&str], &str)] = &[
    (
        &["exit", "quit", "logout", "bye", "q"],
        "the console has no end: close your terminal, or under cargo xtask run type Ctrl-A x; \"poweroff\" switches the \
         machine off",
    ),
    (
        &["?", "h", "man", "commands"],
        "\"help\" lists the commands, and Tab shows what can follow",
    ),
    (&["ls", "list", "ps"], "\"td list\" lists the TDs"),
    (
        &["start", "stop", "shutdown", "kill"],
        "\"help td\" lists what can be done with a TD",
    ),
];

fn second_word(command: &'static Command) -> Option<&'static str> {
    command.name.split(' ').nth(1)
}

/// A decoded line: a command and its arguments.
#[derive(Debug)]
pub struct Call {
    /// The command.
    pub command: &'static Command,
    /// The command's arguments.
    pub args: Args,
}

/// The commands, in groups, in the order in which `help` shows them.
#[derive(Clone, Copy, Debug)]
pub struct Commands(pub &'static [&'static [Command]]);

impl Commands {
    /// Iterates over every command.
    pub fn all(self) -> impl Iterator<Item = &'static Command> {
        self.0.iter().copied().flatten()
    }

    /// Decodes a line. Returns `None` if it is blank.
    ///
    /// # Errors
    /// The line is no command, or its arguments are not what the command takes.
    pub fn decode(self, line: &str) -> Result<Option<Call>, Error> {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if words.is_empty() {
            return Ok(None);
        }
        let command = self.longest_match(&words);
        let plain = command.map_or(words.len(), |command| command.before_text(words.len()));
        if words[..plain].iter().any(|word| word.contains(';')) {
            return Err(Error::Semicolon);
        }
        let command = command.ok_or_else(|| self.unknown(&words))?;

        let mut args = Args::of(command.name, command.usage());
        let mut left = words[command.words()..].to_vec();
        left.retain(|word| {
            let flag = command.flag(word);
            if let Some(flag) = flag {
                args.add_flag(flag);
            }
            flag.is_none()
        });
        // A command that takes a text has no flags, so that none was taken out of the line.
        let plain = plain.saturating_sub(command.words()).min(left.len());
        if let Some(word) = left[..plain].iter().find(|word| word.starts_with("--")) {
            return Err(self.unexpected(command, word, &words));
        }
        let mut given = &left[..];
        for arg in command.positional() {
            match given {
                [_, ..] if matches!(arg.kind, Kind::Text | Kind::Value) => {
                    args.add(arg, after(line, words.len() - given.len()))?;
                    given = &[];
                }
                [_, ..] if matches!(arg.kind, Kind::Command) => {
                    args.add_command(arg, self.name_of(&given.join(" "))?);
                    given = &[];
                }
                [word, rest @ ..] => {
                    args.add(arg, word)?;
                    given = rest;
                }
                [] if arg.optional => break,
                [] => return Err(args.missing(arg.name)),
            }
        }
        match given.first() {
            None => Ok(Some(Call { command, args })),
            Some(word) => Err(self.unexpected(command, word, &words)),
        }
    }

    fn unexpected(self, command: &'static Command, word: &str, words: &[&str]) -> Error {
        let is_flag = word.starts_with("--");
        Error::Unexpected {
            command: command.name,
            usage: command.usage(),
            word: shorten(word),
            nearest: (!is_flag)
                .then(|| self.nearest(words, command.words() + 1))
                .flatten(),
        }
    }

    /// Says that the words begin with no command: with part of a name of several words, with a word that other consoles
    /// know, or with none of these.
    fn unknown(self, words: &[&str]) -> Error {
        let word = words.first().copied().unwrap_or_default();
        match self.group(word) {
            Some(_) if self.nearest(words, 2).is_some_and(|_| words.len() > 1) => Error::Unknown {
                word: shorten(&words[..2].join(" ")),
                nearest: self.nearest(words, 2),
            },
            Some(group) => Error::Incomplete {
                group,
                next: self.in_group(group).filter_map(second_word).collect(),
            },
            None => match FOREIGN.iter().find(|(known, _)| known.contains(&word)) {
                Some((_, hint)) => Error::Foreign {
                    word: shorten(word),
                    hint,
                },
                None => Error::Unknown {
                    word: shorten(word),
                    nearest: self.nearest(words, 1),
                },
            },
        }
    }

    /// Returns the first word of the names that begin with `word`, if it is no command itself.
    fn group(self, word: &str) -> Option<&'static str> {
        let first = |command: &'static Command| command.name.split(' ').next();
        let mut firsts = self.all().filter_map(first);
        let group = firsts.find(|first| *first == word)?;
        self.all()
            .all(|command| command.name != group)
            .then_some(group)
    }

    /// Returns the commands whose names begin with this word.
    pub fn in_group(self, group: &str) -> impl Iterator<Item = &'static Command> {
        self.all()
            .filter(move |command| command.name.split(' ').next() == Some(group))
    }

    /// Returns the name of the command, or of the group of commands, that is called so.
    fn name_of(self, name: &str) -> Result<&'static str, Error> {
        match self.group(name) {
            Some(group) => Ok(group),
            None => self.named(name).map(|command| command.name),
        }
    }

    /// Returns true if the line's command takes the rest of the line as it is, bars and all.
    pub fn takes_text(self, line: &str) -> bool {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let command = self.longest_match(&words);
        command.is_some_and(|command| {
            let mut args = command.args.iter();
            args.any(|arg| matches!(arg.kind, Kind::Text | Kind::Value))
        })
    }

    /// Finds the command of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn named(self, name: &str) -> Result<&'static Command, Error> {
        self.all()
            .find(|command| command.name == name)
            .ok_or_else(|| self.unknown(&name.split(' ').collect::<Vec<_>>()))
    }

    /// Finds the command with the longest name that `words` begin with.
    pub fn longest_match(self, words: &[&str]) -> Option<&'static Command> {
        self.all()
            .filter(|command| {
                command
                    .name
                    .split(' ')
                    .eq(words.iter().copied().take(command.words()))
            })
            .max_by_key(|command| command.words())
    }

    /// Returns the name of the command that the line begins with, or the line's first word if it names no command.
    pub fn name_in(self, line: &str) -> &str {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match self.longest_match(&words) {
            Some(command) => command.name,
            None => words.first().copied().unwrap_or_default(),
        }
    }

    /// Finds the closest name of at least `at_least` words. It must be within a few edits, as a typing error is, or
    /// begin with what was given.
    fn nearest(self, words: &[&str], at_least: usize) -> Option<&'static str> {
        let names = self.all().filter(|command| command.words() >= at_least);
        let candidates = names.filter_map(|command| {
            let given = words
                .iter()
                .copied()
                .take(command.words())
                .collect::<Vec<_>>()
                .join(" ");
            let edits = edits(&given, command.name);
            // Half of the letters must be right: "foo" is not "boot".
            let close = (edits <= 1 + command.name.len() / 4 && edits * 2 <= given.len())
                || (given.len() > 1 && command.name.starts_with(&given));
            close.then_some((edits, command.name))
        });
        candidates.min().map(|(_, name)| name)
    }
}

/// Returns the line behind its first `words` words and the blanks after them.
fn after(line: &str, words: usize) -> &str {
    (0..words).fold(line.trim_ascii_start(), |rest, _| {
        let end = rest.find(|c: char| c.is_ascii_whitespace());
        rest[end.unwrap_or(rest.len())..].trim_ascii_start()
    })
}

#[cfg(test)]
mod tests {
    use alloc::string::{String, ToString};

    use super::{Call, Error};
    use crate::{
        argument::{Flag, Required},
        commands::ALL,
    };

    const TD: Required<String> = Required::td("TD");
    const DYNAMIC: Flag = Flag::new("--dynamic");

    fn decode(line: &str) -> Result<Option<Call>, Error> {
        ALL.decode(line)
    }

    fn error(line: &str) -> String {
        decode(line).expect_err("should not be a call").to_string()
    }

    #[test]
    fn the_longest_name_wins() {
        let call = decode("mem peek 0x1_0040")
            .expect("a call")
            .expect("not blank");
        assert_eq!(call.command.name, "mem peek");
        assert_eq!(call.args.get(Required::address("PA")).ok(), Some(0x1_0040));
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
    fn a_group_is_answered_with_its_commands() {
        let said = error("td");
        assert!(
            said.starts_with("\"td\" needs one of list, show, "),
            "{said}"
        );
        assert!(said.ends_with("; \"help td\" explains them"), "{said}");
        assert_eq!(error("td foo"), said);
        assert!(error("td lst").contains("did you mean \"td list\"?"));
        assert!(decode("help td").is_ok());
        assert_eq!(
            error("foo"),
            "unknown command \"foo\"; \"help\" lists the commands"
        );
    }

    #[test]
    fn words_of_other_consoles_are_answered_with_what_to_do() {
        for word in ["exit", "quit", "logout"] {
            assert!(error(word).contains("Ctrl-A x"), "{word}");
        }
        assert!(error("?").contains("\"help\" lists the commands"));
        assert!(error("ls").contains("\"td list\""));
    }

    #[test]
    fn a_semicolon_separates_nothing() {
        for line in [
            "td list; version",
            "td start hello;",
            "version ; boot",
            "foo;",
        ] {
            assert!(error(line).starts_with("\";\" separates nothing"), "{line}");
        }
    }

    #[test]
    fn a_text_may_have_any_words() {
        let call = decode("td type one ls; grep --color x")
            .expect("a call")
            .expect("not blank");
        assert_eq!(
            call.args.get(Required::text("TEXT")).ok().as_deref(),
            Some("ls; grep --color x")
        );
        assert!(error("td type one; ls").starts_with("\";\" separates nothing"));
        assert!(error("td type --color x").contains("does not take \"--color\""));
    }

    #[test]
    fn an_unknown_flag_is_named_wherever_it_stands() {
        for line in [
            "td destroy --foo open",
            "td destroy open --foo",
            "td destroy --dynamic --foo open",
            "version --foo",
        ] {
            let said = error(line);
            assert!(said.contains("does not take \"--foo\"; usage: "), "{said}");
        }
    }

    #[test]
    fn a_flag_stands_anywhere() {
        for line in ["td destroy --dynamic one", "td destroy one --dynamic"] {
            let call = decode(line).expect("a call").expect("not blank");
            assert!(call.args.has(DYNAMIC));
            assert_eq!(call.args.get(TD).ok().as_deref(), Some("one"));
        }
        let call = decode("td destroy 1").expect("a call").expect("not blank");
        assert!(!call.args.has(DYNAMIC));
        assert_eq!(
            error("td destroy --dynamic"),
            "\"td destroy\" needs TD; usage: td destroy [--dynamic] TD"
        );
    }

    #[test]
    fn sizes_have_a_unit() {
        let call = decode("td shrink one 256M")
            .expect("a call")
            .expect("not blank");
        assert_eq!(call.args.get(Required::size("SIZE")).ok(), Some(256 << 20));
        assert_eq!(
            error("td shrink one 256"),
            "SIZE must be a size, but is \"256\"; write it as 256M or as 1G"
        );
    }

    #[test]
    fn an_argument_that_a_command_does_not_have_is_missing() {
        let call = decode("td shrink one 256M")
            .expect("a call")
            .expect("not blank");
        let missing = call.args.get(Required::number("GPA")).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "\"td shrink\" needs GPA; usage: td shrink TD SIZE"
        );
        assert_eq!(call.args.given(Required::number("GPA").optional()), None);
    }

    #[test]
    fn an_error_never_repeats_a_whole_screen_of_input() {
        assert!(error(&"y".repeat(1000)).len() < 120);
    }
}
