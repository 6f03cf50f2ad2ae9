//! The operator's console.
//!
//! The console is pure: it owns no device, waits for nothing and keeps only the line that is being edited, the lines
//! that were run before and the mode. The owner of the serial port owns a [`Console`] and
//!
//! 1. calls [`Console::start`] once, which greets and prints the first prompt;
//! 2. calls [`Console::feed`] for every byte that arrives, outside interrupt handlers, since the byte that ends a line
//!    runs the command;
//! 3. hands every line that is not a reply (a log record) to [`Console::notice`],
//! 4. calls [`Console::refresh`] whenever [`Console::has_news`]: the TD whose console is watched has written
//!    something.
//!
//! The output is bytes for a terminal: lines already end in `\r\n`. Any byte may come in, at any time.
//!
//! The line editor is the console's own. The crate `noline` (0.5) does not fit: it does not take bytes from its user
//! (`Line::advance` is private, its editors read by themselves and block), it asks the terminal for its size before
//! every line and waits for the answer, which a dumb serial line never gives, and it has no completion.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod argument;
mod command;
mod commands;
mod complete;
pub mod cpus;
mod error;
mod hexdump;
pub mod host;
mod keys;
mod line;
mod reply;
mod screen;
mod session;
mod spelling;
mod table;
mod watch;

#[cfg(test)]
mod tests;

use alloc::{boxed::Box, format, string::String};
use core::fmt::{self, Write};

use command::Context;
use complete::Completion;
use error::Error;
use host::{CpuState, Management};
use keys::{Decoder, Key};
use line::{Change, History, Line};
use reply::{Reply, Terminal};
use screen::Screen;
use session::Session;
use table::{Columns, Count, Micros};
use watch::Watch;

pub use command::Class;
pub use line::MAX_LINE;
pub use reply::PROTOCOL;
pub use screen::PROMPT;

/// The console of one serial line.
#[derive(Debug, Default)]
pub struct Console {
    keys: Decoder,
    line: Line,
    screen: Screen,
    session: Session,
}

impl Console {
    /// Creates a console with an empty line and no history.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns true if replies are JSON, and nothing else may be sent.
    #[must_use]
    pub fn json(&self) -> bool {
        self.session.json
    }

    /// Greets the operator, reports problems of the boot, and prints the first prompt.
    pub fn start(&mut self, host: &dyn Management, out: &mut dyn Write) {
        // A writer that fails loses output; the console continues. This holds for all methods below.
        let _ = greet(host, &mut Terminal(out)).and_then(|()| self.screen.prompt(&self.line, out));
    }

    /// Takes one byte. The byte that ends a line runs its command on `host`.
    pub fn feed(&mut self, byte: u8, host: &mut dyn Management, out: &mut dyn Write) {
        if let Some(watch) = &mut self.session.watch {
            if watch.type_byte(byte, host) {
                self.session.watch = None;
                let _ = out
                    .write_str(watch::BREAK)
                    .and_then(|()| self.screen.prompt(&self.line, out));
            }
            return;
        }
        let Some(key) = self.keys.feed(byte) else {
            return;
        };
        let _ = if self.session.json {
            self.script_key(key, host, out)
        } else {
            self.operator_key(key, host, out)
        };
    }

    /// Returns the TD whose console is watched.
    #[must_use]
    pub fn watched(&self) -> Option<u32> {
        self.session.watch.as_ref().map(Watch::td)
    }

    /// Returns true if [`Self::refresh`] would show something.
    #[must_use]
    pub fn has_news(&self, host: &dyn Management) -> bool {
        self.session
            .watch
            .as_ref()
            .is_some_and(|watch| watch.has_news(host))
    }

    /// Shows the new output of the TD whose console is watched.
    pub fn refresh(&mut self, host: &dyn Management, out: &mut dyn Write) {
        if let Some(watch) = &mut self.session.watch {
            let _ = watch.show(host, out);
        }
    }

    /// Prints a line that is no reply above the line that is being edited. It prints nothing in JSON mode and while a
    /// TD's console is watched.
    pub fn notice(&mut self, line: &str, out: &mut dyn Write) {
        if self.session.json || self.session.watch.is_some() {
            return;
        }
        let _ = self
            .screen
            .erase(out)
            .and_then(|()| writeln!(Terminal(out), "{line}"))
            .and_then(|()| self.screen.prompt(&self.line, out));
    }

    fn operator_key(
        &mut self,
        key: Key,
        host: &mut dyn Management,
        out: &mut dyn Write,
    ) -> fmt::Result {
        let change = match key {
            Key::Enter => {
                out.write_str("\r\n")?;
                return self.submit(host, out);
            }
            Key::Cancel => {
                out.write_str("^C\r\n")?;
                self.line.clear();
                self.session.history.leave();
                return self.screen.prompt(&self.line, out);
            }
            Key::ClearScreen => {
                self.screen.clear(out)?;
                return self.screen.prompt(&self.line, out);
            }
            Key::Complete => return self.complete(host, out),
            Key::Older => self.recall(|history, draft| history.older(draft).map(String::from)),
            Key::Newer => self.recall(|history, _| history.newer()),
            _ => self.line.apply(key),
        };
        self.screen.show(&self.line, change, out)
    }

