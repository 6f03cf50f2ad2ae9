//! The scheduler's view of a TD: its vm, and its vCPUs between two turns.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use spin::Mutex;
use vcpu::{Vcpu, Vm};

use crate::td::Td;

/// No CPU.
const NONE: u32 = u32::MAX;

/// A TD whose vCPUs run or have run. The record of its end stays until the TD is rebuilt, and its console even longer.
#[derive(Debug)]
pub struct Guest {
    id: u32,
    vm: Vm,
    seats: Box<[Seat]>,
    /// The TD's current life, from its start to its end.
    td: Mutex<Option<Arc<Td>>>,
}

/// A vCPU between two turns.
#[derive(Debug)]
struct Seat {
    vcpu: Mutex<Vcpu>,
    /// The CPU that currently runs the vCPU.
    cpu: AtomicU32,
}

impl Guest {
    /// Creates the guest of TD `id`, before its first turn.
    #[must_use]
    pub fn new(id: u32, vm: Vm) -> Self {
        let seats: Vec<_> = (0..)
            .zip(vm.vcpus())
            .map(|(index, state)| Seat {
                vcpu: Mutex::new(Vcpu::new(index, state.apic_id())),
                cpu: AtomicU32::new(NONE),
            })
            .collect();
        Self {
            id,
            vm,
            seats: seats.into_boxed_slice(),
            td: Mutex::new(None),
        }
    }

    /// The TD's number.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// State that the TD's vCPUs share.
    #[must_use]
    pub const fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Returns the CPU that currently runs vCPU `index`.
    #[must_use]
    pub fn cpu_of(&self, index: u32) -> Option<u32> {
        let cpu = self.seats.get(index as usize)?.cpu.load(SeqCst);
        (cpu != NONE).then_some(cpu)
    }

    /// Returns the TD's current life.
    #[must_use]
    pub fn td(&self) -> Option<Arc<Td>> {
        self.td.lock().clone()
    }

    pub(super) fn set_td(&self, td: Option<Arc<Td>>) {
        *self.td.lock() = td;
    }

    /// Runs `work` on vCPU `index`, on behalf of `cpu`. Returns `None` if another CPU has the vCPU.
    pub(super) fn play<R>(
        &self,
        index: u16,
        cpu: u32,
        work: impl FnOnce(&mut Vcpu) -> R,
    ) -> Option<R> {
        let seat = self.seats.get(usize::from(index))?;
        let mut vcpu = seat.vcpu.try_lock()?;
        seat.cpu.store(cpu, SeqCst);
        let result = work(&mut vcpu);
        seat.cpu.store(NONE, SeqCst);
        Some(result)
    }
}
