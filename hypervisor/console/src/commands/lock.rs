//! The lock of the console: `unlock`, `lock`.

use core::fmt::{self, Write};

use serde::Serialize;

use crate::{
    argument::Args,
    command::{Class, Command, Context},
    error::Error,
    host::{event::Action, failure::Code},
    reply::{Reply, Text},
    session::Front,
};

pub const COMMANDS: &[Command] = &[
    Command {
        name: "unlock",
        class: Class::Read,
        args: &[],
        summary: "Take the console's password",
        help: "The next line is the password; it is not shown, and no history or log has it. Without it, the commands \
               of class \"read\" work. host.console_lock in seamark.toml sets the password; \"cargo xtask password\" \
               makes its value. After three wrong ones each costs a delay, of 30 seconds at most; a password that \
               comes too early is not read. The console locks itself after ten minutes without a key. In JSON mode \
               both lines are answered.",
        run: unlock,
    },
    Command {
        name: "lock",
        class: Class::Read,
        args: &[],
        summary: "Lock the console",
        help: "From then on, only the commands of class \"read\" work until \"unlock\" takes the password.",
        run: lock,
    },
];

/// The state of the lock.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct State {
    /// `asks` if the next line is the password; `open` or `locked`.
    state: &'static str,
}

fn unlock(context: &mut Context<'_>, _: &Args) -> Result<Reply, Error> {
    require_password(context)?;
    context.session.front = Some(Front::Password);
    Ok(Reply::new(State { state: "asks" }))
}

fn lock(context: &mut Context<'_>, _: &Args) -> Result<Reply, Error> {
    require_password(context)?;
    context.session.lock.close();
    record(context, "lock", None);
    Ok(Reply::new(State { state: "locked" }))
}

/// Compares a password with the console's.
pub fn check(context: &mut Context<'_>, password: &str) -> Result<Reply, Error> {
    let Context { host, session, .. } = context;
    let delay_us = session.lock.delay_us(host.now_us());
    if delay_us > 0 {
        return Err(Error::TooEarly(delay_us));
    }
    if host.check_password(password)? {
        session.lock.right();
        record(context, "unlock", None);
        return Ok(Reply::new(State { state: "open" }));
    }
    let now_us = host.now_us();
    session.lock.wrong_at(now_us);
    let delay_us = session.lock.delay_us(now_us);
    record(context, "unlock", Some(Code::WrongPassword));
    Err(Error::WrongPassword(delay_us))
}

fn record(context: &Context<'_>, line: &str, failed: Option<Code>) {
    context.host.record(&Action {
        td: None,
        line,
        failed,
    });
}

fn require_password(context: &Context<'_>) -> Result<(), Error> {
    if context.host.has_password() {
        return Ok(());
    }
    Err(Code::WrongState
        .because("this console has no password; host.console_lock in seamark.toml sets one")
        .into())
}

impl Text for State {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        match self.state {
            "asks" => Ok(()),
            state => writeln!(out, "The console is {state}."),
        }
    }
}
