//! The command table: one file for each group of commands, each a list of [`Command`]s.

mod config;
mod crash;
mod events;
pub mod files;
mod help;
mod hkids;
mod host;
mod iommu;
pub mod lock;
mod log;
mod mca;
mod memory;
mod network;
mod pci;
mod report;
mod seam;
mod session;
mod system;
pub mod td;
mod tdx;
mod text;
pub mod top;

use super::command::Commands;

/// Every command.
pub const ALL: Commands = Commands(&[
    help::COMMANDS,
    system::COMMANDS,
    host::COMMANDS,
    top::COMMANDS,
    mca::COMMANDS,
    crash::COMMANDS,
    report::COMMANDS,
    memory::COMMANDS,
    pci::COMMANDS,
    network::COMMANDS,
    tdx::COMMANDS,
    iommu::COMMANDS,
    td::SHOW,
    td::LIFE,
    td::END,
    td::DEFINE,
    td::CONSOLE,
    td::TYPE,
    td::DEBUG,
    files::COMMANDS,
    config::COMMANDS,
    hkids::COMMANDS,
    seam::COMMANDS,
    log::COMMANDS,
    events::COMMANDS,
    lock::COMMANDS,
    session::COMMANDS,
]);
