//! The views that replace the command line: a TD's console, `top`, output that pauses, a password.

use alloc::string::String;
use core::fmt::{self, Write};

use super::{
    Console,
    command::Context,
    commands::{self, lock},
    host::Management,
    keys::Key,
    pager::{Pager, Rest},
    reply::{self, Terminal},
    screen::Size,
    session::Front,
    watch,
};

/// Shown before a password.
const PASSWORD: &str = "Password: ";

impl Console {
    /// Prints the prompt of what is shown.
    pub(super) fn prompt(&mut self, out: &mut dyn Write) -> fmt::Result {
        match self.session.front {
            // A text that is pasted has no prompt.
            None if self.session.paste.is_some() => out.write_str(self.line.text()),
            None => self.screen.prompt(&self.line, out),
            Some(Front::Password) => out.write_str(PASSWORD),
            Some(Front::More(_)) => Pager::bar(out),
            Some(Front::Td(_) | Front::Top { .. }) => Ok(()),
        }
    }

    /// Takes a byte that was typed while a TD's console is shown.
    pub(super) fn type_on_td(
        &mut self,
        byte: u8,
        host: &dyn Management,
        out: &mut dyn Write,
    ) -> fmt::Result {
        let Some(Front::Td(watch)) = &mut self.session.front else {
            return Ok(());
        };
        if watch.type_byte(byte, host) {
            return self.leave_td(out);
        }
        Ok(())
    }

    fn leave_td(&mut self, out: &mut dyn Write) -> fmt::Result {
        self.session.front = None;
        out.write_str(watch::BREAK)?;
        self.prompt(out)
    }

    /// Handles a key for what is shown instead of the command line.
    pub(super) fn front_key(
        &mut self,
        front: Front,
        key: Key,
        host: &mut dyn Management,
        out: &mut dyn Write,
    ) -> fmt::Result {
        match front {
            Front::Td(_) => Ok(()),
            Front::Top { .. } => {
                out.write_str("\r\x1b[K")?;
                self.prompt(out)
            }
            Front::More(pager) => {
                let size = self.session.size.unwrap_or(Size::USUAL);
                let rest = pager.key(key, size, out)?;
                self.page(rest, host, out)
            }
            Front::Password => self.password_key(key, host, out),
        }
    }

    /// Goes on after a step through long output.
    pub(super) fn page(
        &mut self,
        rest: Rest,
        host: &mut dyn Management,
        out: &mut dyn Write,
    ) -> fmt::Result {
        match rest {
            Rest::Nothing => self.prompt(out),
            Rest::Waits(pager) => {
                self.session.front = Some(Front::More(pager));
                Ok(())
            }
            Rest::Key(key) => {
                self.prompt(out)?;
                self.operator_key(key, host, out)
            }
        }
    }

    /// Handles a key of a password. It is not echoed, and no history has the line.
    fn password_key(
        &mut self,
        key: Key,
        host: &mut dyn Management,
        out: &mut dyn Write,
    ) -> fmt::Result {
        let is_blank = self.line.text().is_empty();
        match key {
            Key::Enter if is_blank && self.session.json => {}
            Key::Enter if !is_blank => return self.submit_password(host, out),
            Key::Enter | Key::Cancel => {
                self.line.wipe();
                if self.session.json {
                    return Ok(());
                }
                out.write_str("\r\n")?;
                return self.prompt(out);
            }
            key => drop(self.line.apply(key)),
        }
        self.session.front = Some(Front::Password);
        Ok(())
    }

    fn submit_password(&mut self, host: &mut dyn Management, out: &mut dyn Write) -> fmt::Result {
        let json = self.session.json;
        if !json {
            out.write_str("\r\n")?;
        }
        let mut line = core::mem::take(&mut self.line);
        let mut context = Context {
            commands: commands::ALL,
            host,
            session: &mut self.session,
        };
        let outcome = line.check().map_err(super::error::Error::from);
        let outcome = outcome.and_then(|()| lock::check(&mut context, line.text()));
        line.wipe();
        match outcome {
            Ok(reply) if json => write!(out, "{}\r\n", reply.json("unlock"))?,
            Ok(reply) => reply.text(&mut Terminal(out))?,
            Err(error) if json => write!(out, "{}\r\n", reply::error_json("unlock", &error))?,
            Err(error) => writeln!(Terminal(out), "error: {error}")?,
        }
        if json { Ok(()) } else { self.prompt(out) }
    }

    /// Takes the terminal's answer to the question for its size.
    pub(super) fn measured(&mut self, rows: u16, columns: u16, out: &mut dyn Write) -> fmt::Result {
        let Some(size) = Size::new(rows.into(), columns.into()) else {
            return Ok(());
        };
        if self.session.json || self.session.size.replace(size) == Some(size) {
            return Ok(());
        }
        if self.session.front.is_none() {
            let said = alloc::format!("{rows} rows of {columns} columns; longer output pauses");
            self.notice(&said, out);
        }
        Ok(())
    }

    /// Locks the console if nobody pressed a key for so long. Returns true if a byte is not to be handled, because
    /// whoever typed it did not know.
    pub(super) fn locks_itself(&mut self, host: &dyn Management, out: &mut dyn Write) -> bool {
        if !host.has_password() || !self.session.lock.key(host.now_us()) {
            return false;
        }
        host.record(&super::host::event::Action {
            td: None,
            line: "lock (ten minutes without a key)",
            failed: None,
        });
        if !matches!(self.session.front, Some(Front::Td(_))) {
            return false;
        }
        let _ = self.leave_td(out);
        true
    }

    /// Shows a reply: at once, or a screenful at a time.
    pub(super) fn show(
        &mut self,
        text: String,
        host: &mut dyn Management,
        out: &mut dyn Write,
    ) -> fmt::Result {
        match self.session.size {
            Some(size) => {
                let rest = Pager::begin(text, size, out)?;
                self.page(rest, host, out)
            }
            None => {
                out.write_str(&text)?;
                self.prompt(out)
            }
        }
    }

    /// Returns true if something else than the command line is shown, below which no line can be printed.
    pub(super) const fn is_taken(&self) -> bool {
        matches!(self.session.front, Some(Front::Td(_) | Front::Top { .. }))
    }

    /// Prints a line above what is edited.
    pub(super) fn above(&mut self, line: &str, out: &mut dyn Write) -> fmt::Result {
        self.screen.erase(out)?;
        writeln!(Terminal(out), "{line}")?;
        self.prompt(out)
    }
}
