//! The console itself: `json`, `history`, `clear`.

use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use core::fmt::{self, Write};

use serde::Serialize;

use crate::{
    argument::{Args, Required},
    command::{Class, Command, Context},
    error::Error,
    reply::{Reply, Text},
};

const STATE: Required<String> = Required::choice("STATE", &["on", "off"]);

pub const COMMANDS: &[Command] = &[
    Command {
        name: "json",
        class: Class::Read,
        args: &[STATE.arg],
        summary: "Answer in JSON, one object per line, for scripts",
        help: "While JSON is on, each line gets exactly one line in reply: a JSON object with \"cmd\", \"ok\", \
               \"protocol\" and either the report or \"code\" and \"error\". Nothing else is sent: no prompt, echo or log. Blank lines get no \
               reply. The replies to \"json on\" and \"json off\" are JSON objects, too.",
        run: json,
    },
    Command {
        name: "history",
        class: Class::Read,
        args: &[],
        summary: "List the lines entered",
        help: "Lists them oldest first, including this one. Up and Down recall them.",
        run: history,
    },
    Command {
        name: "clear",
        class: Class::Read,
        args: &[],
        summary: "Clear the screen",
        help: "Ctrl-L does the same and keeps the line being edited.",
        run: clear,
    },
];

#[derive(Serialize)]
struct Json {
    json: bool,
}

fn json(context: &mut Context<'_>, args: &Args) -> Result<Reply, Error> {
    let json = args.get(STATE)? == "on";
    context.session.json = json;
    Ok(Reply::new(Json { json }))
}

impl Text for Json {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "JSON is {}", if self.json { "on" } else { "off" })
    }
}

#[derive(Serialize)]
struct Lines {
    lines: Vec<String>,
}

fn history(context: &mut Context<'_>, _: &Args) -> Result<Reply, Error> {
    let lines = context
        .session
        .history
        .lines()
        .map(ToString::to_string)
        .collect();
    Ok(Reply::new(Lines { lines }))
}

impl Text for Lines {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        self.lines
            .iter()
            .try_for_each(|line| writeln!(out, "  {line}"))
    }
}

#[derive(Serialize)]
struct Cleared {}

fn clear(_: &mut Context<'_>, _: &Args) -> Result<Reply, Error> {
    Ok(Reply::new(Cleared {}).clearing_screen())
}

impl Text for Cleared {
    fn text(&self, _: &mut dyn Write) -> fmt::Result {
        Ok(())
    }
}
