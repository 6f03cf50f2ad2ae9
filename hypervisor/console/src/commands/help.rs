//! `help`.

use alloc::{string::String, vec::Vec};
use core::fmt::{self, Write};

use serde::Serialize;

use crate::{
    argument::{Args, Optional, Required},
    command::{Class, Command, Context},
    error::Error,
    reply::{Reply, Text},
    table::Table,
};

const COMMAND: Optional<String> = Required::command("COMMAND").optional();

pub const COMMANDS: &[Command] = &[Command {
    name: "help",
    class: Class::Read,
    args: &[COMMAND.arg],
    summary: "List the commands, or explain one",
    help: "Tab completes names and arguments. Up and Down recall earlier lines; Ctrl-A and Ctrl-E move to the start \
           and end of the line; Ctrl-W deletes a word, Ctrl-U to the start of the line, Ctrl-K to its end; Ctrl-C \
           discards the line; Ctrl-L clears the screen.",
    run: help,
}];

fn help(context: &mut Context<'_>, args: &Args) -> Result<Reply, Error> {
    Ok(match args.given(COMMAND) {
        Some(name) => match context.commands.named(&name) {
            Ok(command) => Reply::new(Explanation(entry(command))),
            // A word with which several commands begin.
            Err(_) => Reply::new(List {
                commands: context.commands.in_group(&name).map(entry).collect(),
            }),
        },
        None => Reply::new(List {
            commands: context.commands.all().map(entry).collect(),
        }),
    })
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Entry {
    usage: String,
    class: Class,
    summary: &'static str,
    help: &'static str,
}

fn entry(command: &'static Command) -> Entry {
    Entry {
        usage: command.usage(),
        class: command.class,
        summary: command.summary,
        help: command.help,
    }
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct List {
    commands: Vec<Entry>,
}

impl Text for List {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let mut table = Table::new(&["COMMAND", ""]);
        for command in &self.commands {
            table.row(&[&command.usage, &command.summary]);
        }
        write!(out, "{table}")
    }
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Explanation(Entry);

impl Text for Explanation {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let Entry {
            usage,
            class: _,
            summary,
            help,
        } = &self.0;
        write!(out, "{usage}\n  {summary}.\n\n")?;
        wrap(help, out)
    }
}

/// Wraps text at blanks so that each line fits a terminal's row.
fn wrap(text: &str, out: &mut dyn Write) -> fmt::Result {
    let mut column = 0;
    for word in text.split_ascii_whitespace() {
        if column > 0 && column + 1 + word.len() > 76 {
            out.write_char('\n')?;
            column = 0;
        }
        out.write_str(if column == 0 { "  " } else { " " })?;
        out.write_str(word)?;
        column += word.len() + 1;
    }
    out.write_char('\n')
}
