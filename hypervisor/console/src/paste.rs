//! Text of several lines that the operator pastes: it ends with a line that has nothing but a dot.

use alloc::{
    format,
    string::{String, ToString},
};

use super::{error::Error, host::failure::Code, line::Spoilt};

/// Maximum bytes of a text that is pasted.
pub const MOST: usize = 64 << 10;

/// The line that ends it.
pub const END: &str = ".";

/// A text that is being pasted.
#[derive(Debug)]
pub struct Paste {
    /// The command that asked for it.
    command: &'static str,
    text: String,
    lines: usize,
    spoilt: Option<String>,
}

impl Paste {
    /// Begins a text for `command`, whose only argument it is.
    pub const fn new(command: &'static str) -> Self {
        Self {
            command,
            text: String::new(),
            lines: 0,
            spoilt: None,
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

    /// Returns the command's line with the text, as a script would write it.
    ///
    /// # Errors
    /// A line of the text can't be used.
    pub fn finish(self) -> Result<String, Error> {
        match self.spoilt {
            Some(why) => Err(Code::InvalidDefinition.because(why).into()),
            None => Ok(format!(
                "{} {}",
                self.command,
                serde_json::Value::from(self.text)
            )),
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
