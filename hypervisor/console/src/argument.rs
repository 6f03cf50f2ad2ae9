//! Arguments of commands: the values that they take, and the words of a line that give them.
//!
//! A command names each of its arguments once, as a [`Required`] or an [`Optional`] of the type of its value. The
//! command's table shows the argument, and its handler asks [`Args`] for the value by the same name.

use alloc::{
    borrow::ToOwned,
    string::{String, ToString},
    vec::Vec,
};

use super::{error::Error, spelling::shorten};

/// One argument of a command.
#[derive(Clone, Copy, Debug)]
pub struct Arg {
    /// The argument's name in help and in errors.
    pub name: &'static str,
    /// The kind of value that it takes.
    pub kind: Kind,
    /// True if the argument may be left out.
    pub optional: bool,
}

/// The kind of value that an argument takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A physical address, hexadecimal with `0x` or decimal.
    Address,
    /// A number, decimal or hexadecimal with `0x`.
    Number,
    /// A number from the first of these to the second.
    Range(u64, u64),
    /// A size such as `256M` or `1G`.
    Size,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A TD, by its number or its name.
    Td,
    /// A PCI function, by its address.
    PciFunction,
    /// A network, by its name.
    Network,
    /// The argument's own name, which begins with `--`. It may stand anywhere and be left out.
    Flag,
    /// The name of a command, which may be several words: always the last argument.
    Command,
    /// The rest of the line as it was typed: always the last argument, of a command without flags.
    Text,
    /// The same, and the audit trail shows it.
    Value,
    /// Any word.
    Word,
}

/// An argument that must be given. Its value is a `T`.
#[derive(Clone, Copy, Debug)]
pub struct Required<T> {
    /// The argument, for the command's table.
    pub arg: Arg,
    read: fn(&Value) -> Option<T>,
}

/// An argument that may be left out. Its value is a `T`.
#[derive(Clone, Copy, Debug)]
pub struct Optional<T> {
    /// The argument, for the command's table.
    pub arg: Arg,
    read: fn(&Value) -> Option<T>,
}

/// An argument that is given by its own name, or left out.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// The argument, for the command's table.
    pub arg: Arg,
}

/// The value of an argument.
#[derive(Debug)]
enum Value {
    Number(u64),
    Word(String),
}

impl Value {
    const fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Word(_) => None,
        }
    }

    fn word(&self) -> Option<String> {
        match self {
            Self::Number(_) => None,
            Self::Word(word) => Some(word.clone()),
        }
    }
}

impl Required<u64> {
    /// Creates a physical address.
    pub const fn address(name: &'static str) -> Self {
        Self::new(name, Kind::Address, Value::number)
    }

    /// Creates a number.
    pub const fn number(name: &'static str) -> Self {
        Self::new(name, Kind::Number, Value::number)
    }

    /// Creates a number from `least` to `most`.
    pub const fn within(name: &'static str, least: u64, most: u64) -> Self {
        Self::new(name, Kind::Range(least, most), Value::number)
    }

    /// Creates a size in bytes.
    pub const fn size(name: &'static str) -> Self {
        Self::new(name, Kind::Size, Value::number)
    }
}

impl Required<String> {
    /// Creates a number or name of a TD. The machine checks it when the command runs.
    pub const fn td(name: &'static str) -> Self {
        Self::new(name, Kind::Td, Value::word)
    }

    /// Creates an address of a PCI function. The machine checks it when the command runs.
    pub const fn pci_function(name: &'static str) -> Self {
        Self::new(name, Kind::PciFunction, Value::word)
    }

    /// Creates a name of a network. The machine checks it when the command runs.
    pub const fn network(name: &'static str) -> Self {
        Self::new(name, Kind::Network, Value::word)
    }

    /// Creates a choice among words.
    pub const fn choice(name: &'static str, words: &'static [&'static str]) -> Self {
        Self::new(name, Kind::Choice(words), Value::word)
    }

    /// Creates a text: the rest of the line. The audit trail does not show it.
    pub const fn text(name: &'static str) -> Self {
        Self::new(name, Kind::Text, Value::word)
    }

    /// Creates a text that is no secret: the rest of the line, which the audit trail shows.
    pub const fn value(name: &'static str) -> Self {
        Self::new(name, Kind::Value, Value::word)
    }

    /// Creates a word that the machine checks when the command runs.
    pub const fn word(name: &'static str) -> Self {
        Self::new(name, Kind::Word, Value::word)
    }

    /// Creates a name of a command.
    pub const fn command(name: &'static str) -> Self {
        Self::new(name, Kind::Command, Value::word)
    }
}

impl<T> Required<T> {
    const fn new(name: &'static str, kind: Kind, read: fn(&Value) -> Option<T>) -> Self {
        let optional = false;
        Self {
            arg: Arg {
                name,
                kind,
                optional,
            },
            read,
        }
    }

