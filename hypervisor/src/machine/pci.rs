//! PCI functions, as the console shows them.

use alloc::{format, string::String, vec::Vec};

use console::host::{
    Hex, absent,
    failure::{Code, Failure},
    pci::{NOT_ERASED, PciBar, PciHealth, PciLine, PciReleased, PciReport, TdPci},
};
use io::{
    Address, BarKind, Capabilities, ClaimError, Function, Health, Inventory, Owner, Port,
    ReleaseError, Selector, extended, standard,
};

use super::devices::{NoPci, PciView};
use crate::{
    iommu,
    pci::{self, Configuration, Pci},
};

/// Lists the functions.
pub fn list() -> Result<Vec<PciLine>, Failure> {
    let Pci { space, inventory } = machine()?;
    let inventory = inventory.lock();
    let functions = inventory.functions().iter();
    Ok(functions
        .map(|function| line(space, &inventory, function))
        .collect())
}

/// Shows the function at an address. Measures it if nobody has it.
pub fn show(address: &str) -> Result<PciReport, Failure> {
    let at = parse(address)?;
    let Pci { space, inventory } = machine()?;
    let mut inventory = inventory.lock();
    inventory.measure(space, at);
    let function = inventory.find(at).ok_or_else(|| {
        Code::InvalidArgument.because(format!(
            "there is no PCI function {at}; \"pci list\" lists them"
        ))
    })?;
    Ok(report(space, &inventory, function))
}

/// Removes the label of the TD that had a function.
pub fn release(address: &str) -> Result<PciReleased, Failure> {
    let at = parse(address)?;
    let released = machine()?.inventory.lock().release(at);
    let released = released.map_err(|error| {
        let code = match error {
            ReleaseError::Unknown(_) => Code::InvalidArgument,
            _ => Code::WrongState,
        };
        code.because(format!("{error}"))
    })?;
    Ok(PciReleased {
        functions: released
            .functions
            .iter()
            .map(|at| format!("{at}"))
            .collect(),
        td: released.td,
        warning: NOT_ERASED,
    })
}

/// The machine's functions, for definitions of TDs.
#[derive(Clone, Copy, Debug)]
pub struct MachinePci;

impl PciView for MachinePci {
    fn check(&self, td: &str, functions: &[Selector]) -> Result<(), ClaimError> {
        let Some(Pci { space, inventory }) = pci::get() else {
            return NoPci.check(td, functions);
        };
        let checked = inventory
            .lock()
            .check(space, td, functions, iommu::unconfined);
        checked.map(drop)
    }

    fn look(&self, pci: config::Pci) -> TdPci {
        let unknown = absent::unknown(&pci);
        let Some(Pci { inventory, .. }) = pci::get() else {
            return unknown;
        };
        let inventory = inventory.lock();
        let Ok(at) = inventory.resolve(pci.device) else {
            return unknown;
        };
        TdPci {
            address: Some(format!("{at}")),
            kind: inventory
                .find(at)
                .map(|function| function.identity.class.name()),
            owner: inventory.owner(at).map(|owner| format!("{owner}")),
            ..unknown
        }
    }
}

fn parse(address: &str) -> Result<Address, Failure> {
    let parsed = address.parse();
    parsed.map_err(|e| Code::InvalidArgument.because(format!("{address} is no PCI address: {e}")))
}

fn machine() -> Result<&'static Pci, Failure> {
    pci::get().ok_or_else(|| Code::Unavailable.because("the PCI functions are not known"))
}

