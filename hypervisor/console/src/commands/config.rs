//! The configuration: `config show`, `config check`.

use alloc::{format, string::String, vec::Vec};
use core::fmt::{self, Write};

use serde::Serialize;

use super::text::{TOML, begin};
use crate::{
    command::{Class, Command, Context},
    error::Error,
    host::Management,
    paste,
    reply::{Reply, Text},
};

pub const COMMANDS: &[Command] = &[
    Command {
        name: "config show",
        class: Class::Read,
        args: &[],
        summary: "Show the configuration that is in force",
        help: "Prints a seamark.toml that would give the same: the settings that are not the defaults, and all TDs as \
               they are defined now. A file that was put since the boot appears with its name as its path: save it \
               there. Values are those of the next start where a TD still runs with others.",
        run: |context, _| {
            Ok(Reply::new(Shown {
                toml: show(context.host),
            }))
        },
    },
    Command {
        name: "config check",
        class: Class::Read,
        args: &[TOML.arg],
        summary: "Check the text of a seamark.toml",
        help: "Paste the text, and end it with a line that has a single dot; Ctrl-C discards it. A script gives the \
               text as one JSON string. All mistakes are reported with their lines. Nothing is changed.",
        run: |context, args| match args.given(TOML) {
            Some(text) => check(context, &paste::given(&text)?),
            None => begin("config check", context, args),
        },
    },
];

/// The configuration that is in force.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Shown {
    toml: String,
}

impl Text for Shown {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        out.write_str(&self.toml)
    }
}

fn show(host: &dyn Management) -> String {
    let mut config = host.config();
    config.host.log_level = host.log_level().into();
    if let Ok(definitions) = host.definitions() {
        config.td = definitions.definitions();
        let put = definitions.files().files.into_iter();
        let put = put.filter(|file| file.from == "put" && file.arrived_bytes.is_none());
        config.file.extend(put.map(|file| config::File {
            path: file.name.clone(),
            name: file.name,
        }));
    }
    config.to_toml()
}

/// The outcome of a check.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Checked {
    mistakes: Vec<Mistake>,
    warnings: Vec<String>,
    /// The TDs that are in order.
    tds: Vec<String>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Mistake {
    line: usize,
    what: String,
}

fn check(context: &mut Context<'_>, text: &str) -> Result<Reply, Error> {
    let read = config::read(text.as_bytes());
    let cpus = context.host.cpus().len();
    let warnings = read.config.td.iter().filter_map(|td| td.warning(cpus));
    Ok(Reply::new(Checked {
        warnings: warnings.collect(),
        tds: read.config.td.iter().map(|td| td.name.clone()).collect(),
        mistakes: read
            .problems
            .into_iter()
            .map(|problem| Mistake {
                line: problem.line,
                what: problem.what,
            })
            .collect(),
    }))
}

impl Text for Checked {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        for Mistake { line, what } in &self.mistakes {
            writeln!(out, "line {line}: {what}")?;
        }
        for warning in &self.warnings {
            writeln!(out, "warning: {warning}")?;
        }
        let tds = match &*self.tds {
            [] => String::from("no TD"),
            names => format!("TD {}", names.join(", ")),
        };
        match self.mistakes.len() {
            0 => writeln!(out, "The text is in order, with {tds}."),
            1 => writeln!(out, "1 mistake; in order: {tds}."),
            n => writeln!(out, "{n} mistakes; in order: {tds}."),
        }
    }
}
