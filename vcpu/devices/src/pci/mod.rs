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
mod msix;
pub mod passthrough;
mod physical;
mod ports;
mod table;
mod window;

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

use arrayvec::ArrayVec;
use spin::Mutex;
use td_base::board;

pub use config::{BARS, Bar, Capability, Config, Identity};
pub use direct::{Direct, Piece};
pub use msix::Msix;
pub use physical::{Interrupts, Physical, PhysicalBar, Shape};
pub use ports::{PORTS, Ports};

use crate::{Effect, Memory, Message, Now, Place, open_bus};
use window::Window;

/// Largest number of functions beside the bridges: devices 1 to 30.
pub const MOST: usize = 30;

/// Addresses that no function gets: those of the I/O APIC and of the local APICs.
const APICS: Range<u64> = board::IO_APIC as u64..0xFF00_0000;

/// A function of the bus.
pub trait Function: fmt::Debug + Send {
    /// Returns the configuration space.
    fn config(&mut self) -> &mut Config;

    /// Reads configuration registers: 1, 2 or 4 of them.
    fn read(&mut self, at: usize, size: usize) -> u64 {
        self.config().read(at, size)
    }

    /// Writes configuration registers: 1, 2 or 4 of them.
    fn write(&mut self, at: usize, size: usize, value: u64) {
        self.config().write(at, size, value);
    }

    /// Returns the memory that the guest may access without the host, where the function answers. It does not change.
    fn direct(&self) -> Vec<Direct> {
        Vec::new()
    }

    /// Notes that the guest accesses no memory of the function without the host ([`Bus::settle`]).
    fn settled(&mut self) {}

    /// Acts on a write of the guest to the configuration registers `written`.
    fn configured(&mut self, written: Range<usize>) -> Effect {
        let _ = written;
        Effect::None
    }

    /// Reads memory of a base address register. The access lies within it.
    fn load(&mut self, bar: usize, place: Place, now: Now) -> u64 {
        let _ = (bar, now);
        open_bus(place.size)
    }

    /// Writes memory of a base address register. The access lies within it.
    fn store(&mut self, bar: usize, place: Place, value: u64, now: Now) -> Effect {
        let _ = (bar, place, value, now);
        Effect::None
    }

    /// Takes the next interrupt to send.
    fn take_message(&mut self) -> Option<Message> {
        None
    }

    /// Does a bounded part of the work with the guest's memory that there is: after [`Effect::Work`], or after
    /// [`Bus::rouse`].
    fn serve(&mut self, memory: &dyn Memory, now: Now) -> Served {
        let _ = (memory, now);
        Served::default()
    }

    /// Frees what the function holds for the guest, at the TD's end. The guest does not run any more.
    fn retire(&mut self) {}
}

/// The outcome of [`Function::serve`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// There are interrupts to send, as with [`Effect::Signal`].
    pub has_messages: bool,
    /// There is more work.
    pub has_more: bool,
    /// The TD's console has new output.
    pub has_output: bool,
}

/// The bus.
#[derive(Debug)]
pub struct Bus {
    slots: Box<[Slot]>,
    /// Location of the memory-mapped configuration space, as the host bridge's register has it.
    window: AtomicU64,
    /// The TD's memory, where no function answers.
    memory: Box<[Range<u64>]>,
    /// True while a function may have work.
    has_work: AtomicBool,
    /// Index of the slot whose work comes next.
    turn: AtomicUsize,
    /// The memory that the guest may access without the host, and the index of its slot.
    direct: Box<[(usize, Direct)]>,
}

/// A function and its place.
#[derive(Debug)]
struct Slot {
    /// Device and function number in one byte.
    at: u8,
    function: Arc<Mutex<dyn Function>>,
    /// The function's memory, by base address register.
    bars: [Region; BARS],
    /// True while the function may have interrupts to send.
    is_signalled: AtomicBool,
    /// True while the function may have work.
    has_work: AtomicBool,
    /// True if there is memory that the guest may access without the host.
    is_direct: bool,
}

