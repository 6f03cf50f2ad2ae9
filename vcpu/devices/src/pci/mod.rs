//! The PCI bus of a TD: its configuration space, by ports and by memory, and the memory windows of its functions.
//!
//! Every TD has a host bridge, which identifies the machine type, and an ISA bridge to the ports of power management and
//! of the serial port. Both match QEMU's q35, which guest firmware knows. Other functions follow, one in a device.
//!
//! Source: PCI Local Bus Specification 3.0, section 3.2.2.3.2 (ports) and chapter 6 (registers); PCI Express Base
//! Specification, section 7.2.2 (memory).

mod bridges;
mod config;
mod direct;
mod doorbell;
mod function;
mod msix;
pub mod passthrough;
mod pending;
mod physical;
mod ports;
mod slot;
mod table;
mod window;
mod work;

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::ops::Range;
use sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Relaxed, Release},
};

use arrayvec::ArrayVec;
use sync::Mutex;
use td_base::board;

pub use config::{BARS, Bar, Capability, Config, Identity};
pub use direct::{Direct, Piece};
pub use doorbell::Doorbells;
pub use function::{Function, Served, Usage};
pub use msix::Msix;
pub use physical::{Interrupts, Physical, PhysicalBar, Shape};
pub use ports::{PORTS, Ports};

use crate::{Effect, Now, Place, open_bus};
use pending::Pending;
use slot::Slot;
use window::Window;

/// Largest number of functions beside the bridges: devices 1 to 30.
pub const MOST: usize = 30;

/// Addresses that no function gets: those of the I/O APIC and of the local APICs.
const APICS: Range<u64> = board::IO_APIC as u64..0xFF00_0000;

/// The bus.
#[derive(Debug)]
pub struct Bus {
    slots: Box<[Slot]>,
    /// Location of the memory-mapped configuration space, as the host bridge's register has it.
    window: AtomicU64,
    /// The TD's memory, where no function answers.
    memory: Box<[Range<u64>]>,
    /// The work of the functions.
    pending: Pending,
    /// Index of the slot whose work comes next.
    turn: AtomicUsize,
    /// The memory that the guest may access without the host, and the index of its slot.
    direct: Box<[(usize, Direct)]>,
}

/// The address of a register on the bus.
#[derive(Clone, Copy, Debug)]
struct Register {
    bus: u64,
    function: u8,
    offset: u64,
}

