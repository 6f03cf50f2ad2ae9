//! The physical functions of a guest: taken before its first time slice, given back at its end.

use alloc::{
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};

use devices::pci::passthrough::Passthrough;
use mm::shared::Mirror;

use crate::{functions::Taken, platform::Running, td::Td};

/// The functions of a life of a TD.
#[derive(Debug)]
pub(super) struct Functions {
    pub(super) taken: Arc<dyn Taken>,
    /// The TD's life, if the functions could not be stopped: they may reach the files that were lent to it.
    pub(super) kept: Option<Arc<Td>>,
}

impl Functions {
    /// Takes the functions that the configuration names, if it names any.
    ///
    /// # Errors
    /// A sentence; nothing was taken.
    pub fn take<P: Running>(platform: &P, td: &Td) -> Result<Option<Self>, String> {
        let config = td.config();
        let devices: Vec<String> = config
            .pci
            .iter()
            .map(|pci| pci.device.to_string())
            .collect();
        if devices.is_empty() {
            return Ok(None);
        }
        let functions = platform.functions();
        let functions = functions.ok_or("TDs can't have PCI functions on this machine")?;
        let taken = functions.take(&config.name, &devices)?;
        Ok(Some(Self {
            taken: taken.into(),
            kept: None,
        }))
    }

    /// Returns the models for the TD's bus.
    pub fn models(&self) -> Vec<Passthrough> {
        let physical = self.taken.functions().into_iter();
        physical.map(Passthrough::new).collect()
    }

    /// Returns the view that the functions have of the TD's shared memory.
    pub fn mirror(&self) -> Arc<dyn Mirror> {
        self.taken.mirror()
    }

    /// Gives the functions back. If that fails, they stay taken.
    ///
    /// # Errors
    /// A sentence: functions may still reach the TD's shared memory.
    pub fn give_back(&self) -> Result<(), String> {
        self.taken.give_back()
    }
}
