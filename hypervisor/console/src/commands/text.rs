//! Commands whose argument is a text of several lines: an operator pastes it, a script gives it on the line.

use alloc::string::String;
use core::fmt::{self, Write};

use crate::{
    argument::{Args, Optional, Required},
    command::Context,
    error::Error,
    paste::Paste,
    reply::{Reply, Text},
};

/// The text, as the argument of a script.
pub const TOML: Optional<String> = Required::text("TOML").optional();

/// Asks for the text of `command`. A script must give it on the command's line.
pub fn begin(
    command: &'static str,
    context: &mut Context<'_>,
    args: &Args,
) -> Result<Reply, Error> {
    if !context.session.is_interactive() {
        return Err(args.missing(TOML.arg.name));
    }
    context.session.paste = Some(Paste::new(command));
    Ok(Reply::new(Begun {}))
}

/// The operator is asked for a text.
#[derive(serde::Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Begun {}

impl Text for Begun {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        writeln!(
            out,
            "Paste the text. A line with a single dot ends it; Ctrl-C discards it."
        )
    }
}