impl Bus {
    /// Creates a bus with both bridges and `functions`, the first of which becomes device 1.
    ///
    /// # Panics
    /// More than [`MOST`] functions.
    pub fn new(
        memory: impl IntoIterator<Item = Range<u64>>,
        functions: Vec<Arc<Mutex<dyn Function>>>,
    ) -> Self {
        assert!(functions.len() <= MOST, "the bus has {MOST} free devices");
        let host: Arc<Mutex<dyn Function>> = Arc::new(Mutex::new(bridges::host()));
        let isa: Arc<Mutex<dyn Function>> = Arc::new(Mutex::new(bridges::isa()));
        let others = (1..).zip(functions).map(|(device, f)| (device << 3, f));
        let all = [(bridges::HOST_AT, host)].into_iter().chain(others);
        let all = all.chain([(bridges::ISA_AT, isa)]);
        let slots: Box<[_]> = all.map(|(at, function)| Slot::new(at, function)).collect();
        Self {
            direct: direct::of(&slots),
            slots,
            window: AtomicU64::new(0),
            memory: memory.into_iter().collect(),
            pending: Pending::default(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Frees what the functions hold for the guest, at the TD's end.
    pub fn retire(&self) {
        for slot in &self.slots {
            self.with(slot, |function| function.retire());
        }
    }

    /// Returns the addresses of the memory-mapped configuration space, if the guest has switched it on.
    pub(crate) fn config_window(&self) -> Option<Range<u64>> {
        self.window().range()
    }

    /// Returns the TD's memory.
    pub(crate) fn memory(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.memory.iter().cloned()
    }

    /// Returns the addresses that the functions' base address registers have, whether they answer there or not.
    pub(crate) fn claims(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.slots.iter().flat_map(|slot| {
            self.with(slot, |function| {
                let config = function.config();
                let claims = (0..BARS).filter_map(|bar| config.claimed(bar));
                claims.collect::<ArrayVec<_, BARS>>()
            })
        })
    }

    /// Reads memory of the bus. Returns `None` if nothing answers.
    pub(crate) fn load(&self, gpa: u64, size: u8, now: Now) -> Option<u64> {
        if let Some(offset) = self.window().offset(gpa) {
            return Some(self.read(Register::by_memory(offset), size));
        }
        let (slot, bar, offset) = self.find_memory(gpa, size)?;
        let place = Place { offset, size };
        Some(self.with(slot, |function| function.load(bar, place, now)))
    }

    /// Writes memory of the bus. Returns `None` if nothing answers.
    pub(crate) fn store(&self, gpa: u64, size: u8, value: u64, now: Now) -> Option<Effect> {
        if let Some(offset) = self.window().offset(gpa) {
            return Some(self.write(Register::by_memory(offset), size, value));
        }
        let (slot, bar, offset) = self.find_memory(gpa, size)?;
        let place = Place { offset, size };
        if slot
            .doorbells
            .as_ref()
            .is_some_and(|bells| bells.ring(bar, place))
        {
            return Some(self.note(slot, Effect::Work));
        }
        let effect = self.with(slot, |function| function.store(bar, place, value, now));
        Some(self.note(slot, effect))
    }

    fn window(&self) -> Window {
        Window(self.window.load(Relaxed))
    }

    /// Returns the function, the base address register and the offset in it of an access.
    fn find_memory(&self, gpa: u64, size: u8) -> Option<(&Slot, usize, u64)> {
        self.slots.iter().find_map(|slot| {
            let (bar, offset) = slot.bars.iter().enumerate().find_map(|(bar, memory)| {
                let start = memory.start.load(Relaxed);
                let offset = gpa.checked_sub(start).filter(|_| start != 0)?;
                let end = offset.checked_add(size.into())?;
                (end <= memory.bytes).then_some((bar, offset))
            })?;
            Some((slot, bar, offset))
        })
    }

    /// Returns the function of a register, and the start of the access in its registers. An access that crosses a double
    /// word reaches no register.
    fn find(&self, register: Register, size: u8) -> Option<(&Slot, usize)> {
        let is_whole = register.offset % 4 + u64::from(size) <= 4;
        if register.bus != 0 || register.offset >= config::BYTES as u64 || !is_whole {
            return None;
        }
        let slot = self
            .slots
            .iter()
            .find(|slot| slot.at == register.function)?;
        Some((slot, register.offset as usize))
    }

    /// Reads a configuration register.
    fn read(&self, register: Register, size: u8) -> u64 {
        match self.find(register, size) {
            Some((slot, at)) => self.with(slot, |function| function.read(at, size.into())),
            None => open_bus(size),
        }
    }

    /// Writes a configuration register.
    fn write(&self, register: Register, size: u8, value: u64) -> Effect {
        let Some((slot, at)) = self.find(register, size) else {
            return Effect::None;
        };
        let (effect, has_moved) = self.with(slot, |function| {
            function.write(at, size.into(), value);
            let effect = function.configured(at..at + usize::from(size));
            let config = function.config();
            // The function stays locked, so that the last write determines where it answers.
            let mut has_moved = false;
            for (bar, memory) in slot.bars.iter().enumerate() {
                let range = config.memory(bar).filter(|range| self.is_free(range));
                let start = range.map_or(0, |range| range.start);
                has_moved |= memory.start.swap(start, Relaxed) != start;
            }
            if slot.at == bridges::HOST_AT {
                self.window
                    .store(config.read(bridges::PCIEXBAR, 8), Relaxed);
            }
            (effect, has_moved)
        });
        match self.note(slot, effect) {
            Effect::None if has_moved && slot.is_direct => Effect::Windows,
            effect => effect,
        }
    }

    /// Remembers the function that requested an action.
    fn note(&self, slot: &Slot, effect: Effect) -> Effect {
        match effect {
            Effect::Signal => slot.is_signalled.store(true, Release),
            Effect::Work => self.add_work(slot),
            _ => {}
        }
        effect
    }

    /// Returns whether a function may answer at these addresses.
    fn is_free(&self, range: &Range<u64>) -> bool {
        let taken = self.memory.iter().chain([&APICS]);
        taken
            .filter(|taken| taken.start < range.end && range.start < taken.end)
            .count()
            == 0
    }
}

impl Register {
    const fn by_memory(offset: u64) -> Self {
        /// Bytes of configuration space for each function and each bus.
        const FUNCTION: u64 = 4096;
        const BUS: u64 = 256 * FUNCTION;
        Self {
            bus: offset / BUS,
            function: (offset / FUNCTION) as u8,
            offset: offset % FUNCTION,
        }
    }
}

#[cfg(test)]
mod tests;
