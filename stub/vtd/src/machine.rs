//! The machine: its memory, its units, its clock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vtd::{Function, Platform, Registers};

use crate::{Delivered, UnitShape, memory::Memory, unit::Unit};

/// A machine with units. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Machine(Arc<Mutex<State>>);

#[derive(Debug)]
pub(crate) struct State {
    pub memory: Memory,
    pub units: Vec<Unit>,
    pub violations: Vec<String>,
    now_us: u64,
}

impl Machine {
    /// Creates a machine with these units.
    #[must_use]
    pub fn new(units: &[UnitShape]) -> Self {
        let mut state = State {
            memory: Memory::new(),
            units: Vec::new(),
            violations: Vec::new(),
            now_us: 0,
        };
        for shape in units {
            let unit = Unit::new(shape, &mut state.memory);
            state.units.push(unit);
        }
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a function read or write at a device address. Returns the physical address that it reaches.
    ///
    /// # Errors
    /// The fault reason; 0 if protected memory regions block it, or if no unit gets the request and the machine has
    /// some.
    pub fn dma(&self, function: Function, iova: u64, writes: bool) -> Result<u64, u8> {
        let state = &mut *self.state();
        let unit = unit_of(&mut state.units, function).ok_or(0)?;
        unit.dma(
            &mut state.memory,
            &mut state.violations,
            (function.source.0, iova, writes),
        )
    }

    /// Lets a source send an interrupt message.
    ///
    /// # Errors
    /// The fault reason.
    pub fn interrupt(&self, from: Function, message: (u64, u32)) -> Result<Delivered, u8> {
        let state = &mut *self.state();
        let unit = unit_of(&mut state.units, from).ok_or(0)?;
        unit.interrupt(
            &mut state.memory,
            &mut state.violations,
            from.source.0,
            message,
        )
    }

    /// Lets an I/O APIC with this requester id send the interrupt of a redirection entry, lower half first.
    ///
    /// # Errors
    /// The fault reason.
    pub fn io_apic(&self, from: Function, [low, high]: [u32; 2]) -> Result<Delivered, u8> {
        let message = if high >> 16 & 1 != 0 {
            let index = u64::from(high >> 17) | u64::from(low >> 11 & 1) << 15;
            let address = 0xFEE0_0010 | (index & 0x7FFF) << 5 | (index >> 15) << 2;
            (address, 0)
        } else {
            (0xFEE0_0000 | u64::from(high >> 24) << 12, low & 0xFF)
        };
        self.interrupt(from, message)
    }

    /// Lets the unit refuse its next `count` submissions.
    pub fn refuse(&self, unit: usize, count: u32) {
        self.state().units[unit].refuses = count;
    }

    /// Lets the unit execute no descriptor of its queue from now on.
    pub fn silence_queue(&self, unit: usize) {
        self.state().units[unit].shape.silence = crate::Silence::Queue;
    }

    /// Limits the number of frames that can still be taken.
    pub fn limit_frames(&self, left: usize) {
        self.state().memory.left = left;
    }

    /// Returns the number of frames that are taken.
    #[must_use]
    pub fn taken_frames(&self) -> u64 {
        self.state().memory.taken()
    }

    /// Returns the number of fault events that the unit has signalled: interrupts to this address and data.
    #[must_use]
    pub fn fault_events(&self, unit: usize) -> (u64, u64, u32) {
        let unit = &self.state().units[unit];
        (unit.events, unit.event_address(), unit.event_data())
    }

    /// Returns true if the unit translates.
    #[must_use]
    pub fn translates(&self, unit: usize) -> bool {
        self.state().units[unit].translates()
    }

    /// Returns the clock in microseconds.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.state().now_us
    }

    /// Advances the clock.
    pub fn pass_us(&self, us: u64) {
        self.state().now_us += us;
    }

    /// Returns what the driver did that it must not do, one sentence each.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }
}

fn unit_of(units: &mut [Unit], function: Function) -> Option<&mut Unit> {
    let mut units = units.iter_mut();
    units.find(|unit| {
        unit.shape.segment == function.segment && unit.shape.sources.contains(&function.source.0)
    })
}

impl Platform for Machine {
    type Registers = UnitRegisters;

    fn registers(&self, base: u64, bytes: u64) -> Result<UnitRegisters, String> {
        let state = self.state();
        let index = state.units.iter().position(|unit| unit.shape.base == base);
        Ok(UnitRegisters {
            machine: self.clone(),
            index: index.ok_or("there is RAM")?,
            bytes,
        })
    }

    fn take(&self, order: u32) -> Option<u64> {
        self.state().memory.take(order)
    }

    fn give(&self, pa: u64, order: u32) {
        let state = &mut *self.state();
        if !state.memory.give(pa, order) {
            state
                .violations
                .push(format!("{pa:#x} was freed, and was not taken"));
        }
    }

    fn load(&self, pa: u64) -> u64 {
        let state = &mut *self.state();
        check_taken(state, pa, "loaded from");
        state.memory.load(pa)
    }

    fn store(&self, pa: u64, value: u64) {
        let state = &mut *self.state();
        check_taken(state, pa, "stored to");
        let current = state.memory.load(pa & !15);
        let is_entry = |unit: &Unit| unit.has_interrupt_entry(pa);
        let is_clearing = pa & 8 == 0 && value == 0;
        if current & 1 != 0 && !is_clearing && state.units.iter().any(is_entry) {
            state.violations.push(format!(
                "the interrupt entry at {pa:#x} was changed while it was present"
            ));
        }
        state.memory.store(pa, value);
    }

    fn write_back(&self, pa: u64, bytes: u64) {
        self.state().memory.write_back(pa, bytes);
    }

    fn now_us(&self) -> u64 {
        self.state().now_us
    }

    fn relax(&self) {
        self.state().now_us += 100;
    }
}

fn check_taken(state: &mut State, pa: u64, what: &str) {
    if !state.memory.is_taken(pa) {
        state
            .violations
            .push(format!("the driver {what} {pa:#x}, which is free"));
    }
}

/// The registers of one unit.
#[derive(Clone, Debug)]
pub struct UnitRegisters {
    machine: Machine,
    index: usize,
    bytes: u64,
}

impl UnitRegisters {
    fn with<R>(&self, offset: u32, size: u64, work: impl FnOnce(&mut State, usize) -> R) -> R {
        let state = &mut *self.machine.state();
        let offset = u64::from(offset);
        if offset + size > self.bytes || !offset.is_multiple_of(size) {
            state
                .violations
                .push(format!("a register at {offset:#x} is outside its window"));
        }
        work(state, self.index)
    }
}

impl Registers for UnitRegisters {
    fn read32(&self, offset: u32) -> u32 {
        self.with(offset, 4, |state, index| state.units[index].read(offset))
    }

    fn write32(&self, offset: u32, value: u32) {
        self.with(offset, 4, |state, index| {
            let State {
                memory,
                units,
                violations,
                ..
            } = state;
            units[index].write(memory, violations, (offset, value));
        });
    }

    fn read64(&self, offset: u32) -> u64 {
        self.with(offset, 8, |state, index| {
            let unit = &state.units[index];
            u64::from(unit.read(offset)) | u64::from(unit.read(offset + 4)) << 32
        })
    }

    fn write64(&self, offset: u32, value: u64) {
        self.with(offset, 8, |state, index| {
            let State {
                memory,
                units,
                violations,
                ..
            } = state;
            // The upper half first: the lower one of IQT starts the work.
            units[index].write(memory, violations, (offset + 4, (value >> 32) as u32));
            units[index].write(memory, violations, (offset, value as u32));
        });
    }
}
