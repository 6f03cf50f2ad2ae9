//! The command table: one file for each group of commands, each a list of [`Command`]s.

mod help;
mod hkids;
mod log;
mod memory;
mod seam;
mod session;
mod system;
mod td;
mod tdx;

use super::command::Command;

/// Every command, in the order in which `help` shows them.
pub fn all() -> impl Iterator<Item = &'static Command> {
    let before = [
        help::COMMANDS,
        system::COMMANDS,
        memory::COMMANDS,
        tdx::COMMANDS,
    ];
    let behind = [
        hkids::COMMANDS,
        seam::COMMANDS,
        log::COMMANDS,
        session::COMMANDS,
    ];
    before
        .into_iter()
        .chain(td::COMMANDS)
        .chain(behind)
        .flatten()
}
