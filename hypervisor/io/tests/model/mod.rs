//! Configuration spaces of a machine in memory, whose functions behave as devices do: registers with writable bits,
//! status bits that are cleared by ones, resets that take time, functions that vanish.
#![allow(dead_code, reason = "each test program uses a part of the model")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use io::{Address, Clock, Space};

pub mod server;

pub const fn at(segment: u16, bus: u8, device: u8, function: u8) -> Address {
    Address {
        segment,
        bus,
        device,
        function,
    }
}

/// The behaviour of a function that its registers do not tell.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// After this many reads only ones come.
    pub vanishes_after: Option<u32>,
    /// The time that a reset takes, in microseconds; meanwhile it answers that it is not ready.
    pub reset_us: u64,
    /// It does not come back from a reset.
    pub never_returns: bool,
    /// Its bus-master bit is hard-wired.
    pub keeps_mastering: bool,
    /// Its writes are counted as forbidden.
    pub untouchable: bool,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let registers = |words: &[u32]| -> Vec<String> {
            let set = words.iter().enumerate().filter(|(_, word)| **word != 0);
            set.map(|(at, word)| format!("{:#x}: {word:#x}", at * 4))
                .collect()
        };
        write!(
            f,
            "{:?}, writable {:?}, {:?}",
            registers(&self.words),
            registers(&self.writable),
            self.behaviour
        )
    }
}

/// A function's configuration space.
#[derive(Clone)]
pub struct Config {
    words: Vec<u32>,
    /// Writable bits of each word.
    writable: Vec<u32>,
    /// Bits of each word that are cleared by writing ones.
    cleared_by_ones: Vec<u32>,
    pub behaviour: Behaviour,
    pub reads: u32,
    ready_at: u64,
    was_in_d3: bool,
    next_standard: u8,
    last_standard: Option<u8>,
    next_extended: u16,
    last_extended: Option<u16>,
    express: Option<u16>,
    power: Option<u16>,
    pub resets: u32,
}

impl Config {
    pub fn new(vendor: u16, device: u16, class: u32) -> Self {
        let mut config = Self {
            words: vec![0; 1024],
            writable: vec![0; 1024],
            cleared_by_ones: vec![0; 1024],
            behaviour: Behaviour::default(),
            reads: 0,
            ready_at: 0,
            was_in_d3: false,
            next_standard: 0x40,
            last_standard: None,
            next_extended: 0x100,
            last_extended: None,
            express: None,
            power: None,
            resets: 0,
        };
        config.set(0, u32::from(device) << 16 | u32::from(vendor));
        config.set(4, 0x0000_0007);
        config.writable[1] = 0x0000_0547;
        config.set(8, class << 8 | 1);
        config.writable[3] = 0xFFFF;
        config.set(0x2C, 0x0001_1AF4);
        config.writable[0xF] = 0xFF;
        config
    }

    pub fn bridge(device: u16, secondary: u8, subordinate: u8) -> Self {
        let mut config = Self::new(0x8086, device, 0x06_0400);
        config.set(0xC, 0x01 << 16);
        config.set(
            0x18,
            u32::from(subordinate) << 16 | u32::from(secondary) << 8,
        );
        config.set(0x2C, 0);
        config.writable[0xF] = 0x0040_00FF;
        config
    }

    pub fn set(&mut self, offset: u16, value: u32) {
        self.words[usize::from(offset / 4)] = value;
    }

    pub fn get(&self, offset: u16) -> u32 {
        self.words[usize::from(offset / 4)]
    }

    pub fn multi_function(mut self) -> Self {
        self.set(0xC, self.get(0xC) | 1 << 23);
        self
    }

    pub fn behaving(mut self, behaviour: Behaviour) -> Self {
        self.behaviour = behaviour;
        self
    }

    /// Adds a memory register of 64 bits.
    pub fn memory64(mut self, index: u8, address: u64, size: u64) -> Self {
        let word = 4 + usize::from(index);
        let mask = !(size - 1);
        self.words[word] = address as u32 | 0xC;
        self.words[word + 1] = (address >> 32) as u32;
        self.writable[word] = mask as u32;
        self.writable[word + 1] = (mask >> 32) as u32;
        self
    }

    /// Adds a memory register of 32 bits.
    pub fn memory32(mut self, index: u8, address: u32, size: u32) -> Self {
        let word = 4 + usize::from(index);
        self.words[word] = address;
        self.writable[word] = !(size - 1);
        self
    }

    /// Adds a register of I/O ports.
    pub fn ports(mut self, index: u8, address: u32, size: u32) -> Self {
        let word = 4 + usize::from(index);
        self.words[word] = address | 1;
        self.writable[word] = !(size - 1) & 0xFFFC;
        self
    }

