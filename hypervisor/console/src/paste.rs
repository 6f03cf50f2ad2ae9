//! Text of several lines that the operator pastes: it ends with a line that has nothing but a dot.

use alloc::{
    format,
    string::{String, ToString},
};

use super::{
    command::{Class, Context},
    error::Error,
    host::failure::Code,
    line::Spoilt,
    reply::Reply,
};

/// Maximum bytes of a text that is pasted.
pub const MOST: usize = 64 << 10;

/// The line that ends it.
pub const END: &str = ".";

/// What a text is for: runs the command that asked for it.
pub type Use = fn(&mut Context<'_>, &str) -> Result<Reply, Error>;

/// A text that is being pasted.
#[derive(Debug)]
pub struct Paste {
    /// The command that asked for it.
    pub command: &'static str,
    /// The command's class.
    pub class: Class,
    text: String,
    lines: usize,
    spoilt: Option<String>,
    take: Use,
}

impl Paste {
    /// Begins a text for `command`, which `take` uses.
    pub const fn new(command: &'static str, class: Class, take: Use) -> Self {
        Self {
            command,
            class,
            text: String::new(),
            lines: 0,
            spoilt: None,
            take,
        }
    }

    /// Adds a line.
    pub fn push(&mut self, line: &str, check: Result<(), Spoilt>) {
        self.lines += 1;
        let why = match check {
            Err(Spoilt::TooLong { most }) => Some(format!("is longer than {most} bytes")),
            Err(Spoilt::Foreign(byte)) => Some(format!(
                "has the byte {byte:#04x}, which is not printable ASCII"
            )),
            Ok(()) if self.text.len() + line.len() >= MOST => Some(format!(
                "goes beyond {} KiB, the most that can be pasted",
                MOST >> 10
            )),
            Ok(()) => None,
        };
        match why {
            Some(why) if self.spoilt.is_none() => {
                self.spoilt = Some(format!("line {} {why}; nothing was done", self.lines));
            }
            Some(_) => {}
            None => {
                self.text.push_str(line);
                self.text.push('\n');
            }
        }
    }

    /// Runs the command with the text.
    pub fn finish(self, context: &mut Context<'_>) -> Result<Reply, Error> {
        match self.spoilt {
            Some(why) => Err(Code::InvalidDefinition.because(why).into()),
            None => (self.take)(context, &self.text),
        }
    }
}

/// Returns a text that was given on the command's line: a JSON string, or the text itself.
pub fn given(word: &str) -> Result<String, Error> {
    if !word.starts_with('"') {
        return Ok(word.to_string());
    }
    serde_json::from_str(word).map_err(|_| {
        let why = "the text is not a JSON string: put it in quotes, with \\n between its lines";
        Code::InvalidArgument.because(why).into()
    })
}
