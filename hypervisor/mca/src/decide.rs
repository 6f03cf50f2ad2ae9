//! The decision that a machine check requires of the CPU that received it.

use crate::{
    scan::Scan,
    verdict::{Occasion, Verdict, Why},
};

/// The program that a machine check interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A TD: TDH.VP.ENTER returned with the machine check's status, and the module has already ended the TD.
    Td,
    /// The hypervisor, at a load whose failure it survives.
    Probe,
    /// The hypervisor, anywhere else.
    Host,
}

/// The CPU's next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It continues. In a TD, only the TD ends.
    Continue,
    /// The load fails, and the hypervisor continues.
    Fail,
    /// The machine ends.
    Stop(Why),
}

/// Decides from the CPU's own banks.
#[must_use]
pub fn decide(scan: &Scan, place: Place) -> Next {
    let worst = scan
        .judged(Occasion::MachineCheck)
        .map(|(_, verdict)| verdict)
        .max();
    let global = scan.global.unwrap_or_default();
    if let Some(Verdict::Fatal(why)) = worst {
        return Next::Stop(why);
    }
    // Without MCIP, another handler on this CPU has served the machine check.
    let is_nowhere = global.is_in_progress() && !global.can_restart() && !global.is_at_error();
    match (place, worst) {
        (_, Some(_)) if is_nowhere => Next::Stop(Why::NoPlace),
        (Place::Td, _) => Next::Continue,
        (Place::Probe, Some(Verdict::Required)) => Next::Fail,
        (Place::Host, Some(Verdict::Required)) => Next::Stop(Why::HostUsedIt),
        (Place::Host | Place::Probe, _) if global.can_restart() => Next::Continue,
        (Place::Host | Place::Probe, _) => Next::Stop(Why::NoRestart),
    }
}
