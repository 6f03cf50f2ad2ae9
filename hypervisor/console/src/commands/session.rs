//! The console itself: `json`, `history`, `clear`.

use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use core::fmt::{self, Write};

use serde::Serialize;

use crate::{
    argument::{Args, Optional, Required},
    command::{Class, Command, Context},
    error::Error,
    reply::{Reply, Text, Then},
    screen::Size,
};

const ROWS: Optional<u64> = Required::number("ROWS").optional();
const COLUMNS: Optional<u64> = Required::number("COLUMNS").optional();

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
        name: "screen",
        class: Class::Read,
        args: &[ROWS.arg, COLUMNS.arg],
        summary: "Show or set the size of the terminal's screen",
        help: "Output that is longer than the screen pauses: Space shows the next screen, Enter the next line, \"q\" \
               leaves the rest out, and any other key shows the rest and begins the next line. The terminal is asked \
               for its size at the start, and by this command without ROWS; most answer. Nothing pauses while the \
               size is not known, as for a script. ROWS of 0 forgets it.",
        run: screen,
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

/// The size of the screen; `None` if it is not known.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Screen {
    rows: Option<u16>,
    columns: Option<u16>,
    pauses: bool,
    #[serde(skip)]
    asked: bool,
}

fn screen(context: &mut Context<'_>, args: &Args) -> Result<Reply, Error> {
    let session = &mut *context.session;
    let rows = args.given(ROWS);
    match rows {
        None => {}
        Some(0) => session.size = None,
        Some(rows) => {
            let columns = args.given(COLUMNS).filter(|columns| *columns > 0);
            let columns = columns.unwrap_or(Size::USUAL.columns.into());
            let size = Size::new(rows, columns).ok_or(Error::NoSize { rows, columns })?;
            session.size = Some(size);
        }
    }
    let asked = rows.is_none() && session.is_interactive();
    let reply = Reply::new(Screen {
        rows: session.size.map(|size| size.rows),
        columns: session.size.map(|size| size.columns),
        pauses: session.size.is_some(),
        asked,
    });
    Ok(if asked {
        reply.then(Then::Measure)
    } else {
        reply
    })
}

impl Text for Screen {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        match (self.rows, self.columns) {
            (Some(rows), Some(columns)) => {
                writeln!(
                    out,
                    "{rows} rows of {columns} columns; longer output pauses"
                )
            }
            // The terminal's answer comes in a moment.
            _ if self.asked => writeln!(out, "the size is not known; the terminal is asked for it"),
            _ => writeln!(out, "the size is not known; no output pauses"),
        }
    }
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Cleared {}

fn clear(_: &mut Context<'_>, _: &Args) -> Result<Reply, Error> {
    Ok(Reply::new(Cleared {}).then(Then::Clear))
}

impl Text for Cleared {
    fn text(&self, _: &mut dyn Write) -> fmt::Result {
        Ok(())
    }
}
