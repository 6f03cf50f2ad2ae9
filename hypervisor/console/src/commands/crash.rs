//! The last crash: `crash show`, `crash drop`.

use core::fmt::{self, Write};

use serde::Serialize;

use crate::{
    argument::Args,
    command::{Class, Command, Context},
    error::Error,
    host::crash::Crash,
    reply::{Reply, Text},
    table::Count,
};

pub const COMMANDS: &[Command] = &[
    Command {
        name: "crash show",
        class: Class::Read,
        args: &[],
        summary: "Show the report of the last crash",
        help: "Shows the report that the hypervisor left when it last crashed, and where the machine kept it over the \
               reset: in variables of the UEFI firmware, in the error records of ACPI's ERST, or in memory. Addresses \
               are offsets into the image of the program that crashed. It is kept until \"crash drop\", or until the \
               next crash.",
        run: show,
    },
    Command {
        name: "crash drop",
        class: Class::Host,
        args: &[],
        summary: "Forget the last crash",
        help: "Removes the report from every place that kept it, and counts crashes from 0 again.",
        run: drop_last,
    },
];

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Shown {
    crashes: u32,
    crash: Option<Crash>,
}

fn show(context: &mut Context<'_>, _: &Args) -> Result<Reply, Error> {
    Ok(Reply::new(Shown {
        crashes: context.host.boot().crashes,
        crash: context.host.last_crash(),
    }))
}

impl Text for Shown {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let Some(crash) = &self.crash else {
            return writeln!(out, "No crash is on record.");
        };
        writeln!(
            out,
            "{} since the last \"crash drop\". The last one, kept in {}:",
            Count(self.crashes as usize, "crash"),
            crash.kept_in.join(", ")
        )?;
        // Without the word that begins each line on the port, so that nobody takes this for a crash.
        for line in &crash.lines {
            writeln!(out, "  {}", line.strip_prefix("crash: ").unwrap_or(line))?;
        }
        match crash.missing_bytes {
            0 => Ok(()),
            missing => writeln!(out, "{missing} bytes of it are lost."),
        }
    }
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Dropped {
    dropped: u32,
}

fn drop_last(context: &mut Context<'_>, _: &Args) -> Result<Reply, Error> {
    let dropped = context.host.boot().crashes;
    context.host.drop_crash()?;
    Ok(Reply::new(Dropped { dropped }))
}

impl Text for Dropped {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        match self.dropped {
            0 => writeln!(out, "No crash is on record; nothing to do."),
            count => writeln!(out, "Dropped: {}.", Count(count as usize, "crash")),
        }
    }
}