    fn recall(&mut self, step: impl FnOnce(&mut History, &str) -> Option<String>) -> Change {
        match step(&mut self.session.history, self.line.text()) {
            Some(text) => {
                self.line.set(&text);
                Change::Changed
            }
            None => Change::Refused,
        }
    }

    fn complete(&mut self, host: &dyn Management, out: &mut dyn Write) -> fmt::Result {
        let tds = host.tds().map(|tds| tds.names()).unwrap_or_default();
        match complete::complete(commands::ALL, self.line.before_cursor(), &tds) {
            Completion::Insert(text) => text.bytes().try_for_each(|byte| {
                let change = self.line.insert(byte);
                self.screen.show(&self.line, change, out)
            }),
            Completion::Choose(words) if words.is_empty() => {
                self.screen.show(&self.line, Change::Refused, out)
            }
            Completion::Choose(words) => {
                write!(Terminal(out), "\n{}", Columns(&words))?;
                self.screen.prompt(&self.line, out)
            }
        }
    }

    /// Handles a key in JSON mode: nothing is echoed, and a Tab is a blank like any other.
    fn script_key(
        &mut self,
        key: Key,
        host: &mut dyn Management,
        out: &mut dyn Write,
    ) -> fmt::Result {
        match key {
            Key::Enter => return self.submit(host, out),
            Key::Cancel => self.line.clear(),
            Key::Complete => drop(self.line.insert(b' ')),
            _ => drop(self.line.apply(key)),
        }
        Ok(())
    }

    fn submit(&mut self, host: &mut dyn Management, out: &mut dyn Write) -> fmt::Result {
        self.session.history.push(self.line.text());
        let line = core::mem::take(&mut self.line);
        let script = self.session.json;
        let (name, outcome) = self.run(&line, host);
        let script = script || self.session.json;
        let mut clears_screen = false;
        match outcome {
            Ok(None) => {}
            Ok(Some(reply)) if script => write!(out, "{}\r\n", reply.json(&name))?,
            Ok(Some(reply)) => {
                reply.text(&mut Terminal(out))?;
                clears_screen = reply.clears_screen;
            }
            Err(error) if script => write!(out, "{}\r\n", reply::error_json(&name, &error))?,
            Err(error) => writeln!(Terminal(out), "error: {error}")?,
        }
        if self.session.json {
            return Ok(());
        }
        if self.session.watch.is_some() {
            self.refresh(host, out);
            return Ok(());
        }
        if clears_screen {
            self.screen.clear(out)?;
        }
        self.screen.prompt(&self.line, out)
    }

    /// Decodes the line and runs its command. Also returns the command's name, or the line's first word if it names
    /// no command.
    fn run(
        &mut self,
        line: &Line,
        host: &mut dyn Management,
    ) -> (Box<str>, Result<Option<Reply>, Error>) {
        match line
            .check()
            .map_err(Error::from)
            .and_then(|()| commands::ALL.decode(line.text()))
        {
            Ok(Some(call)) => {
                let mut context = Context {
                    commands: commands::ALL,
                    host,
                    session: &mut self.session,
                };
                (
                    call.command.name.into(),
                    (call.command.run)(&mut context, &call.args).map(Some),
                )
            }
            Ok(None) => ("".into(), Ok(None)),
            Err(error) => (commands::ALL.name_in(line.text()).into(), Err(error)),
        }
    }
}

fn greet(host: &dyn Management, out: &mut dyn Write) -> fmt::Result {
    let (build, boot, cpus, tdx) = (host.build(), host.boot(), host.cpus(), host.tdx());
    let running = cpus
        .iter()
        .filter(|cpu| matches!(cpu.state, CpuState::Online | CpuState::Idle))
        .count();
    let time = boot
        .to_prompt_us
        .map(|us| format!(", {} from start to prompt", Micros(us)))
        .unwrap_or_default();
    writeln!(
        out,
        "\nSeamark {}: {running} of {} running, TDX {}{time}",
        build.version,
        Count(cpus.len(), "CPU"),
        tdx.state
    )?;
    for problem in boot.config_problems.iter().chain(&boot.problems) {
        writeln!(out, "warning: {problem}")?;
    }
    if boot.crashes > 0 {
        let crashes = Count(boot.crashes as usize, "crash");
        let what = "\"crash show\" shows the last one, \"crash drop\" forgets it";
        writeln!(
            out,
            "warning: {crashes} since the last \"crash drop\": {what}"
        )?;
    }
    writeln!(out, "Type \"help\" for the commands.")
}
