//! All units of the machine.

mod domains;
mod interrupts;
mod report;

pub use interrupts::Origin;
pub use report::{UnitReport, UnitState};

use alloc::{string::String, vec::Vec};

use sync::IrqLock;

use crate::{
    Domain, Error, Function, Platform,
    books::{Books, Verdict},
    dmar::Dmar,
    interrupt::Table,
    scope::{self, Buses, Coverage},
    table::{Format, Memory},
    unit::{Fault, Found, Unit},
};
use domains::Ids;

/// All units of the machine.
///
/// CPUs may call it at the same time. A call waits for units, and for calls of other CPUs that wait for the same unit:
/// for each unit that has to answer at most [`LIMIT_US`](crate::LIMIT_US) once.
pub struct Iommu<P: Platform> {
    memory: Memory<P>,
    /// In the order of the DMAR.
    slots: Vec<Slot<P>>,
    coverage: Vec<Coverage>,
    format: Option<Format>,
    /// `None` if no unit remaps interrupts.
    interrupts: Option<IrqLock<Table<P>>>,
    ids: IrqLock<Ids>,
    /// The domains of functions that keep memory of the firmware's.
    kept: IrqLock<Vec<Domain<P>>>,
    books: IrqLock<Books>,
}

/// A unit that the DMAR lists.
struct Slot<P: Platform> {
    base: u64,
    segment: u16,
    unit: Result<Unit<P>, Error>,
}

/// The findings of a look at the fault records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A fault that the operator has to know.
    Fault(Fault),
    /// The function made too many faults: its unit reports none of them any more.
    Muted(Function),
}

impl<P: Platform> Iommu<P> {
    /// Switches every unit of the table on, with empty tables. [`Self::units`] says which units did not come up.
    ///
    /// # Errors
    /// [`Error::NoMemory`] for the interrupt table. No unit was changed then.
    pub fn start(platform: &P, dmar: &Dmar, buses: &impl Buses) -> Result<Self, Error> {
        let found: Vec<_> = dmar
            .units
            .iter()
            .map(|entry| Found::find(platform, entry.base, entry.segment))
            .collect();
        let good = || found.iter().flatten();
        let memory = Memory {
            platform: platform.clone(),
            writes_back: good().any(|unit| !unit.extended.is_coherent()),
        };
        let mut remapping = good().filter(|unit| unit.extended.remaps_interrupts());
        let has_remapping = dmar.remaps_interrupts && remapping.clone().next().is_some();
        let table = if has_remapping {
            let is_extended = remapping.all(|unit| unit.extended.has_extended_mode());
            Some(Table::new(memory.clone(), is_extended)?)
        } else {
            None
        };
        let ids = Ids::new(good().map(|unit| unit.capability.domains()).min());
        let slots = dmar.units.iter().zip(found).map(|(entry, found)| Slot {
            base: entry.base,
            segment: entry.segment,
            unit: found.and_then(|found| {
                let table = table.as_ref().map(Table::for_units);
                Unit::start(found, &memory, table)
            }),
        });
        let slots: Vec<_> = slots.collect();
        Ok(Self {
            format: format(dmar, &slots),
            slots,
            memory,
            coverage: scope::coverage(dmar, buses),
            interrupts: table.map(IrqLock::new),
            ids: IrqLock::new(ids),
            kept: IrqLock::new(Vec::new()),
            books: IrqLock::new(Books::new()),
        })
    }

    /// Returns true if every unit works, so that no function of theirs reaches what its domain does not map.
    #[must_use]
    pub fn blocks_all(&self) -> bool {
        let works = |slot: &Slot<P>| matches!(&slot.unit, Ok(unit) if unit.failure().is_none());
        !self.slots.is_empty() && self.slots.iter().all(works)
    }

    /// Returns true if a unit that works remaps the function's requests.
    #[must_use]
    pub fn covers(&self, function: Function) -> bool {
        self.unit_of(function)
            .is_ok_and(|(_, unit)| unit.failure().is_none())
    }

