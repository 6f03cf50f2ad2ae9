//! The cores of the machine: which TD the threads of each run.
//!
//! The threads of a core share caches and buffers that a TD could observe. A CPU therefore joins the TD that runs beside
//! it on its core, or stays idle until the core is free.

use alloc::vec::Vec;

use super::Ticks;

/// The occupants of all CPUs, by core.
#[derive(Debug)]
pub struct Cores {
    /// The core of each CPU; empty if CPUs share cores freely.
    cores: Vec<u32>,
    occupants: Vec<Option<Beside>>,
}

/// A TD on a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beside {
    /// The TD.
    pub td: u32,
    /// The end of its turn.
    pub until: Ticks,
}

/// The number of no TD. It stands for a TD that was removed while a vCPU of it still runs.
const REMOVED: u32 = 0;

impl Cores {
    /// Creates cores that do not matter.
    pub fn unknown(cpus: usize) -> Self {
        Self {
            cores: Vec::new(),
            occupants: alloc::vec![None; cpus],
        }
    }

    /// Creates the cores of CPUs of which CPU n is a thread of core `cores[n]`.
    pub fn new(cores: &[u32]) -> Self {
        Self {
            cores: cores.to_vec(),
            occupants: alloc::vec![None; cores.len()],
        }
    }

    /// Notes that `cpu` runs a vCPU of `td`, for a turn that ends at `until`.
    pub fn occupy(&mut self, cpu: u32, td: u32, until: Ticks) {
        if let Some(occupant) = self.occupants.get_mut(cpu as usize) {
            *occupant = Some(Beside { td, until });
        }
    }

    /// Notes that `cpu` runs no vCPU.
    pub fn leave(&mut self, cpu: u32) {
        if let Some(occupant) = self.occupants.get_mut(cpu as usize) {
            *occupant = None;
        }
    }

    /// Notes that `td` is gone. A vCPU of it that still runs belongs to no TD that runs beside it.
    pub fn remove(&mut self, td: u32) {
        for occupant in self.occupants.iter_mut().flatten() {
            if occupant.td == td {
                occupant.td = REMOVED;
            }
        }
    }

    /// Returns the TD on the other threads of the core that `cpu` is on, with the end of the last of their turns.
    pub fn beside(&self, cpu: u32) -> Option<Beside> {
        let own = self.cores.get(cpu as usize)?;
        let others = (0..).zip(&self.cores).zip(&self.occupants);
        others
            .filter(|((other, core), _)| *other != cpu && *core == own)
            .filter_map(|(_, occupant)| *occupant)
            .max_by_key(|occupant| occupant.until)
    }

    /// Returns whether `cpu` can run a vCPU of `td` now.
    pub fn allow(&self, cpu: u32, td: u32) -> bool {
        self.beside(cpu).is_none_or(|beside| beside.td == td)
    }
}
