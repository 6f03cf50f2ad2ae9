//! One unit: its start with empty tables, its commands, its queue and its faults.

mod descriptor;
mod fault;
mod found;
mod queue;
mod start;

pub use fault::{Fault, Reason, Request};

pub(crate) use descriptor::{CONTEXTS, Descriptor, INTERRUPTS, Translations, interrupt};
pub(crate) use found::Found;

use sync::IrqLock;

use crate::{
    Error, Function, Platform, Registers, Source, Wait,
    register::{self, Command, FaultStatus},
    table::{Attached, Contexts},
};
use fault::VALID;
use queue::Queue;
use start::start_queue;

/// The interrupt table of all units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InterruptTable {
    /// Its physical address.
    pub pa: u64,
    /// Number of its entries as a power of two.
    pub order: u32,
    /// True if destinations have 32 bits.
    pub is_extended: bool,
}

/// A unit that translates.
pub(crate) struct Unit<P: Platform> {
    pub found: Found<P::Registers>,
    /// True if it remaps interrupts.
    pub remaps: bool,
    /// True if the firmware's translation was on when the unit was taken over.
    pub taken_over: bool,
    platform: P,
    inner: IrqLock<Inner<P>>,
}

struct Inner<P> {
    contexts: Contexts<P>,
    queue: Queue<P>,
    /// The reason why the unit is not asked again.
    failed: Option<Error>,
}

impl<P: Platform> Unit<P> {
    /// Returns why the unit is not asked again, if it failed.
    pub fn failure(&self) -> Option<Error> {
        self.inner.lock().failed.clone()
    }

    /// Attaches a function that is not attached.
    pub fn attach(&self, function: Source, to: &Attached) -> Result<(), Error> {
        let mut inner = self.inner.lock();
        if inner.contexts.get(function).is_some() {
            return Err(Error::Attached(Function::new(self.found.segment, function)));
        }
        inner.contexts.set(function, to)?;
        self.submit(
            &mut inner,
            &[CONTEXTS, self.translations(Translations::All)],
        )
    }

    /// Detaches a function: it reaches nothing, once this has succeeded.
    pub fn detach(&self, function: Source) -> Result<(), Error> {
        let mut inner = self.inner.lock();
        inner.contexts.clear(function);
        self.submit(
            &mut inner,
            &[CONTEXTS, self.translations(Translations::All)],
        )
    }

    /// Mutes or unmutes the faults of a function.
    pub fn mute(&self, function: Source, is_muted: bool) -> Result<(), Error> {
        let mut inner = self.inner.lock();
        inner.contexts.mute(function, is_muted)?;
        self.submit(&mut inner, &[CONTEXTS])
    }

    /// Makes the unit forget translations, and waits until it has.
    pub fn forget(&self, what: Translations) -> Result<(), Error> {
        self.invalidate(&[self.translations(what)])
    }

    /// Executes invalidations, and waits until they are done.
    pub fn invalidate(&self, descriptors: &[Descriptor]) -> Result<(), Error> {
        self.submit(&mut self.inner.lock(), descriptors)
    }

    fn translations(&self, what: Translations) -> Descriptor {
        let capability = self.found.capability;
        descriptor::translations(what, capability.drains_reads(), capability.drains_writes())
    }

    /// Submits descriptors, and waits until they are done. A queue that the unit refuses is started once more.
    fn submit(&self, inner: &mut Inner<P>, descriptors: &[Descriptor]) -> Result<(), Error> {
        if let Some(error) = &inner.failed {
            return Err(error.clone());
        }
        let outcome = self.try_submit(&mut inner.queue, descriptors);
        if let Err(error) = &outcome {
            inner.failed = Some(error.clone());
        }
        outcome
    }

    fn try_submit(&self, queue: &mut Queue<P>, descriptors: &[Descriptor]) -> Result<(), Error> {
        let (found, platform) = (&self.found, &self.platform);
        for _ in 0..2 {
            found.flush_write_buffer(platform)?;
            let tail = queue.add(descriptors);
            found.registers.write64(register::QUEUE_TAIL, tail);
            let mut is_refused = false;
            found.wait(platform, Wait::Invalidation, |registers| {
                is_refused = has_queue_error(registers);
                queue.is_done() || is_refused
            })?;
            if !is_refused {
                return Ok(());
            }
            found.command(platform, Command::QUEUE, false, Wait::QueueOff)?;
            let errors = FaultStatus::QUEUE_ERRORS.bits();
            found.registers.write32(register::FAULT_STATUS, errors);
            start_queue(found, platform, queue)?;
        }
        Err(Error::Queue(found.base))
    }

    /// Lets fault events raise the interrupt with this address and data.
    pub fn signal_faults(&self, address: u64, data: u32) {
        let registers = &self.found.registers;
        registers.write32(register::FAULT_DATA, data);
        registers.write32(register::FAULT_ADDRESS, address as u32);
        registers.write32(register::FAULT_UPPER_ADDRESS, (address >> 32) as u32);
        registers.write32(register::FAULT_CONTROL, 0);
    }

    /// Stops fault events until [`Self::unmask_faults`]. It takes no lock.
    pub fn mask_faults(&self) {
        self.found.mask_faults();
    }

    /// Lets fault events interrupt again. An event that came meanwhile does so at once.
    pub fn unmask_faults(&self) {
        self.found.registers.write32(register::FAULT_CONTROL, 0);
    }

    /// Takes the fault records. Returns true if the unit lost faults since the last call. One caller at a time takes
    /// them.
    pub fn faults(&self, each: &mut dyn FnMut(&Fault)) -> bool {
        let registers = &self.found.registers;
        let status = FaultStatus::from_bits_retain(registers.read32(register::FAULT_STATUS));
        // A unit that has gone reads as ones.
        let is_gone = status.bits() == u32::MAX;
        if is_gone || !status.intersects(FaultStatus::PENDING | FaultStatus::OVERFLOW) {
            return false;
        }
        let capability = self.found.capability;
        for record in 0..capability.fault_records() {
            let at = capability.fault_records_at() + record * 16;
            let high = registers.read64(at + 8);
            if high & VALID != 0 {
                each(&fault::decode(
                    self.found.segment,
                    [registers.read64(at), high],
                ));
                // Writing a one to F frees the record.
                registers.write32(at + 12, (VALID >> 32) as u32);
            }
        }
        let lost = status.contains(FaultStatus::OVERFLOW);
        if lost {
            let overflow = FaultStatus::OVERFLOW.bits();
            registers.write32(register::FAULT_STATUS, overflow);
        }
        lost
    }
}

/// Returns true if the unit refused a descriptor.
fn has_queue_error(registers: &impl Registers) -> bool {
    let status = FaultStatus::from_bits_retain(registers.read32(register::FAULT_STATUS));
    status.intersects(FaultStatus::QUEUE_ERRORS)
}
