//! The log: `log` and `dmesg`.

use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use core::fmt::{self, Write};

use log::LevelFilter;
use serde::Serialize;

use crate::{
    argument::{Args, Optional, Required},
    command::{Class, Command, Context},
    error::Error,
    host::LogRecord,
    reply::{Reply, Text},
    table::Count,
};

const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];

const LEVEL: Optional<String> = Required::choice("LEVEL", LEVELS).optional();

pub const COMMANDS: &[Command] = &[
    Command {
        name: "log",
        class: Class::Host,
        args: &[LEVEL.arg],
        summary: "Show or set the log level",
        help: "LEVEL is off, error, warn, info, debug or trace; each includes those before it. \"dmesg\" shows the \
               log.",
        run: log,
    },
    Command {
        name: "dmesg",
        class: Class::Read,
        args: &[LEVEL.arg],
        summary: "Show the log",
        help: "Shows the records in the log buffer, oldest first: seconds since boot, CPU, level, source and \
               message. With LEVEL, only records at that level or more serious.",
        run: dmesg,
    },
];

fn level(args: &Args) -> Option<LevelFilter> {
    args.given(LEVEL)?.parse().ok()
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Level {
    level: String,
}

fn log(context: &mut Context<'_>, args: &Args) -> Result<Reply, Error> {
    if let Some(level) = level(args) {
        context.host.set_log_level(level);
    }
    let level = context.host.log_level().as_str().to_ascii_lowercase();
    Ok(Reply::new(Level { level }))
}

impl Text for Level {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "log level {}", self.level)
    }
}

/// A copy of a record, which outlives the ring's lock.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Kept {
    us: u64,
    cpu: u32,
    level: String,
    target: String,
    message: String,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Records {
    lost: u64,
    records: Vec<Kept>,
}

fn dmesg(context: &mut Context<'_>, args: &Args) -> Result<Reply, Error> {
    let most = level(args).unwrap_or(LevelFilter::Trace);
    let mut records = Vec::new();
    let lost = context.host.log_records(&mut |record: &LogRecord<'_>| {
        if record.level <= most {
            records.push(Kept {
                us: record.us,
                cpu: record.cpu,
                level: record.level.as_str().to_ascii_lowercase(),
                target: record.target.to_string(),
                message: record.message.to_string(),
            });
        }
    });
    Ok(Reply::new(Records { lost, records }))
}

impl Text for Records {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        if self.lost > 0 {
            let records = Count(self.lost as usize, "older record");
            writeln!(out, "(lost: {records})")?;
        }
        for Kept {
            us,
            cpu,
            level,
            target,
            message,
        } in &self.records
        {
            let (s, us) = (us / 1_000_000, us % 1_000_000);
            writeln!(
                out,
                "[{s:5}.{us:06}] cpu{cpu} {level:<5} {target}: {message}"
            )?;
        }
        Ok(())
    }
}