fn line(space: &Configuration, inventory: &Inventory, function: &Function) -> PciLine {
    let at = function.address;
    let refusals = inventory.refusals(space, at);
    let refusals = refusals.iter().map(|reason| format!("{reason}"));
    let open = match inventory.owner(at) {
        Some(Owner::Host(_)) => Vec::new(),
        _ => iommu::unconfined(at, inventory.requesters(at)),
    };
    PciLine {
        address: format!("{at}"),
        id: id(function.identity.vendor, function.identity.device),
        device: function.identity.class.name(),
        group: inventory.group(at).unwrap_or_default(),
        owner: (inventory.owner(at)).map_or_else(|| "none".into(), |owner| format!("{owner}")),
        health: match health(space, inventory, function) {
            None => PciHealth::Resetting,
            Some(Health::Good) => PciHealth::Good,
            Some(Health::Gone) => PciHealth::Gone,
            Some(Health::Errors(errors)) if errors.is_serious() => PciHealth::Errors,
            Some(Health::Errors(_)) => PciHealth::Corrected,
        },
        refusals: refusals.chain(open).collect(),
    }
}

/// Returns the health of a function; `None` while it is being reset.
fn health(space: &Configuration, inventory: &Inventory, function: &Function) -> Option<Health> {
    (!inventory.is_away(function.address)).then(|| function.health(space))
}

fn report(space: &Configuration, inventory: &Inventory, function: &Function) -> PciReport {
    let (at, identity) = (function.address, &function.identity);
    let line = line(space, inventory, function);
    let members = inventory.members(line.group);
    let errors = match health(space, inventory, function) {
        Some(Health::Errors(errors)) => errors.names(),
        _ => Vec::new(),
    };
    PciReport {
        class: format!(
            "{:04x}{:02x}",
            identity.class.code(),
            identity.class.interface
        ),
        subsystem: (identity.subsystem_vendor.zip(identity.subsystem))
            .map(|(vendor, device)| id(vendor, device)),
        port: function.port().map(port),
        bridge: inventory
            .bridge(at)
            .map(|bridge| format!("{}", bridge.address)),
        physical: function.physical.map(|physical| format!("{physical}")),
        group_members: members
            .filter(|member| member.address != at)
            .map(|member| format!("{}", member.address))
            .collect(),
        requesters: (inventory.requesters(at).iter())
            .map(|id| Hex((*id).into()))
            .collect(),
        bars: function.bars.iter().map(bar).collect(),
        capabilities: names(&function.capabilities),
        resets: (inventory.resets(at).iter())
            .map(|reset| format!("{reset}"))
            .collect(),
        errors,
        line,
    }
}

fn id(vendor: u16, device: u16) -> String {
    format!("{vendor:04x}:{device:04x}")
}

fn bar(bar: &io::Bar) -> PciBar {
    PciBar {
        index: bar.index,
        kind: match (bar.kind, bar.prefetchable) {
            (BarKind::Io, _) => "ports",
            (_, true) => "prefetchable-memory",
            (_, false) => "memory",
        },
        address: Hex(bar.address),
        size: bar.size,
    }
}

const fn port(port: Port) -> &'static str {
    match port {
        Port::Endpoint => "endpoint",
        Port::Root => "root port",
        Port::Upstream => "upstream port",
        Port::Downstream => "downstream port",
        Port::ToPci => "bridge to PCI",
        Port::FromPci => "bridge from PCI",
        Port::Integrated => "root complex endpoint",
        Port::EventCollector => "root complex event collector",
        Port::Unknown(_) => "unknown",
    }
}

fn names(capabilities: &Capabilities) -> Vec<String> {
    let standard = capabilities.standard.iter().map(|capability| {
        let name = match capability.id {
            standard::POWER => "power management",
            standard::MSI => "MSI",
            standard::EXPRESS => "PCI Express",
            standard::MSI_X => "MSI-X",
            standard::ADVANCED => "advanced features",
            other => return format!("{other:#x}"),
        };
        name.into()
    });
    let extended = capabilities.extended.iter().map(|capability| {
        let name = match capability.id {
            extended::AER => "AER",
            extended::ACS => "ACS",
            extended::ARI => "ARI",
            extended::ATS => "ATS",
            extended::SR_IOV => "SR-IOV",
            other => return format!("extended {other:#x}"),
        };
        name.into()
    });
    standard.chain(extended).collect()
}
