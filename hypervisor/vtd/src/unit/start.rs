//! The start of a unit: it is taken from the firmware, and switched on with empty tables.
//!
//! Source: VT-d specification, sections 11.4.4 (Global Command Register) and 3.4 (Domains and Address Translation).

use sync::IrqLock;

use super::{
    CONTEXTS, Found, INTERRUPTS, Inner, InterruptTable, Translations, Unit, has_queue_error,
    queue::Queue,
};
use crate::{
    Error, Platform, Registers, Wait,
    register::{self, Command, FaultStatus},
    table::{Contexts, Memory},
};

impl<P: Platform> Unit<P> {
    /// Switches a unit on. From then on it blocks all DMA, and all interrupts but those of `interrupts`.
    ///
    /// # Errors
    /// The unit did not answer; its memory stays its own, because it may still read it. Or [`Error::NoMemory`].
    pub fn start(
        found: Found<P::Registers>,
        memory: &Memory<P>,
        interrupts: Option<InterruptTable>,
    ) -> Result<Self, Error> {
        let queue = Queue::new(memory.clone())?;
        let contexts = match Contexts::new(memory.clone()) {
            Ok(contexts) => contexts,
            Err(error) => {
                queue.free();
                return Err(error);
            }
        };
        let interrupts = interrupts.filter(|_| found.extended.remaps_interrupts());
        let mut unit = Self {
            taken_over: found.status().contains(Command::TRANSLATE),
            found,
            remaps: interrupts.is_some(),
            platform: memory.platform.clone(),
            inner: IrqLock::new(Inner {
                contexts,
                queue,
                failed: None,
            }),
        };
        unit.bring_up(interrupts)?;
        Ok(unit)
    }

    /// The steps of the start, in the order that leaves no moment in which a device reaches what it did not before.
    fn bring_up(&mut self, interrupts: Option<InterruptTable>) -> Result<(), Error> {
        let (found, platform) = (&self.found, &self.platform);
        found.mask_faults();
        self.release_firmware_s()?;
        let mut inner = self.inner.lock();
        start_queue(found, platform, &mut inner.queue)?;
        found.flush_write_buffer(platform)?;
        let root = inner.contexts.root();
        found.registers.write64(register::ROOT_TABLE, root);
        found.command(platform, Command::ROOT_TABLE, true, Wait::RootTable)?;
        self.submit(
            &mut inner,
            &[CONTEXTS, self.translations(Translations::All)],
        )?;
        if let Some(table) = interrupts {
            self.start_remapping(&mut inner, table)?;
        }
        let is_on = found.status().contains(Command::TRANSLATE);
        if !is_on {
            found.command(platform, Command::TRANSLATE, true, Wait::TranslationOn)?;
        }
        drop(inner);
        self.release_protected()
    }

    /// Takes the queue and the interrupt remapping of the firmware out of use, and a translation whose root table has
    /// another mode. A translation in legacy mode stays on until the new root table replaces its own.
    fn release_firmware_s(&self) -> Result<(), Error> {
        let (found, platform) = (&self.found, &self.platform);
        let status = found.status();
        if status.contains(Command::REMAP) {
            found.command(platform, Command::REMAP, false, Wait::RemappingOff)?;
        }
        let mode = found.registers.read64(register::ROOT_TABLE) & register::ROOT_TABLE_MODE;
        if status.contains(Command::TRANSLATE) && mode != 0 {
            found.command(platform, Command::TRANSLATE, false, Wait::TranslationOff)?;
        }
        if status.contains(Command::QUEUE) {
            // A queue with an error does not run empty.
            found.wait(platform, Wait::QueueEmpty, |registers| {
                let head = registers.read64(register::QUEUE_HEAD);
                head == registers.read64(register::QUEUE_TAIL) || has_queue_error(registers)
            })?;
            found.command(platform, Command::QUEUE, false, Wait::QueueOff)?;
        }
        let errors = FaultStatus::QUEUE_ERRORS | FaultStatus::OVERFLOW;
        found
            .registers
            .write32(register::FAULT_STATUS, errors.bits());
        // Faults from the firmware's time are no news.
        self.faults(&mut |_| {});
        Ok(())
    }

    fn start_remapping(&self, inner: &mut Inner<P>, table: InterruptTable) -> Result<(), Error> {
        let (found, platform) = (&self.found, &self.platform);
        let extended = if table.is_extended {
            register::EXTENDED_INTERRUPT_MODE
        } else {
            0
        };
        let size = u64::from(table.order - 1);
        found
            .registers
            .write64(register::INTERRUPT_TABLE, table.pa | extended | size);
        found.command(
            platform,
            Command::INTERRUPT_TABLE,
            true,
            Wait::InterruptTable,
        )?;
        self.submit(inner, &[INTERRUPTS])?;
        if found.status().contains(Command::COMPATIBILITY) {
            found.command(
                platform,
                Command::COMPATIBILITY,
                false,
                Wait::CompatibilityBlocked,
            )?;
        }
        found.command(platform, Command::REMAP, true, Wait::RemappingOn)
    }

    /// Gives up the firmware's protected memory regions: the tables protect all memory.
    fn release_protected(&self) -> Result<(), Error> {
        let registers = &self.found.registers;
        let is_on = |registers: &P::Registers| {
            registers.read32(register::PROTECTED_MEMORY) & (register::PROTECT | register::PROTECTED)
                != 0
        };
        if !self.found.capability.has_protected_regions() || !is_on(registers) {
            return Ok(());
        }
        registers.write32(register::PROTECTED_MEMORY, 0);
        self.found
            .wait(&self.platform, Wait::ProtectedRegions, |registers| {
                registers.read32(register::PROTECTED_MEMORY) & register::PROTECTED == 0
            })
    }
}

/// Switches the queue on, empty. It is off.
pub(super) fn start_queue<P: Platform>(
    found: &Found<P::Registers>,
    platform: &P,
    queue: &mut Queue<P>,
) -> Result<(), Error> {
    queue.restart();
    found.registers.write64(register::QUEUE_TAIL, 0);
    found
        .registers
        .write64(register::QUEUE_ADDRESS, queue.address());
    found.command(platform, Command::QUEUE, true, Wait::QueueOn)
}
