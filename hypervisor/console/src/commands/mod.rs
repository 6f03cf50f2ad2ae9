//! The command table: one file for each group of commands, each a list of [`Command`]s.

mod crash;
mod help;
mod hkids;
mod iommu;
mod log;
mod mca;
mod memory;
mod report;
mod seam;
mod session;
mod system;
mod td;
mod tdx;

use super::command::Commands;

/// Every command.
pub const ALL: Commands = Commands(&[
    help::COMMANDS,
    system::COMMANDS,
    mca::COMMANDS,
    crash::COMMANDS,
    report::COMMANDS,
    memory::COMMANDS,
    tdx::COMMANDS,
    iommu::COMMANDS,
    td::SHOW,
    td::LIFE,
    td::END,
    td::CONSOLE,
    td::DEBUG,
    hkids::COMMANDS,
    seam::COMMANDS,
    log::COMMANDS,
    session::COMMANDS,
]);
