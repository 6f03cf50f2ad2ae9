//! Replies: one report, shown as text for people or as one JSON object on one line for scripts.

use alloc::{boxed::Box, string::String};
use core::fmt::{self, Write};

use serde::Serialize;

use super::{error::Error, host::failure::Code};

/// The version of the JSON protocol. It grows when a program that reads replies would have to change: a field or a
/// code was removed, or changed its meaning. New fields, commands and codes do not count.
pub const PROTOCOL: u32 = 1;

/// The text form of a report. Lines end in `\n`.
pub trait Text {
    /// Writes the text.
    fn text(&self, out: &mut dyn Write) -> fmt::Result;
}

/// The output that follows a reply in text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The prompt.
    Prompt,
    /// A clear screen.
    Clear,
    /// The question for the size of the screen.
    Measure,
    /// A view of the whole screen instead of the reply.
    View,
}

/// The JSON form of a report. `docs/console-schema.json`, which a test compares with these types, describes it.
#[cfg(not(test))]
pub trait Described: Serialize {}
#[cfg(not(test))]
impl<T: Serialize> Described for T {}

/// The JSON form of a report, and its schema.
#[cfg(test)]
pub trait Described: Serialize + schemars::JsonSchema {}
#[cfg(test)]
impl<T: Serialize + schemars::JsonSchema> Described for T {}

/// The report of a command.
pub struct Reply {
    report: Box<dyn Report>,
    /// The output that follows the reply in text.
    pub then: Then,
}

impl Reply {
    /// Wraps `report`, which must serialise to a JSON object without the keys `cmd`, `ok`,
    /// `protocol`, `code` and `error`.
    pub fn new(report: impl Text + Described + 'static) -> Self {
        Self {
            report: Box::new(report),
            then: Then::Prompt,
        }
    }

    /// Returns the same reply, with what follows it.
    pub fn then(self, then: Then) -> Self {
        Self { then, ..self }
    }

    /// Writes the reply as text.
    pub fn text(&self, out: &mut dyn Write) -> fmt::Result {
        self.report.text(out)
    }

    /// Adds the schema of the report to `generator`, and returns it.
    #[cfg(test)]
    pub fn schema(&self, generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        self.report.schema(generator)
    }

    /// Returns the reply as one JSON object.
    pub fn json(&self, command: &str) -> String {
        self.report
            .json(command)
            .unwrap_or_else(|fault| failure_json(command, Code::Internal, &fault))
    }
}

/// Returns the failure of `command` as one JSON object.
pub fn error_json(command: &str, error: &Error) -> String {
    failure_json(command, error.code(), error)
}

fn failure_json(cmd: &str, code: Code, reason: &dyn fmt::Display) -> String {
    #[derive(Serialize)]
    struct Failure<'a> {
        cmd: &'a str,
        ok: bool,
        protocol: u32,
        code: Code,
        error: &'a str,
    }
    let reason = alloc::format!("{reason}");
    serde_json::to_string(&Failure {
        cmd,
        ok: false,
        protocol: PROTOCOL,
        code,
        error: &reason,
    })
    .unwrap_or_else(|_| {
        alloc::format!(
            "{{\"ok\":false,\"protocol\":{PROTOCOL},\"code\":\"{}\",\"error\":\"the reply can't be written as JSON\"}}",
            Code::Internal.name()
        )
    })
}

trait Report: Text {
    fn json(&self, command: &str) -> serde_json::Result<String>;

    #[cfg(test)]
    fn schema(&self, generator: &mut schemars::SchemaGenerator) -> schemars::Schema;
}

impl<T: Text + Described> Report for T {
    #[cfg(test)]
    fn schema(&self, generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        generator.subschema_for::<T>()
    }

    fn json(&self, cmd: &str) -> serde_json::Result<String> {
        #[derive(Serialize)]
        struct Success<'a, T> {
            cmd: &'a str,
            ok: bool,
            protocol: u32,
            #[serde(flatten)]
            report: &'a T,
        }
        serde_json::to_string(&Success {
            cmd,
            ok: true,
            protocol: PROTOCOL,
            report: self,
        })
    }
}

/// A writer that makes text fit for a terminal: `\n` becomes `\r\n`, and every other control character, which could
/// come from a log message or from firmware, becomes a readable escape.
pub struct Terminal<'a>(pub &'a mut dyn Write);

impl Write for Terminal<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(char::is_control) {
            let plain = part.trim_end_matches(char::is_control);
            self.0.write_str(plain)?;
            match part[plain.len()..].chars().next() {
                None => {}
                Some('\n') => self.0.write_str("\r\n")?,
                Some(control) => write!(self.0, "\\x{:02x}", u32::from(control))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;
    use core::fmt::Write;

    use super::{Terminal, Text};

    #[test]
    fn foreign_text_cannot_control_the_terminal() {
        let mut out = String::new();
        write!(Terminal(&mut out), "a\x1b[2J\n\n\x07\u{9b}b\r").expect("a string takes everything");
        assert_eq!(out, "a\\x1b[2J\r\n\r\n\\x07\\x9bb\\x0d");
    }

    #[test]
    fn a_report_that_is_no_json_object_is_an_error() {
        #[derive(serde::Serialize)]
        struct Number(u32);
        impl schemars::JsonSchema for Number {
            fn schema_name() -> alloc::borrow::Cow<'static, str> {
                "Number".into()
            }

            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                u32::json_schema(generator)
            }
        }
        impl Text for Number {
            fn text(&self, out: &mut dyn Write) -> core::fmt::Result {
                write!(out, "{}", self.0)
            }
        }
        let json = super::Reply::new(Number(1)).json("count");
        assert!(
            json.starts_with(
                "{\"cmd\":\"count\",\"ok\":false,\"protocol\":1,\"code\":\"internal\","
            ),
            "{json}"
        );
    }
}