    /// Lets every unit signal its faults by an interrupt message, which no unit remaps.
    pub fn signal_faults(&self, address: u64, data: u32) {
        self.each(|unit| unit.signal_faults(address, data));
    }

    /// Stops the interrupts of faults. It takes no lock.
    pub fn mask_faults(&self) {
        self.each(Unit::mask_faults);
    }

    /// Lets faults interrupt again. One that came meanwhile does so at once.
    pub fn unmask_faults(&self) {
        self.each(Unit::unmask_faults);
    }

    /// Takes the fault records of every unit into the books, mutes functions that flood, and passes what the operator
    /// has to know to `tell`. One CPU at a time calls it.
    pub fn serve(&self, tell: &mut dyn FnMut(&Event)) {
        for unit in self.slots.iter().flat_map(|slot| &slot.unit) {
            let mut muted = Vec::new();
            let lost = unit.faults(&mut |fault| {
                let now = self.memory.platform.now_us();
                // The guard is dropped before anything is told.
                let verdict = self.books.lock().note(fault, now);
                match verdict {
                    Verdict::Tell => tell(&Event::Fault(*fault)),
                    Verdict::Mute => muted.push(fault.function),
                    Verdict::Count => {}
                }
            });
            if lost {
                self.books.lock().note_lost();
            }
            for function in muted {
                match unit.mute(function.source, true) {
                    Ok(()) => tell(&Event::Muted(function)),
                    // It is muted at its next flood.
                    Err(_) => self.books.lock().unmute(function),
                }
            }
        }
    }

    /// Passes the books of faults to `look`.
    pub fn with_books<R>(&self, look: impl FnOnce(&Books) -> R) -> R {
        look(&self.books.lock())
    }

    /// Returns each unit that the DMAR lists.
    #[must_use]
    pub fn units(&self) -> Vec<UnitReport> {
        let slots = self.slots.iter().zip(&self.coverage);
        slots
            .map(|(slot, coverage)| report::report(slot, coverage))
            .collect()
    }

    /// Returns a sentence for each unit that does not work.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let units = self.units().into_iter();
        units
            .filter_map(|unit| match unit.state {
                UnitState::Failed(why) => Some(why),
                UnitState::On => None,
            })
            .collect()
    }

    fn each(&self, work: impl Fn(&Unit<P>)) {
        self.slots.iter().flat_map(|slot| &slot.unit).for_each(work);
    }

    /// Returns the unit of a function, with its index.
    fn unit_of(&self, function: Function) -> Result<(usize, &Unit<P>), Error> {
        let index = scope::unit_of(&self.coverage, function);
        let unit = index.and_then(|index| Some((index, self.unit(index)?)));
        unit.ok_or(Error::NotCovered(function))
    }

    fn unit(&self, index: usize) -> Option<&Unit<P>> {
        self.slots.get(index)?.unit.as_ref().ok()
    }
}

/// Returns the table format that all units that came up understand.
fn format<P: Platform>(dmar: &Dmar, slots: &[Slot<P>]) -> Option<Format> {
    let units: Vec<_> = slots
        .iter()
        .filter_map(|slot| Some(slot.unit.as_ref().ok()?.found.capability))
        .collect();
    // Four levels reach all memory of today's machines; a walk of five takes longer.
    let levels = [4, 3, 5]
        .into_iter()
        .find(|levels| units.iter().all(|unit| unit.walks(*levels)))?;
    let highest_leaf = (1..=3)
        .take_while(|level| units.iter().all(|unit| unit.has_leaf(*level)))
        .last()?;
    let bits = units.iter().map(|unit| unit.address_bits()).min()?;
    Some(Format {
        levels,
        highest_leaf,
        bits: bits.min(12 + 9 * levels),
        physical_bits: dmar.address_bits.into(),
        flushes_new: units
            .iter()
            .any(|unit| unit.caches_absent() || unit.needs_write_buffer_flush()),
    })
}
