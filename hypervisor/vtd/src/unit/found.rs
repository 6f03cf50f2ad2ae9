//! A unit's capabilities, and its commands. Every wait has a limit.

use crate::{
    Error, LIMIT_US, Platform, Registers, Wait,
    register::{self, Capability, Command, Extended},
};

/// A unit whose capabilities are known, and which has not been changed.
#[derive(Debug)]
pub(crate) struct Found<R> {
    pub base: u64,
    pub segment: u16,
    pub capability: Capability,
    pub extended: Extended,
    pub registers: R,
}

impl<R: Registers> Found<R> {
    /// Reads a unit's capabilities.
    ///
    /// # Errors
    /// [`Error::Registers`], [`Error::Absent`], [`Error::Lacks`].
    pub fn find<P: Platform<Registers = R>>(
        platform: &P,
        base: u64,
        segment: u16,
    ) -> Result<Self, Error> {
        let map = |bytes| {
            let registers = platform.registers(base, bytes);
            registers.map_err(|why| Error::Registers(base, why))
        };
        let registers = map(register::BYTES)?;
        let capability = Capability(registers.read64(register::CAPABILITY));
        let extended = Extended(registers.read64(register::EXTENDED_CAPABILITY));
        let version = registers.read32(register::VERSION);
        if version == 0 || version == u32::MAX || [0, u64::MAX].contains(&capability.0) {
            return Err(Error::Absent(base));
        }
        if !extended.has_queue() {
            return Err(Error::Lacks(base, "queued invalidation (ECAP.QI)"));
        }
        let end = capability.fault_records_at() + capability.fault_records() * 16;
        let registers = if u64::from(end) > register::BYTES {
            map(u64::from(end).next_multiple_of(register::BYTES))?
        } else {
            registers
        };
        Ok(Self {
            base,
            segment,
            capability,
            extended,
            registers,
        })
    }

    /// Switches fault events off.
    pub fn mask_faults(&self) {
        self.registers
            .write32(register::FAULT_CONTROL, register::FAULT_MASK);
    }

    pub fn status(&self) -> Command {
        Command::from_bits_retain(self.registers.read32(register::STATUS))
    }

    /// Waits until `is_done`, at most [`LIMIT_US`].
    pub fn wait(
        &self,
        platform: &impl Platform,
        wait: Wait,
        mut is_done: impl FnMut(&R) -> bool,
    ) -> Result<(), Error> {
        let start = platform.now_us();
        loop {
            // The clock is read first: a CPU that was held up for long still looks once more.
            let is_late = platform.now_us().saturating_sub(start) > LIMIT_US;
            if is_done(&self.registers) {
                return Ok(());
            }
            if is_late {
                return Err(Error::NoAnswer(self.base, wait));
            }
            platform.relax();
        }
    }

    /// Executes a command, and waits until the bit `bit` of GSTS is `set`.
    pub fn command(
        &self,
        platform: &impl Platform,
        bit: Command,
        set: bool,
        wait: Wait,
    ) -> Result<(), Error> {
        let state = self.status() & Command::STATE;
        // A write-buffer flush is a command whose bit falls when it is done.
        let is_flush = bit == Command::WRITE_BUFFER;
        let value = if set || is_flush {
            state | bit
        } else {
            state - bit
        };
        self.registers.write32(register::COMMAND, value.bits());
        self.wait(platform, wait, |registers| {
            let status = registers.read32(register::STATUS);
            Command::from_bits_retain(status).contains(bit) == set
        })
    }

    /// Makes stores to tables visible to a unit that buffers them.
    pub fn flush_write_buffer(&self, platform: &impl Platform) -> Result<(), Error> {
        if !self.capability.needs_write_buffer_flush() {
            return Ok(());
        }
        self.command(platform, Command::WRITE_BUFFER, false, Wait::WriteBuffer)
    }
}
