//! The functions of one life of a TD: how they are taken, and how they are given back.
//!
//! Taken in this order: they are stopped, reset, confined to an empty domain; only then may they become bus masters.
//! Given back in this order: they are stopped, detached, reset; then their interrupts go, and their registers become
//! what they were. Each step that fails leaves them stopped and reaching nothing, unless a VT-d unit does not answer.

use alloc::{boxed::Box, format, string::String, sync::Arc, vec::Vec};
use core::sync::atomic::{
    AtomicU8, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use devices::pci::Physical;
use host::functions::{Sink, Taken};
use io::Address;
use mm::shared::Mirror;
use sync::Once;

use super::{
    domain::Confinement, endpoint::Endpoint, machine::Machine, share::Share, vector::Owner,
};

/// The functions of one life of a TD.
#[derive(Debug)]
pub struct Assembly<M: Machine> {
    share: Arc<Share<M>>,
    endpoints: Box<[Arc<Endpoint<M>>]>,
    confinement: Arc<Confinement<M>>,
    state: AtomicU8,
    /// The time of the last look for problems, in microseconds, and the problem that was found.
    looked_us: AtomicU64,
    problem: Once<String>,
}

/// States of an assembly.
const LIVE: u8 = 0;
const ENDING: u8 = 1;
const ENDED: u8 = 2;

/// Minimum time between two looks for problems, in microseconds: each reads some registers of each function.
const LOOK_US: u64 = 10_000;

impl<M: Machine> Assembly<M> {
    /// Takes the functions at these addresses for a TD. It waits for their resets.
    ///
    /// # Errors
    /// A sentence; the functions are stopped and reach nothing.
    pub fn new(machine: &M, addresses: &[Address]) -> Result<Self, String> {
        let share = Arc::new(Share::new(machine, addresses.len()));
        let owners = addresses.iter().enumerate();
        let owners = owners.map(|(index, at)| Owner { at: *at, index });
        let prepared = owners.map(|owner| Endpoint::new(&share, owner));
        let endpoints = prepared.collect::<Result<Vec<_>, _>>()?;
        let requesters = requesters(machine, addresses)?;
        endpoints.iter().for_each(Endpoint::stop);
        let confinement =
            reset(machine, addresses).and_then(|()| Confinement::new(machine, &requesters));
        let confinement = match confinement {
            Ok(confinement) => confinement,
            Err(why) => {
                share.end();
                endpoints.iter().for_each(Endpoint::restore);
                return Err(why);
            }
        };
        endpoints.iter().for_each(Endpoint::prepare);
        Ok(Self {
            share,
            endpoints: endpoints.into_iter().map(Arc::new).collect(),
            confinement,
            state: AtomicU8::new(LIVE),
            looked_us: AtomicU64::new(0),
            problem: Once::new(),
        })
    }

    /// Returns the functions.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint<M>>> {
        self.endpoints.iter()
    }

    /// Returns true while a CPU gives the functions back.
    pub fn is_ending(&self) -> bool {
        self.state.load(Acquire) == ENDING
    }

    /// Gives the lines back that no interrupt can use any more.
    fn free_lines(&self) {
        let machine = &self.share.machine;
        let lines: Vec<_> = self.endpoints.iter().flat_map(|e| e.unroute()).collect();
        match machine.drain(&lines) {
            Ok(()) => lines.iter().for_each(|line| machine.lines().give(*line)),
            // An interrupt may still come, and must not find another TD's receiver.
            Err(why) => log::error!("{} vectors of CPUs stay taken: {why}", lines.len()),
        }
    }

    fn end(&self) -> Result<(), String> {
        self.share.end();
        self.endpoints.iter().for_each(|endpoint| endpoint.stop());
        self.confinement.end()?;
        // Nothing reaches the TD from here on, whatever the functions do.
        drop(self.share.sink.take());
        self.endpoints.iter().for_each(|endpoint| endpoint.settle());
        let addresses: Vec<_> = self
            .endpoints
            .iter()
            .map(|endpoint| endpoint.at())
            .collect();
        if let Err(why) = reset(&self.share.machine, &addresses) {
            log::error!("{why}");
        }
        self.free_lines();
        self.endpoints
            .iter()
            .for_each(|endpoint| endpoint.restore());
        Ok(())
    }
}

impl<M: Machine> Taken for Assembly<M> {
    fn functions(&self) -> Vec<Arc<dyn Physical>> {
        let all = self.endpoints.iter();
        all.map(|endpoint| endpoint.clone() as Arc<dyn Physical>)
            .collect()
    }

    fn mirror(&self) -> Arc<dyn Mirror> {
        self.confinement.clone()
    }

    fn connect(&self, sink: Arc<dyn Sink>) {
        self.share.sink.put(sink);
    }

    fn problem(&self) -> Option<String> {
        if self.share.is_over() {
            return None;
        }
        let (now, last) = (self.share.machine.us(), self.looked_us.load(Relaxed));
        if self.problem.get().is_none() && now.saturating_sub(last) >= LOOK_US {
            self.looked_us.store(now, Relaxed);
            let found = self
                .endpoints
                .iter()
                .find_map(|endpoint| endpoint.problem());
            if let Some(found) = found {
                self.problem.call_once(|| found);
            }
        }
        self.problem.get().cloned()
    }

    fn rests(&self, function: usize) -> u64 {
        self.share.rests(function)
    }

    fn give_back(&self) -> Result<(), String> {
        match self.state.compare_exchange(LIVE, ENDING, AcqRel, Acquire) {
            Ok(_) => {}
            Err(ENDED) => return Ok(()),
            Err(_) => return Err("another CPU gives the PCI functions back".into()),
        }
        let outcome = self.end();
        let state = if outcome.is_ok() { ENDED } else { LIVE };
        self.state.store(state, Release);
        outcome
    }
}

/// Resets functions, and waits for the ends of all resets. Functions that do not come back are out of use then.
///
/// # Errors
/// A sentence.
fn reset<M: Machine>(machine: &M, addresses: &[Address]) -> Result<(), String> {
    let space = machine.space();
    let begun = {
        let mut inventory = machine.inventory().lock();
        inventory.begin_resets(space, machine, addresses)
    };
    let mut result = Ok(());
    for mut resetting in begun.map_err(|error| format!("{error}"))? {
        let outcome = resetting.finish(space, machine);
        machine.inventory().lock().end_reset(&resetting, outcome);
        result = result.and(outcome.map(drop));
    }
    result.map_err(|error| format!("{error}"))
}

/// Returns the requester ids of functions, each once.
///
/// # Errors
/// A sentence: the units do not confine one.
fn requesters<M: Machine>(
    machine: &M,
    addresses: &[Address],
) -> Result<Vec<vtd::Function>, String> {
    let iommu = machine.iommu()?;
    if !iommu.remaps_interrupts() {
        return Err("no VT-d unit confines the interrupts of PCI functions".into());
    }
    let inventory = machine.inventory().lock();
    let mut all = Vec::new();
    for at in addresses {
        let ids = inventory.requesters(*at).iter();
        all.extend(ids.map(|id| vtd::Function::new(at.segment, vtd::Source(*id))));
    }
    all.sort_unstable();
    all.dedup();
    match all.iter().find(|function| !iommu.covers(**function)) {
        Some(open) => Err(format!("no VT-d unit confines PCI function {open}")),
        None => Ok(all),
    }
}
