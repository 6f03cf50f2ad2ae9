//! The virtual functions that a TD has by its configuration: a virtio console, and disks.

use alloc::{
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};

use config::TdConsole;
use devices::pci::Function;
use spin::Mutex;
use vcpu::Console;
use virtio::{Block, Device, Disk, Transport};

use crate::td::{Td, files::Content};

/// Makes the virtual functions of a TD with this console.
///
/// # Errors
/// A sentence: the host has not enough memory for what the TD may write to a disk.
pub fn functions(td: &Td, console: &Arc<Console>) -> Result<Vec<Arc<Mutex<dyn Function>>>, String> {
    let config = td.config();
    let mut functions = Vec::new();
    if config.console == TdConsole::Virtio {
        functions.push(function(virtio::Console::new(console.clone())));
    }
    for (disk, content) in config.disk.iter().zip(td.disks()) {
        let disk = open(disk, content).map_err(|error| error.to_string())?;
        functions.push(function(Block::new(disk)));
    }
    Ok(functions)
}

fn function(device: impl Device + 'static) -> Arc<Mutex<dyn Function>> {
    Arc::new(Mutex::new(Transport::new(device)))
}

fn open(config: &config::Disk, content: &Content) -> Result<Disk, virtio::NoRoom> {
    let disk = Disk::read_only(Arc::new(content.clone()), config.serial());
    match config.overlay {
        Some(bytes) => disk.with_overlay(bytes),
        None => Ok(disk),
    }
}
