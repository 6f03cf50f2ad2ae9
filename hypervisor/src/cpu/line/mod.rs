//! Lines: the vectors of the host's CPUs on which interrupts of functions arrive.
//!
//! A line is a vector of one CPU. Handlers find the receiver of a line without a lock. A line is given back once its
//! interrupt can't be raised and is pending on no CPU; its receiver goes when no handler has it.

mod slot;

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::fmt;
use core::ops::RangeInclusive;

use spin::Once;
use sync::IrqLock;

use super::vector::FUNCTION_VECTORS;
pub use slot::Slot;

/// Receives the interrupts of a line. It is called in interrupt handlers: it takes no lock and allocates nothing.
pub trait Receiver: fmt::Debug + Send + Sync {
    /// Serves an interrupt that arrived at the CPU of this number.
    fn arrive(&self, cpu: usize);

    /// Ends a rest that [`Self::arrive`] has begun.
    fn end_rest(&self);
}

/// A line that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// The number of its CPU.
    pub cpu: u32,
    /// The APIC id of its CPU.
    pub apic_id: u32,
    /// Its vector.
    pub vector: u8,
}

/// The lines of the machine.
#[derive(Debug)]
pub struct Lines {
    /// By the CPUs' numbers.
    cpus: Box<[Cpu]>,
    /// The number of lines in use, by the CPUs' numbers.
    used: IrqLock<Vec<usize>>,
}

#[derive(Debug)]
struct Cpu {
    apic_id: u32,
    /// By vectors. Empty if the CPU gets no interrupts of functions.
    slots: Box<[Slot<Arc<dyn Receiver>>]>,
}

impl Lines {
    /// Number of lines that a CPU has.
    pub const EACH: usize = count(&FUNCTION_VECTORS);

    /// Creates the lines of these CPUs, by their numbers: their APIC ids, or `None` for those that get none.
    pub fn new(cpus: impl IntoIterator<Item = Option<u32>>) -> Self {
        let cpu = |apic_id: Option<u32>| Cpu {
            apic_id: apic_id.unwrap_or_default(),
            slots: match apic_id {
                Some(_) => (0..Self::EACH).map(|_| Slot::default()).collect(),
                None => Box::default(),
            },
        };
        let cpus: Box<[Cpu]> = cpus.into_iter().map(cpu).collect();
        Self {
            used: IrqLock::new(alloc::vec![0; cpus.len()]),
            cpus,
        }
    }

    /// Returns the number of lines of the machine.
    pub fn count(&self) -> usize {
        self.cpus.iter().map(|cpu| cpu.slots.len()).sum()
    }

    /// Returns the number of CPUs, with and without lines.
    pub fn cpus(&self) -> usize {
        self.cpus.len()
    }

    /// Returns the number of lines in use.
    pub fn used(&self) -> usize {
        self.used.lock().iter().sum()
    }

    /// Takes a line of the CPU that has most to give. Returns `None` if none is free.
    pub fn take(&self, receiver: &Arc<dyn Receiver>) -> Option<Line> {
        let mut used = self.used.lock();
        let with_room = (0..self.cpus.len()).filter(|cpu| used[*cpu] < self.cpus[*cpu].slots.len());
        let number = with_room.min_by_key(|cpu| used[*cpu])?;
        let cpu = &self.cpus[number];
        let index = cpu
            .slots
            .iter()
            .position(|slot| slot.put(receiver.clone()))?;
        used[number] += 1;
        Some(Line {
            cpu: number as u32,
            apic_id: cpu.apic_id,
            vector: FUNCTION_VECTORS.start() + index as u8,
        })
    }

    /// Gives a line back. Its interrupt can't be raised, and is pending nowhere.
    pub fn give(&self, line: Line) {
        let receiver = self
            .slot(line.cpu as usize, line.vector)
            .and_then(Slot::take);
        if receiver.is_some() {
            self.used.lock()[line.cpu as usize] -= 1;
        }
    }

    /// Serves an interrupt at the CPU of this number, in its handler. Returns `false` if nobody receives it.
    pub fn serve(&self, cpu: usize, vector: u8) -> bool {
        let slot = self.slot(cpu, vector);
        slot.and_then(|slot| slot.with(|receiver| receiver.arrive(cpu)))
            .is_some()
    }

    /// Ends the rests of all lines of the CPU of this number, in a handler.
    pub fn end_rests(&self, cpu: usize) {
        let slots = self.cpus.get(cpu).map_or(&[][..], |cpu| &cpu.slots);
        for slot in slots {
            slot.with(|receiver| receiver.end_rest());
        }
    }

    fn slot(&self, cpu: usize, vector: u8) -> Option<&Slot<Arc<dyn Receiver>>> {
        let index = vector.checked_sub(*FUNCTION_VECTORS.start())?;
        self.cpus.get(cpu)?.slots.get(usize::from(index))
    }
}

static LINES: Once<Lines> = Once::new();

/// Returns this machine's lines, which `make` creates if there are none yet.
pub fn get_or(make: impl FnOnce() -> Lines) -> &'static Lines {
    LINES.call_once(make)
}

/// Serves an interrupt of a function at the calling CPU. Returns `false` if nobody receives it.
pub(super) fn on_interrupt(vector: u8) -> bool {
    let cpu = super::number() as usize;
    LINES.get().is_some_and(|lines| lines.serve(cpu, vector))
}

/// Ends the rests of the calling CPU's interrupts.
pub(super) fn on_timer() {
    if let Some(lines) = LINES.get() {
        lines.end_rests(super::number() as usize);
    }
}

const fn count(vectors: &RangeInclusive<u8>) -> usize {
    (*vectors.end() - *vectors.start()) as usize + 1
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;

    #[derive(Debug, Default)]
    struct Count(AtomicU32);

    impl Receiver for Count {
        fn arrive(&self, _: usize) {
            self.0.fetch_add(1, Relaxed);
        }
        fn end_rest(&self) {}
    }

    #[test]
    fn lines_are_spread_over_the_cpus_that_have_some() {
        let lines = Lines::new([Some(7), None, Some(9)]);
        assert_eq!(lines.count(), 2 * Lines::EACH);
        let receiver: Arc<dyn Receiver> = Arc::new(Count::default());
        let taken: Vec<_> = (0..4).filter_map(|_| lines.take(&receiver)).collect();
        let cpus: Vec<_> = taken.iter().map(|line| (line.cpu, line.apic_id)).collect();
        assert_eq!(cpus, [(0, 7), (2, 9), (0, 7), (2, 9)]);
        while lines.take(&receiver).is_some() {}
        assert_eq!(lines.used(), lines.count());
        lines.give(taken[1]);
        lines.give(taken[1]);
        assert_eq!(lines.used(), lines.count() - 1);
        assert_eq!(lines.take(&receiver), Some(taken[1]));
    }

    #[test]
    fn an_interrupt_goes_to_the_receiver_of_its_line_or_to_nobody() {
        let lines = Lines::new([Some(0), Some(1)]);
        let count = Arc::new(Count::default());
        let receiver: Arc<dyn Receiver> = count.clone();
        let line = lines.take(&receiver).unwrap();
        assert!(lines.serve(0, line.vector));
        assert!(!lines.serve(1, line.vector) && !lines.serve(0, line.vector + 1));
        assert!(!lines.serve(2, line.vector) && !lines.serve(0, 0x20) && !lines.serve(0, 0xFF));
        lines.give(line);
        assert!(!lines.serve(0, line.vector));
        assert_eq!(count.0.load(Relaxed), 1);
    }
}