/// The memory of a base address register.
#[derive(Debug, Default)]
struct Region {
    /// Zero while the function does not answer.
    start: AtomicU64,
    /// Zero if there is no such register.
    bytes: u64,
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
            has_work: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
        }
    }

    /// Notes that the function of this device has interrupts to send.
    pub fn signal(&self, device: u8) {
        if let Some(slot) = self.slots.iter().find(|slot| slot.at == device << 3) {
            slot.is_signalled.store(true, Release);
        }
    }

    /// Takes the next interrupt that a function sends.
    pub fn take_message(&self) -> Option<Message> {
        for slot in &self.slots {
            if !slot.is_signalled.swap(false, Acquire) {
                continue;
            }
            if let Some(message) = slot.function.lock().take_message() {
                // There may be more.
                slot.is_signalled.store(true, Release);
                return Some(message);
            }
        }
        None
    }

    /// Returns whether a function may have work with the guest's memory.
    #[inline]
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.has_work.load(Relaxed)
    }

    /// Lets every function look for work: something outside the guest happened, such as input.
    pub fn rouse(&self) {
        for slot in &self.slots {
            slot.has_work.store(true, SeqCst);
        }
        self.has_work.store(true, SeqCst);
    }

    /// Lets one function do a bounded part of its work, each in its turn. [`Self::has_work`] tells if there is more.
    pub fn serve(&self, memory: &dyn Memory, now: Now) -> Served {
        // Work that comes from now on sets it again.
        self.has_work.store(false, SeqCst);
        let count = self.slots.len();
        let first = self.turn.load(Relaxed);
        let mut turns = (first..first + count).map(|turn| turn % count);
        let with_work = |at: &usize| self.slots[*at].has_work.swap(false, SeqCst);
        let Some(at) = turns.find(with_work) else {
            return Served::default();
        };
        self.turn.store((at + 1) % count, Relaxed);
        let slot = &self.slots[at];
        let served = slot.function.lock().serve(memory, now);
        if served.has_messages {
            slot.is_signalled.store(true, Release);
        }
        if served.has_more {
            slot.has_work.store(true, SeqCst);
        }
        if self.slots.iter().any(|slot| slot.has_work.load(SeqCst)) {
            self.has_work.store(true, SeqCst);
        }
        served
    }

    /// Frees what the functions hold for the guest, at the TD's end.
    pub fn retire(&self) {
        for slot in &self.slots {
            slot.function.lock().retire();
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
            let mut function = slot.function.lock();
            let config = function.config();
            let claims: ArrayVec<_, BARS> =
                (0..BARS).filter_map(|bar| config.claimed(bar)).collect();
            claims
        })
    }

    /// Reads memory of the bus. Returns `None` if nothing answers.
    pub(crate) fn load(&self, gpa: u64, size: u8, now: Now) -> Option<u64> {
        if let Some(offset) = self.window().offset(gpa) {
            return Some(self.read(Register::by_memory(offset), size));
        }
        let (slot, bar, offset) = self.find_memory(gpa, size)?;
        let place = Place { offset, size };
        Some(slot.function.lock().load(bar, place, now))
    }

    /// Writes memory of the bus. Returns `None` if nothing answers.
    pub(crate) fn store(&self, gpa: u64, size: u8, value: u64, now: Now) -> Option<Effect> {
        if let Some(offset) = self.window().offset(gpa) {
            return Some(self.write(Register::by_memory(offset), size, value));
        }
        let (slot, bar, offset) = self.find_memory(gpa, size)?;
        let place = Place { offset, size };
        let effect = slot.function.lock().store(bar, place, value, now);
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
            Some((slot, at)) => slot.function.lock().read(at, size.into()),
            None => open_bus(size),
        }
    }

    /// Writes a configuration register.
    fn write(&self, register: Register, size: u8, value: u64) -> Effect {
        let Some((slot, at)) = self.find(register, size) else {
            return Effect::None;
        };
        let mut function = slot.function.lock();
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
        match self.note(slot, effect) {
            Effect::None if has_moved && slot.is_direct => Effect::Windows,
            effect => effect,
        }
    }

    /// Remembers the function that requested an action.
    fn note(&self, slot: &Slot, effect: Effect) -> Effect {
        match effect {
            Effect::Signal => slot.is_signalled.store(true, Release),
            Effect::Work => {
                slot.has_work.store(true, SeqCst);
                self.has_work.store(true, SeqCst);
            }
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

impl Slot {
    fn new(at: u8, function: Arc<Mutex<dyn Function>>) -> Self {
        let bytes = function.lock().config().bar_bytes();
        let is_direct = !function.lock().direct().is_empty();
        Self {
            at,
            is_direct,
            function,
            bars: bytes.map(|bytes| Region {
                start: AtomicU64::new(0),
                bytes,
            }),
            is_signalled: AtomicBool::new(false),
            has_work: AtomicBool::new(false),
        }
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
