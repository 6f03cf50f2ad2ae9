//! The machine's PCI functions, as definitions of TDs need them.

use config::Pci;
use console::host::{absent, pci::TdPci};
use io::{ClaimError, Selector};

/// The machine's PCI functions, as definitions of TDs need them.
pub trait PciView {
    /// Checks whether the TD of this name can have functions now.
    ///
    /// # Errors
    /// [`ClaimError`].
    fn check(&self, td: &str, functions: &[Selector]) -> Result<(), ClaimError>;

    /// Returns the function that a definition names.
    fn look(&self, pci: Pci) -> TdPci;
}

/// The functions of a machine that has none.
#[derive(Clone, Copy, Debug)]
pub struct NoPci;

impl PciView for NoPci {
    fn check(&self, _: &str, functions: &[Selector]) -> Result<(), ClaimError> {
        let first = functions.first();
        first.map_or(Ok(()), |first| Err(ClaimError::Unknown(*first)))
    }

    fn look(&self, pci: Pci) -> TdPci {
        absent::unknown(&pci)
    }
}
