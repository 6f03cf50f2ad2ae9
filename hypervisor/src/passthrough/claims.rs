//! The claim of a TD on functions of the machine.

use alloc::{boxed::Box, format, string::String, vec::Vec};

use console::host::event::EventKind;
use host::functions::Taken;
use io::{Address, Selector};

use crate::{
    events, iommu,
    pci::{self, Pci},
};

/// Claims the functions that `devices` name for the TD `td`, and lets `assemble` make them usable: it resets and confines
/// them. If it fails, the TD has none of them; functions that did not come back from a reset are out of use.
///
/// It takes as long as `assemble`, which holds no lock of the inventory.
///
/// # Errors
/// A sentence; the TD has none of the functions.
pub fn take(
    td: &str,
    devices: &[String],
    assemble: impl FnOnce(&str, Vec<Address>) -> Result<Box<dyn Taken>, String>,
) -> Result<Box<dyn Taken>, String> {
    let Pci { space, inventory } = pci::get().ok_or("the PCI functions are not known")?;
    let wanted = devices.iter().map(|device| selector(device));
    let wanted: Vec<_> = wanted.collect::<Result<_, _>>()?;
    let claimed = inventory
        .lock()
        .claim(space, td, &wanted, iommu::unconfined);
    let claimed = claimed.map_err(|error| format!("{error}"))?;
    let taken = assemble(td, claimed.clone());
    match &taken {
        Ok(_) => note(td, "got", &claimed),
        Err(_) => inventory.lock().unclaim(td, &claimed),
    }
    taken
}

/// Takes functions that were stopped and reset from the TD `td`. They keep its label.
pub fn give_back(td: &str, functions: &[Address]) {
    if let Some(pci) = pci::get() {
        pci.inventory.lock().give_back(td, functions);
        note(td, "gave back", functions);
    }
}

/// Takes functions that the TD `td` could not give back out of use until the machine is switched off, for this reason.
pub fn retire(td: &str, functions: &[Address], why: &str) {
    let Some(pci) = pci::get() else { return };
    for &at in functions {
        pci.inventory.lock().retire(at, why);
        log::error!("PCI function {at} is out of use until the machine is switched off: {why}");
    }
    note(td, "could not give back", functions);
}

fn selector(device: &str) -> Result<Selector, String> {
    let parsed = device.parse::<Selector>();
    parsed.map_err(|error| format!("{device} names no PCI function: {error}"))
}

/// Records a change of owners in the audit trail.
fn note(td: &str, what: &str, functions: &[Address]) {
    for at in functions {
        let what = format_args!("TD {td} {what} PCI function {at}");
        events::note(EventKind::State, None, None, what);
    }
}