    /// Returns the same argument, but it may be left out.
    pub const fn optional(self) -> Optional<T> {
        Optional {
            arg: Arg {
                optional: true,
                ..self.arg
            },
            read: self.read,
        }
    }
}

impl Flag {
    /// Creates a flag. Its name begins with `--`.
    pub const fn new(name: &'static str) -> Self {
        Self {
            arg: Arg {
                name,
                kind: Kind::Flag,
                optional: true,
            },
        }
    }
}

/// The decoded arguments of a call.
#[derive(Debug)]
pub struct Args {
    command: &'static str,
    usage: String,
    values: Vec<(&'static str, Value)>,
    flags: Vec<&'static str>,
}

impl Args {
    /// Creates the arguments of a command of which none is decoded yet.
    pub(super) const fn of(command: &'static str, usage: String) -> Self {
        Self {
            command,
            usage,
            values: Vec::new(),
            flags: Vec::new(),
        }
    }

    /// Returns the value of an argument.
    ///
    /// # Errors
    /// [`Error::Missing`]. A command that has the argument is not called without it.
    pub fn get<T>(&self, wanted: Required<T>) -> Result<T, Error> {
        self.find(wanted.arg.name, wanted.read)
            .ok_or_else(|| self.missing(wanted.arg.name))
    }

    /// Returns the value of an argument, if it was given.
    pub fn given<T>(&self, wanted: Optional<T>) -> Option<T> {
        self.find(wanted.arg.name, wanted.read)
    }

    /// Returns true if the flag was given.
    pub fn has(&self, flag: Flag) -> bool {
        self.flags.contains(&flag.arg.name)
    }

    /// Returns the word that names a TD, if `args`, those of the command, have such an argument.
    pub fn td(&self, args: &[Arg]) -> Option<&str> {
        let arg = args.iter().find(|arg| matches!(arg.kind, Kind::Td))?;
        match self.values.iter().find(|(name, _)| *name == arg.name)? {
            (_, Value::Word(word)) => Some(word),
            (_, Value::Number(_)) => None,
        }
    }

    /// Returns the values of `args` as the audit trail shows them: without texts, which may be secret.
    pub fn recorded(&self, args: &[Arg]) -> String {
        let mut line = String::new();
        for (name, value) in &self.values {
            let kind = args.iter().find(|arg| arg.name == *name);
            let is_secret = kind.is_some_and(|arg| matches!(arg.kind, Kind::Text));
            line.push(' ');
            match value {
                _ if is_secret => line.push_str("..."),
                Value::Word(word) => line.push_str(word),
                Value::Number(number) => line.push_str(&number.to_string()),
            }
        }
        for flag in &self.flags {
            line.push(' ');
            line.push_str(flag);
        }
        line
    }

    fn find<T>(&self, name: &str, read: fn(&Value) -> Option<T>) -> Option<T> {
        let mut values = self.values.iter();
        let (_, value) = values.find(|(known, _)| *known == name)?;
        read(value)
    }

    pub fn missing(&self, arg: &'static str) -> Error {
        Error::Missing {
            command: self.command,
            usage: self.usage.clone(),
            arg,
        }
    }

    /// Adds a flag that was given.
    pub(super) fn add_flag(&mut self, name: &'static str) {
        self.flags.push(name);
    }

    /// Adds the command that was given as an argument.
    pub(super) fn add_command(&mut self, arg: &Arg, name: &str) {
        self.values.push((arg.name, Value::Word(name.to_string())));
    }

    /// Decodes the value of an argument and adds it.
    pub(super) fn add(&mut self, arg: &Arg, word: &str) -> Result<(), Error> {
        self.values.push((arg.name, arg.decode(word)?));
        Ok(())
    }
}

impl Arg {
    fn decode(&self, word: &str) -> Result<Value, Error> {
        match self.kind {
            Kind::Address => match self.number(word)? {
                address if address < 1 << 52 => Ok(Value::Number(address)),
                address => Err(Error::AddressTooWide(address)),
            },
            Kind::Number => self.number(word).map(Value::Number),
            Kind::Range(least, most) => match self.number(word)? {
                number if (least..=most).contains(&number) => Ok(Value::Number(number)),
                number => Err(Error::OutOfRange {
                    arg: self.name,
                    number,
                    range: (least, most),
                }),
            },
            Kind::Size => match config::bytes(word) {
                Some(bytes) => Ok(Value::Number(bytes)),
                None => Err(Error::NotASize {
                    arg: self.name,
                    word: shorten(word),
                }),
            },
            // Flags and names of commands were taken out of the line before.
            Kind::Td
            | Kind::PciFunction
            | Kind::Network
            | Kind::Flag
            | Kind::Command
            | Kind::Text
            | Kind::Value
            | Kind::Word => Ok(Value::Word(word.to_owned())),
            Kind::Choice(choices) if choices.contains(&word) => Ok(Value::Word(word.to_owned())),
            Kind::Choice(choices) => Err(Error::NotAChoice {
                arg: self.name,
                word: shorten(word),
                choices,
            }),
        }
    }

    fn number(&self, word: &str) -> Result<u64, Error> {
        let number = match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
            Some(digits) => u64::from_str_radix(&digits.replace('_', ""), 16),
            None => word.replace('_', "").parse(),
        };
        number.map_err(|_| Error::NotANumber {
            arg: self.name,
            word: shorten(word),
        })
    }
}
