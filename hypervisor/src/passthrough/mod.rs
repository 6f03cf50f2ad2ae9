//! PCI functions that TDs have whole: the guest's own driver drives them, and VT-d confines them.
//!
//! | Room | Content |
//! |---|---|
//! | `assembly` | The functions of one life of a TD: taking them and giving them back, step by step |
//! | `endpoint` | One function: registers, memory, resets |
//! | `interrupts`, `vector` | Its interrupt capability; one interrupt, from the function to the guest |
//! | `share` | What the functions of one TD share: the budget of interrupts, the number of lines |
//! | `domain` | The domain of VT-d that follows the TD's shared memory |
//! | `claims` | Who may have which function |
//! | `machine`, `hardware` | The machine as a trait, and this machine |
//!
//! Interrupts arrive on lines, which are vectors of the host's CPUs: `cpu::line`.

mod assembly;
pub mod claims;
mod domain;
mod endpoint;
mod hardware;
mod interrupts;
mod machine;
mod share;
#[cfg(test)]
mod tests;
mod vector;

use alloc::{
    boxed::Box,
    string::String,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{
    AtomicBool,
    Ordering::{AcqRel, Acquire, Release},
};

use devices::pci::Physical;
use host::functions::{Functions, Sink, Taken};
use io::Address;
use mm::shared::Mirror;
use sync::IrqLock;
use vcpu::Executor;

use crate::cpu;
use assembly::Assembly;
use endpoint::Endpoint;
use hardware::Here;

/// The functions that TDs have.
static ALL: IrqLock<Vec<Weak<Endpoint<Here>>>> = IrqLock::new(Vec::new());
/// True while a function is being reset.
static HAS_WORK: AtomicBool = AtomicBool::new(false);

/// Sets what runs the vCPUs that get interrupts.
pub fn run_by(executor: &'static (dyn Executor + Sync)) {
    hardware::run_by(executor);
}

/// The machine's functions, as TDs get them.
#[derive(Debug)]
pub struct Machines;

impl Functions for Machines {
    fn take(&self, td: &str, devices: &[String]) -> Result<Box<dyn Taken>, String> {
        claims::take(td, devices, assemble)
    }
}

/// Takes the functions at these addresses for a life of the TD `td`: stops and resets them, and confines them to
/// nothing. The caller has checked that the TD may have them. It waits for the resets, with interrupts on: 100 ms as a
/// rule, and at most a minute for a function that does not come back.
///
/// # Errors
/// A sentence; the functions are stopped and reach nothing.
fn assemble(td: &str, addresses: Vec<Address>) -> Result<Box<dyn Taken>, String> {
    let machine = Here::get().ok_or("CPUs can't be interrupted by PCI functions")?;
    let assembly = Assembly::new(&machine, &addresses)?;
    let mut all = ALL.lock();
    all.retain(|known| known.strong_count() > 0);
    all.extend(assembly.endpoints().map(Arc::downgrade));
    drop(all);
    Ok(Box::new(Claimed {
        assembly,
        td: td.into(),
        addresses,
        is_over: AtomicBool::new(false),
    }))
}

/// An assembly whose functions the TD has claimed.
#[derive(Debug)]
struct Claimed {
    assembly: Assembly<Here>,
    td: String,
    addresses: Vec<Address>,
    /// True once the claim has ended.
    is_over: AtomicBool,
}

impl Taken for Claimed {
    fn functions(&self) -> Vec<Arc<dyn Physical>> {
        self.assembly.functions()
    }

    fn mirror(&self) -> Arc<dyn Mirror> {
        self.assembly.mirror()
    }

    fn connect(&self, sink: Arc<dyn Sink>) {
        self.assembly.connect(sink);
    }

    fn problem(&self) -> Option<String> {
        self.assembly.problem()
    }

    fn rests(&self, function: usize) -> u64 {
        self.assembly.rests(function)
    }

    fn give_back(&self) -> Result<(), String> {
        let outcome = self.assembly.give_back();
        if self.assembly.is_ending() || self.is_over.swap(true, AcqRel) {
            return outcome;
        }
        match &outcome {
            Ok(()) => claims::give_back(&self.td, &self.addresses),
            // A unit that did not answer is not asked again.
            Err(why) => claims::retire(&self.td, &self.addresses, why),
        }
        outcome
    }
}

/// Goes on with the resets that guests asked for. The bootstrap CPU calls it in its loop.
pub fn serve() {
    if !HAS_WORK.swap(false, Acquire) {
        return;
    }
    let all: Vec<_> = ALL.lock().iter().filter_map(Weak::upgrade).collect();
    if all
        .iter()
        .fold(false, |more, endpoint| endpoint.serve() | more)
    {
        HAS_WORK.store(true, Release);
    }
}

/// Returns true if [`serve`] has something to do.
#[must_use]
pub fn are_waiting() -> bool {
    HAS_WORK.load(Acquire)
}

/// Has [`serve`] called soon.
fn has_work() {
    HAS_WORK.store(true, Release);
    cpu::wake_console();
}