    /// Adds a capability of `words` registers to the standard list. Returns its offset.
    pub fn standard(&mut self, id: u8, words: &[u32]) -> u16 {
        let offset = self.next_standard;
        self.next_standard += (words.len().max(1) * 4) as u8;
        self.set(4, self.get(4) | 1 << 20);
        match self.last_standard {
            None => self.set(0x34, offset.into()),
            Some(last) => {
                let last = u16::from(last);
                self.set(last, self.get(last) & !0xFF00 | u32::from(offset) << 8);
            }
        }
        self.last_standard = Some(offset);
        for (i, word) in (0..).zip(words) {
            self.set(u16::from(offset) + i * 4, *word);
        }
        self.set(
            offset.into(),
            self.get(offset.into()) & !0xFFFF | u32::from(id),
        );
        offset.into()
    }

    /// Adds a capability to the extended list. Returns its offset.
    pub fn extended(&mut self, id: u16, words: &[u32]) -> u16 {
        let offset = self.next_extended;
        self.next_extended += 0x60;
        if let Some(last) = self.last_extended {
            self.set(last, self.get(last) | u32::from(offset) << 20);
        }
        self.last_extended = Some(offset);
        for (i, word) in (1..).zip(words) {
            self.set(offset + i * 4, *word);
        }
        self.set(offset, 1 << 16 | u32::from(id));
        offset
    }

    /// Makes it a PCI Express function: 0 endpoint, 4 root port, 5 upstream, 6 downstream, 7 bridge to PCI, 9 integrated.
    pub fn express(mut self, kind: u8, function_reset: bool) -> Self {
        let reset = u32::from(function_reset) << 28;
        let offset = self.standard(
            0x10,
            &[u32::from(kind) << 20 | 2 << 16, reset, 0x2810, 0, 0],
        );
        self.writable[usize::from(offset / 4) + 2] = 0x7FFF;
        self.cleared_by_ones[usize::from(offset / 4) + 2] = 0xF << 16;
        self.express = Some(offset);
        self
    }

    /// Adds power management.
    pub fn power(mut self, keeps_state: bool) -> Self {
        let offset = self.standard(1, &[3 << 16, u32::from(keeps_state) << 3]);
        self.writable[usize::from(offset / 4) + 1] = 3;
        self.power = Some(offset);
        self
    }

    /// Adds access control with these services, all off.
    pub fn access_control(mut self, services: u16) -> Self {
        let offset = self.extended(0xD, &[u32::from(services)]);
        self.writable[usize::from(offset / 4) + 1] = u32::from(services) << 16;
        self
    }

    /// Adds error reporting with these errors.
    pub fn errors(mut self, uncorrectable: u32, correctable: u32) -> Self {
        let offset = self.extended(1, &[uncorrectable, 0, 0, correctable]);
        self.writable[usize::from(offset / 4) + 2] = u32::MAX;
        self.cleared_by_ones[usize::from(offset / 4) + 1] = u32::MAX;
        self.cleared_by_ones[usize::from(offset / 4) + 4] = u32::MAX;
        self
    }

    /// Makes these bits of a register writable.
    pub fn writable_at(mut self, offset: u16, bits: u32) -> Self {
        self.writable[usize::from(offset / 4)] = bits;
        self
    }

    pub fn command(&self) -> u16 {
        self.get(4) as u16
    }

    fn write(&mut self, offset: u16, value: u32, mask: u32) -> bool {
        let word = usize::from(offset / 4);
        let mut writable = self.writable[word] & mask;
        if self.behaviour.keeps_mastering && word == 1 {
            writable &= !4;
        }
        let cleared = self.cleared_by_ones[word] & mask & value;
        self.words[word] = (self.words[word] & !writable | value & writable) & !cleared;
        let starts_function_reset =
            self.express.is_some_and(|at| at + 8 == offset) && value & mask & 1 << 15 != 0;
        let power = self.power.filter(|at| at + 4 == offset);
        let is_in_d3 = power.is_some() && self.words[word] & 3 == 3;
        let leaves_d3 = power.is_some() && self.was_in_d3 && self.words[word] & 3 == 0;
        if power.is_some() {
            self.was_in_d3 = is_in_d3;
        }
        starts_function_reset || leaves_d3
    }

    fn reset(&mut self, now: u64) {
        self.resets += 1;
        let lasting = if self.behaviour.never_returns {
            u64::MAX
        } else {
            now + self.behaviour.reset_us
        };
        self.ready_at = lasting;
        for (word, writable) in self.words.iter_mut().zip(&self.writable) {
            *word &= !writable;
        }
    }
}

/// A machine's configuration space and clock.
#[derive(Debug, Default)]
pub struct Model {
    pub functions: RefCell<BTreeMap<Address, Config>>,
    now: Cell<u64>,
    /// The addresses of functions whose registers were written although they must not be.
    pub offended: RefCell<Vec<Address>>,
    /// The number of times that a base address register was written while its function decoded it.
    pub decoded_writes: Cell<u32>,
    /// Only the first 256 bytes are in reach.
    pub is_legacy: bool,
}

