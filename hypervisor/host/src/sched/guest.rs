//! The scheduler's view of a TD: its TD-wide state, and its vCPUs between two time slices.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use devices::pci::passthrough::Counts;
use spin::{Mutex, MutexGuard};
use vcpu::{Vcpu, Vm};

use super::equipment::{Equipment, Fixture};
use super::functions::Functions;
use super::queue::Ticks;
use crate::td::Td;

/// A TD whose vCPUs run or have run. The record of its end stays until the TD is rebuilt, and its console even longer.
#[derive(Debug)]
pub struct Guest {
    id: u32,
    vm: Arc<Vm>,
    /// Held by the CPU that runs the vCPU.
    vcpus: Box<[Mutex<Vcpu>]>,
    /// The TD's current life, from its start to its end.
    td: Mutex<Option<Arc<Td>>>,
    /// The physical functions, until they are given back.
    pub(super) functions: Mutex<Option<Functions>>,
    /// Counters of the physical functions, in the order of the configuration.
    pub(super) counts: Vec<Arc<Counts>>,
    /// The virtual functions.
    fixtures: Vec<Fixture>,
    /// The last offer to work for the devices. Only ever try-locked.
    pub(super) offered: sync::Mutex<Option<Offer>>,
    /// Ticks for which CPUs have worked for the devices that did not run a vCPU of the TD.
    helped: AtomicU64,
}

/// An offer to an idle CPU to work for the devices.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    /// The CPU.
    pub to: u32,
    pub at: Ticks,
}

impl Guest {
    /// Creates the guest of TD `id`, before its first time slice.
    #[must_use]
    pub fn new(id: u32, vm: Vm) -> Self {
        let vcpus: Vec<_> = Vcpu::all_of(&vm).map(Mutex::new).collect();
        Self {
            id,
            vm: Arc::new(vm),
            vcpus: vcpus.into_boxed_slice(),
            td: Mutex::new(None),
            functions: Mutex::new(None),
            counts: Vec::new(),
            fixtures: Vec::new(),
            offered: sync::Mutex::new(None),
            helped: AtomicU64::new(0),
        }
    }

    /// Notes that a CPU which runs no vCPU of the TD has worked for its devices.
    pub(super) fn note_help(&self, ticks: Ticks) {
        self.helped.fetch_add(ticks, Relaxed);
    }

    /// Returns the ticks of such work.
    pub(super) fn helped(&self) -> Ticks {
        self.helped.load(Relaxed)
    }

    /// Adds the physical functions that the TD has taken.
    pub(super) fn with_functions(self, taken: Option<Functions>) -> Self {
        let functions = Mutex::new(taken);
        Self { functions, ..self }
    }

    /// Adds the counters of the TD's physical functions.
    pub(super) fn with_counts(self, counts: Vec<Arc<Counts>>) -> Self {
        Self { counts, ..self }
    }

    /// Adds the virtual functions, which are on the bus already, and lets other TDs reach them.
    pub(super) fn with_equipment(self, equipment: Equipment) -> Self {
        equipment.belong_to(&self.vm);
        let fixtures = equipment.fixtures;
        Self { fixtures, ..self }
    }

    /// Returns the virtual functions.
    pub(super) fn fixtures(&self) -> &[Fixture] {
        &self.fixtures
    }

    /// The TD's number.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// The TD-wide state.
    #[must_use]
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Returns the TD's current life.
    #[must_use]
    pub fn td(&self) -> Option<Arc<Td>> {
        self.td.lock().clone()
    }

    pub(super) fn set_td(&self, td: Option<Arc<Td>>) {
        *self.td.lock() = td;
    }

    /// Takes vCPU `index`. Returns `None` if another CPU has it.
    pub(super) fn vcpu(&self, index: u16) -> Option<MutexGuard<'_, Vcpu>> {
        self.vcpus.get(usize::from(index))?.try_lock()
    }
}
