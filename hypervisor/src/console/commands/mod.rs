//! The command table: one file for each group of commands, each a list of [`Command`]s.

mod help;
mod log;
mod memory;
mod session;
mod system;
mod tdx;

use super::command::Command;

/// Every command, in the order in which `help` shows them.
pub fn all() -> impl Iterator<Item = &'static Command> {
    [
        help::COMMANDS,
        system::COMMANDS,
        memory::COMMANDS,
        tdx::COMMANDS,
        log::COMMANDS,
        session::COMMANDS,
    ]
    .into_iter()
    .flatten()
}