impl Model {
    pub fn add(&self, at: Address, config: Config) {
        self.functions.borrow_mut().insert(at, config);
    }

    pub fn with<R>(&self, at: Address, work: impl FnOnce(&mut Config) -> R) -> R {
        work(
            self.functions
                .borrow_mut()
                .get_mut(&at)
                .expect("a function"),
        )
    }

    /// Enumerates the segments, stops everything, takes the inventory and measures all functions.
    pub fn inventory(&self) -> io::Inventory {
        let segments: std::collections::BTreeSet<u16> = self
            .functions
            .borrow()
            .keys()
            .map(|at| at.segment)
            .collect();
        let found: Vec<_> = segments
            .iter()
            .flat_map(|segment| io::scan::segment(self, *segment, 0..=255))
            .collect();
        for function in &found {
            function.stop(self);
        }
        let places: Vec<_> = found.iter().map(|function| function.address).collect();
        let mut inventory = io::Inventory::new(self, found, |_| false);
        for place in places {
            inventory.measure(self, place);
        }
        inventory
    }

    /// Resets a function, and takes it out of use if it does not come back. Returns the way.
    pub fn reset(
        &self,
        inventory: &mut io::Inventory,
        at: Address,
    ) -> Result<io::Reset, io::ResetError> {
        let mut reset = inventory.begin_reset(self, self, at)?;
        let outcome = reset.finish(self, self);
        inventory.end_reset(&reset, outcome);
        outcome
    }

    /// Resets what is behind the bridge at `bridge`.
    fn reset_behind(&self, bridge: Address) {
        let mut functions = self.functions.borrow_mut();
        let secondary = (functions[&bridge].get(0x18) >> 8) as u8;
        for (at, config) in functions.iter_mut() {
            if at.segment == bridge.segment && at.bus == secondary {
                config.reset(self.now.get());
            }
        }
    }

    fn write_bits(&self, at: Address, offset: u16, value: u32, mask: u32) {
        let mut functions = self.functions.borrow_mut();
        let Some(config) = functions.get_mut(&at).filter(|_| self.reaches(offset)) else {
            return;
        };
        let is_endpoint = config.get(0xC) >> 16 & 0x7F == 0;
        if is_endpoint && (0x10..0x28).contains(&offset) {
            if config.command() & 3 != 0 {
                self.decoded_writes.set(self.decoded_writes.get() + 1);
            }
            if config.behaviour.untouchable {
                self.offended.borrow_mut().push(at);
            }
        }
        let was_in_reset = config.get(0x3C) & 1 << 22 != 0;
        if config.write(offset, value, mask) {
            config.reset(self.now.get());
        }
        let is_bridge = config.get(0xC) >> 16 & 0x7F == 1;
        let leaves_reset = is_bridge && was_in_reset && config.get(0x3C) & 1 << 22 == 0;
        drop(functions);
        if leaves_reset {
            self.reset_behind(at);
        }
    }

    fn reaches(&self, offset: u16) -> bool {
        assert!(offset < 0x1000, "{offset:#x}");
        !self.is_legacy || offset < 0x100
    }
}

impl Space for Model {
    fn read(&self, at: Address, offset: u16) -> u32 {
        assert!(offset.is_multiple_of(4));
        let mut functions = self.functions.borrow_mut();
        let Some(config) = functions.get_mut(&at).filter(|_| self.reaches(offset)) else {
            return u32::MAX;
        };
        config.reads += 1;
        let behaviour = &config.behaviour;
        if behaviour
            .vanishes_after
            .is_some_and(|reads| config.reads > reads)
        {
            return u32::MAX;
        }
        if self.now.get() < config.ready_at {
            // Configuration request retry status, as software sees it.
            return if offset == 0 { 0xFFFF_0001 } else { u32::MAX };
        }
        config.get(offset)
    }

    fn write(&self, at: Address, offset: u16, value: u32) {
        assert!(offset.is_multiple_of(4));
        self.write_bits(at, offset, value, u32::MAX);
    }

    fn write16(&self, at: Address, offset: u16, value: u16) {
        assert!(offset.is_multiple_of(2));
        let shift = offset % 4 * 8;
        self.write_bits(at, offset & !3, u32::from(value) << shift, 0xFFFF << shift);
    }

    fn write8(&self, at: Address, offset: u16, value: u8) {
        let shift = offset % 4 * 8;
        self.write_bits(at, offset & !3, u32::from(value) << shift, 0xFF << shift);
    }
}

impl Clock for Model {
    fn us(&self) -> u64 {
        self.now.get()
    }

    fn relax(&self) {
        self.now.set(self.now.get() + 1000);
    }
}
