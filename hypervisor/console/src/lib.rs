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
//!    something, `top` is to be shown again, or the host's counts are to be sampled.
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
mod filter;
mod front;
mod hexdump;
pub mod host;
mod keys;
mod line;
mod load;
mod lock;
mod pager;
mod paste;
mod reply;
mod screen;
mod session;
mod spelling;
mod table;
mod watch;

#[cfg(test)]
mod tests;

use alloc::{boxed::Box, format, string::String, vec::Vec};
use core::fmt::{self, Write};

use command::{Call, Context};
use commands::top;
use complete::{Completion, Names};
use error::Error;
use filter::Filter;
use host::{CpuState, Management, event::Action};
use keys::{Decoder, Key};
use line::{Change, History, Line};
use paste::Paste;
use reply::{Reply, Terminal, Then};
use screen::{MEASURE, Screen, Size};
use session::{Front, Session};
use table::{Columns, Count, Micros};

pub use command::Class;
pub use line::{MAX_LINE, MAX_SCRIPT_LINE};
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
        let _ = greet(host, &mut Terminal(out))
            // A terminal answers with its size, a script with nothing.
            .and_then(|()| out.write_str(MEASURE))
            .and_then(|()| self.prompt(out));
    }

    /// Takes one byte. The byte that ends a line runs its command on `host`.
    pub fn feed(&mut self, byte: u8, host: &mut dyn Management, out: &mut dyn Write) {
        if self.locks_itself(host, out) {
            return;
        }
        let _ = self.take(byte, host, out);
    }

    fn take(&mut self, byte: u8, host: &mut dyn Management, out: &mut dyn Write) -> fmt::Result {
        if self.watched().is_some() {
            return self.type_on_td(byte, host, out);
        }
        match (self.keys.feed(byte), self.session.front.take()) {
            (None, front) => {
                self.session.front = front;
                Ok(())
            }
            (Some(Key::Cursor(rows, columns)), front) => {
                self.session.front = front;
                self.measured(rows, columns, out)
            }
            (Some(key), Some(front)) => self.front_key(front, key, host, out),
            (Some(key), None) if self.session.json => self.script_key(key, host, out),
            (Some(key), None) => self.operator_key(key, host, out),
        }
    }

    /// Returns the TD whose console is watched.
    #[must_use]
    pub fn watched(&self) -> Option<u32> {
        match &self.session.front {
            Some(Front::Td(watch)) => Some(watch.td()),
            _ => None,
        }
    }

    /// Returns true if [`Self::refresh`] has something to do.
    #[must_use]
    pub fn has_news(&self, host: &dyn Management) -> bool {
        match &self.session.front {
            Some(Front::Td(watch)) => watch.has_news(host),
            Some(Front::Top { due_us }) => host.now_us() >= *due_us,
            _ => self.session.load.is_due(host.now_us()),
        }
    }

    /// Shows the new output of the TD whose console is watched, or the present state in `top`, and samples the host's
    /// counts.
    pub fn refresh(&mut self, host: &dyn Management, out: &mut dyn Write) {
        self.session.load.sample(host);
        let size = self.session.size.unwrap_or(Size::USUAL);
        let _ = match &mut self.session.front {
            Some(Front::Td(watch)) => watch.show(host, out),
            Some(Front::Top { due_us }) if host.now_us() >= *due_us => {
                *due_us = host.now_us() + top::PERIOD_US;
                top::show(host, &self.session.load, size, out)
            }
            _ => Ok(()),
        };
    }

    /// Prints a line that is no reply above the line that is being edited. It prints nothing in JSON mode and while a
    /// TD's console or `top` is shown.
    pub fn notice(&mut self, line: &str, out: &mut dyn Write) {
        if !self.session.json && !self.is_taken() {
            let _ = self.above(line, out);
        }
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
            Key::Complete if self.session.paste.is_some() => self.line.insert(b' '),
            Key::Cancel => {
                self.session.paste = None;
                out.write_str("^C\r\n")?;
                self.line.clear();
                self.session.history.leave();
                return self.prompt(out);
            }
            Key::ClearScreen => {
                self.screen.clear(out)?;
                return self.prompt(out);
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
        let tds = || host.tds().map(|tds| tds.names()).unwrap_or_default();
        let pci_functions = || {
            let all = host.pci_list().unwrap_or_default();
            all.into_iter().map(|line| line.address).collect()
        };
        let names = Names {
            tds: &tds,
            pci_functions: &pci_functions,
            networks: &|| {
                let all = host.networks().into_iter();
                all.map(|network| network.name).collect()
            },
        };
        match complete::complete(commands::ALL, self.line.before_cursor(), &names) {
            Completion::Insert(text) => text.bytes().try_for_each(|byte| {
                let change = self.line.insert(byte);
                self.screen.show(&self.line, change, out)
            }),
            Completion::Choose(words) if words.is_empty() => {
                self.screen.show(&self.line, Change::Refused, out)
            }
            Completion::Choose(words) => {
                write!(Terminal(out), "\n{}", Columns(&words))?;
                self.prompt(out)
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
        self.line.is_of_script();
        match key {
            Key::Enter => return self.submit(host, out),
            Key::Cancel => self.line.clear(),
            Key::Complete => drop(self.line.insert(b' ')),
            _ => drop(self.line.apply(key)),
        }
        Ok(())
    }

    fn submit(&mut self, host: &mut dyn Management, out: &mut dyn Write) -> fmt::Result {
        if let Some(paste) = self.session.paste.take() {
            return self.pasted(paste, host, out);
        }
        if self.line.text().len() <= MAX_LINE {
            self.session.history.push(self.line.text());
        }
        let line = core::mem::take(&mut self.line);
        let was_json = self.session.json;
        let Answer {
            name,
            words,
            outcome,
        } = self.run(&line, host);
        let json = was_json || self.session.json;
        let reply = match outcome {
            Ok(Some(reply)) if json => {
                write!(out, "{}\r\n", reply.json(&name))?;
                None
            }
            Ok(reply) => reply,
            Err(error) if json => {
                write!(out, "{}\r\n", reply::error_json(&name, &error))?;
                None
            }
            Err(error) => {
                writeln!(Terminal(out), "error: {error}")?;
                None
            }
        };
        match reply {
            _ if self.session.json => Ok(()),
            None => self.prompt(out),
            Some(reply) => self.show_reply(&reply, &words, host, out),
        }
    }

    /// Shows a reply as text, and what follows it.
    fn show_reply(
        &mut self,
        reply: &Reply,
        words: &[String],
        host: &mut dyn Management,
        out: &mut dyn Write,
    ) -> fmt::Result {
        if reply.then == Then::View {
            self.screen.clear(out)?;
            out.write_str(MEASURE)?;
            self.refresh(host, out);
            return Ok(());
        }
        let mut text = String::new();
        let mut terminal = Terminal(&mut text);
        let mut filter = Filter::new(words, &mut terminal);
        reply.text(&mut filter)?;
        filter.finish()?;
        if self.watched().is_some() {
            out.write_str(&text)?;
            self.refresh(host, out);
            return Ok(());
        }
        match reply.then {
            Then::Clear => self.screen.clear(out)?,
            Then::Measure => out.write_str(MEASURE)?,
            Then::Prompt | Then::View => {}
        }
        self.show(text, host, out)
    }

    /// Takes a line of a text that is being pasted. The last one runs the command that asked for it.
    fn pasted(
        &mut self,
        mut paste: Paste,
        host: &mut dyn Management,
        out: &mut dyn Write,
    ) -> fmt::Result {
        let line = core::mem::take(&mut self.line);
        if line.text().trim() != paste::END {
            paste.push(line.text(), line.check());
            self.session.paste = Some(paste);
            return Ok(());
        }
        let outcome = paste.finish().and_then(|line| {
            let call = commands::ALL.decode(&line)?;
            call.map(|call| self.call(&call, host)).transpose()
        });
        match outcome {
            Ok(None) => self.prompt(out),
            Ok(Some(reply)) => self.show_reply(&reply, &[], host, out),
            Err(error) => {
                writeln!(Terminal(out), "error: {error}")?;
                self.prompt(out)
            }
        }
    }

    /// Returns true if only commands that read can be run.
    fn is_locked(&self, host: &dyn Management) -> bool {
        host.has_password() && !self.session.lock.is_open()
    }

    /// Decodes the line and runs its command.
    fn run(&mut self, line: &Line, host: &mut dyn Management) -> Answer {
        let text = line.text();
        let (command, words) = match commands::ALL.takes_text(text) {
            true => (text, Vec::new()),
            false => filter::split(text),
        };
        let checked = line
            .check()
            .map_err(Error::from)
            .and_then(|()| match &words[..] {
                [_, ..] if self.session.json => Err(Error::FilteredJson),
                words if words.contains(&"") => Err(Error::NoFilter),
                _ => commands::ALL.decode(command),
            });
        let (name, outcome) = match checked {
            Ok(Some(call)) => {
                self.session.filtered = !words.is_empty();
                (call.command.name, self.call(&call, host).map(Some))
            }
            Ok(None) => ("", Ok(None)),
            Err(error) => (commands::ALL.name_in(command), Err(error)),
        };
        Answer {
            name: name.into(),
            words: words.into_iter().map(String::from).collect(),
            outcome,
        }
    }

    /// Runs a command if the console's lock allows it, and records it if it can change something.
    fn call(&mut self, call: &Call, host: &mut dyn Management) -> Result<Reply, Error> {
        let Call { command, args } = call;
        let is_locked = self.is_locked(host);
        let mut context = Context {
            commands: commands::ALL,
            host,
            session: &mut self.session,
        };
        if command.class == Class::Read {
            return (command.run)(&mut context, args);
        }
        let word = args.td(command.args);
        let td = word.and_then(|word| {
            let (tds, id) = commands::td::find_word(&context, word).ok()?;
            Some((id, tds.name(id)?))
        });
        let outcome = if is_locked {
            Err(Error::Locked)
        } else {
            (command.run)(&mut context, args)
        };
        // A command that asks for a text is recorded when that has come. A part of a file is no event of its own.
        let is_part = command.name == commands::files::PART && outcome.is_ok();
        if context.session.paste.is_some() || is_part {
            return outcome;
        }
        context.host.record(&Action {
            td: td.as_ref().map(|(id, name)| (*id, name.as_str())),
            line: &format!("{}{}", command.name, args.recorded(command.args)),
            failed: outcome.as_ref().err().map(Error::code),
        });
        outcome
    }
}

/// The outcome of a line.
struct Answer {
    /// The command's name, or the line's first word if it names no command.
    name: Box<str>,
    /// The words that the lines of the reply must contain.
    words: Vec<String>,
    outcome: Result<Option<Reply>, Error>,
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
    if host.has_password() {
        writeln!(out, "The console is locked; \"unlock\" takes the password.")?;
    }
    writeln!(out, "Type \"help\" for the commands.")
}
