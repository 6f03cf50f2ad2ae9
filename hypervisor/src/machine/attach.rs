//! Attaching PCI functions to TDs, and detaching them.

use alloc::{format, string::ToString, vec::Vec};

use config::Pci;
use console::host::{
    absent,
    define::{TdAttached, TdDetached},
    failure::{Code, Failure},
};
use host::platform::Platform;
use io::ClaimError;

use super::{console_tds::ConsoleTds, failure::Wish};

impl<P: Platform> ConsoleTds<'_, '_, P> {
    /// Attaches a function to a TD. The function alone must be one that a TD can have; whether the TD gets it with the
    /// rest of its functions is decided at its start, and only warned of.
    pub(super) fn attach_function(&self, id: u32, device: &str) -> Result<TdAttached, Failure> {
        let config = self.tds.config(id).ok_or_else(|| absent::no_such_td(id))?;
        let pci = self.parse(device)?;
        match self.pci.check(&config.name, &[pci.device]) {
            Err(error @ (ClaimError::Unknown(_) | ClaimError::Ambiguous(..))) => {
                return Err(Code::InvalidArgument.because(error.to_string()));
            }
            Err(error @ ClaimError::Refused(..)) => {
                return Err(Code::Unsupported.because(error.to_string()));
            }
            _ => {}
        }
        let all = config.pci.iter().chain([&pci]).map(|pci| pci.device);
        let check = self.pci.check(&config.name, &all.collect::<Vec<_>>());
        if let Err(error @ ClaimError::Twice(_)) = &check {
            return Err(self.about(id, Code::Exists, error));
        }
        let attached = self.tds.attach(id, pci);
        attached.map_err(|error| self.refused(id, Wish::Attach, error))?;
        let warn = |error| format!("TD {} could not start now: {error}", config.name);
        Ok(TdAttached {
            now: self.now(id),
            function: self.pci.look(pci),
            warnings: check.err().map(warn).into_iter().collect(),
        })
    }

    /// Detaches a function from a TD. It may be named in another way than in the TD's definition.
    pub(super) fn detach_function(&self, id: u32, device: &str) -> Result<TdDetached, Failure> {
        let config = self.tds.config(id).ok_or_else(|| absent::no_such_td(id))?;
        let pci = self.parse(device)?;
        let function = self.pci.look(pci);
        let is_named = |own: &&Pci| {
            let address = self.pci.look(**own).address;
            address.is_some() && address == function.address
        };
        let own = match config.pci.contains(&pci) {
            true => pci,
            false => config.pci.iter().find(is_named).copied().unwrap_or(pci),
        };
        let detached = self.tds.detach(id, own);
        detached.map_err(|error| self.refused(id, Wish::Attach, error))?;
        Ok(TdDetached {
            now: self.now(id),
            function: self.pci.look(own),
        })
    }

    fn parse(&self, device: &str) -> Result<Pci, Failure> {
        let parsed = device.parse().map(|device| Pci { device });
        parsed.map_err(|error| {
            Code::InvalidArgument.because(format!("{device} names no PCI function: {error}"))
        })
    }
}
