//! SEAMCALL of a simulated CPU, and calls that never reach the module.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use seam::abi::{FatalRecord, Gprs, Leaf, Status};
use seam::call::{Fault, SeamCall};

use super::cpus::Event;
use super::{FATAL_RECORD, Machine};

/// Executes SEAMCALL on one CPU.
pub struct Caller {
    machine: Arc<Machine>,
    cpu: u32,
}

impl Caller {
    pub(super) fn new(machine: Arc<Machine>, cpu: u32) -> Self {
        Self { machine, cpu }
    }
}

impl SeamCall for Caller {
    fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault> {
        super::outside(|| self.make(regs))
    }

    fn note_shutdown(&self) {
        let memory = self.machine.server.machine().memory();
        self.machine.shutdown.note(|| {
            let mut bytes = [0; size_of::<FatalRecord>()];
            memory.read(FATAL_RECORD.0, &mut bytes);
            bytes.into()
        });
    }
}

impl Caller {
    fn make(&self, regs: &mut Gprs) -> Result<(), Fault> {
        if let Some(leaf) = Leaf::from_number(regs.rax as u16) {
            self.machine.cpus.comes_to(Event::Call(leaf));
        }
        for work in self.machine.meanwhile.due(regs.rax) {
            work();
        }
        if let Some(answer) = self.machine.refusals.strike(regs.rax) {
            regs.rax = answer?.0;
            return Ok(());
        }
        let spoiled = self.machine.spoils.strike(regs.rax);
        let cpu = self.machine.server.processor(self.cpu).unwrap();
        let now = || self.machine.start.elapsed().as_nanos() as u64;
        let stopwatch = &self.machine.stopwatch;
        stopwatch.time(now, regs, |regs| cpu.seamcall(regs))?;
        if let Some(answer) = spoiled {
            regs.rax = answer?.0;
        }
        Ok(())
    }
}

/// Calls whose answers a test chooses.
#[derive(Default)]
pub struct Refusals(Mutex<Vec<Refusal>>);

struct Refusal {
    leaf: Leaf,
    calls: RangeInclusive<u64>,
    answer: Result<Status, Fault>,
    seen: u64,
}

impl Refusals {
    pub fn add(&self, leaf: Leaf, calls: RangeInclusive<u64>, status: Status) {
        self.push(leaf, calls, Ok(status));
    }

    pub fn add_fault(&self, leaf: Leaf, calls: RangeInclusive<u64>, fault: Fault) {
        self.push(leaf, calls, Err(fault));
    }

    fn push(&self, leaf: Leaf, calls: RangeInclusive<u64>, answer: Result<Status, Fault>) {
        self.0.lock().unwrap().push(Refusal {
            leaf,
            calls,
            answer,
            seen: 0,
        });
    }

    pub fn clear(&self) {
        self.0.lock().unwrap().clear();
    }

    /// Returns the answer to the beginning call of the leaf in `rax`, if there is one.
    fn strike(&self, rax: u64) -> Option<Result<Status, Fault>> {
        let mut struck = None;
        for refusal in &mut *self.0.lock().unwrap() {
            if u64::from(refusal.leaf.number()) != rax & 0xffff {
                continue;
            }
            refusal.seen += 1;
            if refusal.calls.contains(&refusal.seen) {
                struck = struck.or(Some(refusal.answer));
            }
        }
        struck
    }
}

/// Work to do when a call begins.
#[derive(Default)]
pub struct Meanwhile(Mutex<Vec<Deed>>);

struct Deed {
    leaf: Leaf,
    /// Number of calls that begin before the awaited one.
    left: u64,
    work: Work,
}

type Work = Box<dyn FnOnce() + Send>;

impl Meanwhile {
    pub fn add(&self, leaf: Leaf, call: u64, work: Work) {
        let left = call - 1;
        self.0.lock().unwrap().push(Deed { leaf, left, work });
    }

    /// Takes the work that is due at the beginning call of the leaf in `rax`.
    fn due(&self, rax: u64) -> Vec<Work> {
        let mut deeds = self.0.lock().unwrap();
        let due = deeds.extract_if(.., |deed| {
            let is_its = u64::from(deed.leaf.number()) == rax & 0xffff;
            let is_due = is_its && deed.left == 0;
            deed.left -= u64::from(is_its && !is_due);
            is_due
        });
        due.map(|deed| deed.work).collect()
    }
}
