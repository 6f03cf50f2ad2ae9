//! A function that a TD has: its registers, its memory, its interrupts and its resets.

use alloc::{boxed::Box, format, string::String, sync::Arc, vec::Vec};
use core::sync::atomic::{
    AtomicBool, AtomicU8,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use devices::{
    Message, Place, open_bus,
    pci::{Identity, Physical, PhysicalBar, Shape},
};
use io::{
    Address, Bar, BarKind, Function, Reporting, Reset, ResetError, Resetting, Space,
    register::{BUS_MASTER, COMMAND, MEMORY_SPACE},
    standard,
};
use sync::IrqLock;
use vtd::{
    Origin, Source,
    interrupt::{Handle, Route},
};

use super::{
    interrupts::{Capability, ENTRY, ENTRY_CONTROL, Msi},
    machine::Machine,
    share::Share,
    vector::{Gate, Owner, Vector},
};
use crate::cpu::line::{Line, Receiver};

/// In the command register: the function does not assert its interrupt line.
const NO_LINE: u16 = 1 << 10;

/// A function that a TD has.
#[derive(Debug)]
pub struct Endpoint<M: Machine> {
    share: Arc<Share<M>>,
    function: Function,
    shape: Shape,
    /// The requester id that its interrupts carry.
    source: Source,
    /// By the base address registers' indices: address and size of the memory.
    windows: [Option<(u64, u64)>; 6],
    capability: Capability,
    vectors: Box<[Arc<Vector<M>>]>,
    /// By vectors.
    routes: IrqLock<Box<[Routing]>>,
    /// The reports that were on before a TD had the function; `None` before it was prepared.
    reporting: IrqLock<Option<Reporting>>,
    /// The command register before a TD had the function.
    command: u16,
    is_away: Arc<AtomicBool>,
    state: AtomicU8,
    resetting: IrqLock<Option<Resetting>>,
}

/// The way of one vector to a CPU.
#[derive(Clone, Copy, Debug, Default)]
struct Routing {
    way: Option<(Line, Handle)>,
    /// True if the function has the message.
    is_written: bool,
}

/// States of an endpoint.
const HERE: u8 = 0;
/// The guest asked for a reset.
const ASKED: u8 = 1;
/// It is being reset.
const RESETTING: u8 = 2;
/// It did not come back.
const LOST: u8 = 3;

impl<M: Machine> Endpoint<M> {
    /// Prepares a function for a TD, and changes nothing of it.
    ///
    /// # Errors
    /// A sentence: the function can't be given to a TD.
    pub fn new(share: &Arc<Share<M>>, owner: Owner) -> Result<Self, String> {
        let at = owner.at;
        let machine = &share.machine;
        let space = machine.space();
        let (function, requesters, way) = {
            let mut inventory = machine.inventory().lock();
            inventory.measure(space, at);
            let function = inventory.find(at).cloned();
            let function = function.ok_or_else(|| format!("there is no PCI function {at}"))?;
            let way = inventory.resets(at).first().copied();
            (function, inventory.requesters(at).to_vec(), way)
        };
        let memory = function.bars.iter().filter_map(memory_of);
        let memory = memory
            .map(|found| found.ok_or_else(|| no_memory(at)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut windows = [None; 6];
        for bar in &memory {
            let bytes = bar.range.end - bar.range.start;
            let window = machine.window(bar.range.start, bytes);
            let window = window.map_err(|why| {
                format!(
                    "memory {} of PCI function {at} can't be reached: {why}",
                    bar.index
                )
            })?;
            windows[bar.index] = Some((window, bytes));
        }
        let capability = Capability::of(space, &function, &memory)?;
        let is_away = Arc::new(AtomicBool::new(false));
        let gates = gates(capability, &windows);
        let vectors = gates
            .into_iter()
            .map(|gate| Arc::new(Vector::new(share, owner, gate, &is_away)))
            .collect::<Box<[_]>>();
        Ok(Self {
            share: share.clone(),
            shape: shape(&function, memory, capability, way),
            // Behind a bridge to conventional PCI, requests carry the bridge's id, which comes last.
            source: Source(requesters.last().copied().unwrap_or(at.requester())),
            windows,
            capability,
            routes: IrqLock::new(alloc::vec![Routing::default(); vectors.len()].into()),
            vectors,
            reporting: IrqLock::new(None),
            command: space.read16(at, COMMAND),
            is_away,
            state: AtomicU8::new(HERE),
            resetting: IrqLock::new(None),
            function,
        })
    }

    /// Returns the address.
    pub fn at(&self) -> Address {
        self.function.address
    }

    /// Stops the function: it is not a bus master, and raises no interrupt.
    pub fn stop(&self) {
        self.set_command(false);
        self.capability.switch(self.space(), self.at(), false);
    }

    /// Finishes the reset that the guest has asked for, if it is under way: at most
    /// [`RETURN_US`](io::RETURN_US) and a little.
    pub fn settle(&self) {
        let resetting = self.resetting.lock().take();
        if let Some(mut resetting) = resetting {
            let machine = &self.share.machine;
            let outcome = resetting.finish(self.space(), machine);
            machine.inventory().lock().end_reset(&resetting, outcome);
        }
    }

    /// Makes the function as a guest finds it after a reset: it decodes its memory, and its interrupts are masked. What a
    /// guest can cause is not reported.
    pub fn prepare(&self) {
        self.set_command(false);
        let reporting = self.function.quiet(self.space());
        self.reporting.lock().get_or_insert(reporting);
        self.capability.switch(self.space(), self.at(), false);
        self.routes
            .lock()
            .iter_mut()
            .for_each(|routing| routing.is_written = false);
        self.vectors.iter().for_each(|vector| vector.close());
    }

    /// Makes the registers what they were before a TD had the function. It is stopped.
    pub fn restore(&self) {
        let command = self.command & !BUS_MASTER;
        self.space().write16(self.at(), COMMAND, command);
        if let Some(reporting) = self.reporting.lock().take() {
            self.function.unquiet(self.space(), reporting);
        }
    }

    /// Does what is due of a reset that the guest asked for. Returns true if there is more to do.
    pub fn serve(&self) -> bool {
        let machine = &self.share.machine;
        let mut resetting = self.resetting.lock();
        if self.share.is_over() {
            return false;
        }
        let asked = self
            .state
            .compare_exchange(ASKED, RESETTING, AcqRel, Acquire);
        if asked.is_ok() {
            let mut inventory = machine.inventory().lock();
            match inventory.begin_reset(self.space(), machine, self.at()) {
                Ok(begun) => *resetting = Some(begun),
                Err(error) => self.lose(&error),
            }
        }
        let Some(under_way) = resetting.as_mut() else {
            return false;
        };
        let outcome = match under_way.step(self.space(), machine) {
            Ok(false) => return true,
            Ok(true) => Ok(under_way.way()),
            Err(error) => Err(error),
        };
        machine.inventory().lock().end_reset(under_way, outcome);
        *resetting = None;
        match outcome {
            Ok(_) => {
                self.prepare();
                self.is_away.store(false, Release);
                self.state.store(HERE, Release);
            }
            Err(error) => self.lose(&error),
        }
        false
    }

    fn lose(&self, error: &ResetError) {
        log::error!("{error}");
        self.state.store(LOST, Release);
    }

    /// Returns why the TD must end, if it must.
    pub fn problem(&self) -> Option<String> {
        match self.state.load(Acquire) {
            HERE => {
                let trouble = self.function.trouble(self.space())?;
                Some(format!("PCI function {}: {trouble}", self.at()))
            }
            LOST => Some(format!(
                "PCI function {} did not come back from its reset",
                self.at()
            )),
            _ => None,
        }
    }

    /// Frees the interrupt entries. Returns the lines, whose interrupts nobody can raise any more.
    pub fn unroute(&self) -> Vec<Line> {
        let Ok(iommu) = self.share.machine.iommu() else {
            return Vec::new();
        };
        let mut lines = Vec::new();
        let routes = core::mem::take(&mut *self.routes.lock());
        for (line, handle) in routes.iter().filter_map(|routing| routing.way) {
            match iommu.unroute(handle) {
                Ok(()) => lines.push(line),
                // The line stays taken, and its receiver delivers to nobody.
                Err(error) => log::error!(
                    "vector {:#x} of CPU {} stays taken by PCI function {}: {error}",
                    line.vector,
                    line.cpu,
                    self.at()
                ),
            }
        }
        lines
    }

    fn space(&self) -> &M::Space {
        self.share.machine.space()
    }

    /// Writes the command register: memory is decoded, the interrupt line is never asserted.
    fn set_command(&self, is_master: bool) {
        let master = if is_master { BUS_MASTER } else { 0 };
        let command = self.command & !BUS_MASTER | MEMORY_SPACE | NO_LINE | master;
        self.space().write16(self.at(), COMMAND, command);
    }

    /// Gives a vector its way to a CPU, and has the function know it.
    fn route(&self, index: usize) -> bool {
        let mut routes = self.routes.lock();
        let Some(routing) = routes.get_mut(index) else {
            return false;
        };
        if routing.way.is_none() {
            routing.way = self.new_way(index);
        }
        let Some((_, handle)) = routing.way else {
            return false;
        };
        if !routing.is_written {
            self.write_message(index, handle.message());
            routing.is_written = true;
        }
        true
    }

    fn new_way(&self, index: usize) -> Option<(Line, Handle)> {
        let machine = &self.share.machine;
        let iommu = machine.iommu().ok()?;
        if !self.share.take_line() {
            return None;
        }
        let receiver: Arc<dyn Receiver> = self.vectors.get(index)?.clone();
        let line = machine.lines().take(&receiver);
        let routed = line.and_then(|line| {
            let route = Route {
                vector: line.vector,
                destination: line.apic_id,
                is_level: false,
            };
            let origin = Origin::Function(vtd::Function::new(self.at().segment, self.source));
            let handle = iommu.route(origin, &route);
            if handle.is_err() {
                machine.lines().give(line);
            }
            Some((line, handle.ok()?))
        });
        if routed.is_none() {
            self.share.give_line();
        }
        routed
    }

    fn write_message(&self, index: usize, (address, data): (u64, u32)) {
        let machine = &self.share.machine;
        match (self.capability, self.vectors[index].gate()) {
            (Capability::Msix { .. }, Gate::Table(control)) => {
                let entry = control - ENTRY_CONTROL;
                machine.store(entry, 4, address & 0xFFFF_FFFF);
                machine.store(entry + 4, 4, address >> 32);
                machine.store(entry + 8, 4, data.into());
            }
            (Capability::Msi { offset, control }, _) => {
                let message = (address, data);
                Msi::at(offset, control).set(self.space(), self.at(), message);
            }
            _ => {}
        }
    }

    /// Returns the address of an access, if it lies within the memory and is aligned.
    fn find(&self, bar: usize, place: Place) -> Option<u64> {
        let (start, bytes) = (*self.windows.get(bar)?)?;
        let size = u64::from(place.size);
        let is_whole = matches!(size, 1 | 2 | 4 | 8) && place.offset.is_multiple_of(size);
        let end = place.offset.checked_add(size)?;
        (is_whole && end <= bytes && !self.is_away()).then_some(start + place.offset)
    }
}

impl<M: Machine> Physical for Endpoint<M> {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn read(&self, offset: u16, size: u8) -> u32 {
        let ones = open_bus(size.clamp(1, 4)) as u32;
        if self.is_away() {
            return ones;
        }
        let word = self.space().read(self.at(), offset & 0xFFC);
        word >> (offset % 4 * 8) & ones
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        let (space, at, offset) = (self.space(), self.at(), offset & 0xFFF);
        if self.is_away() {
            return;
        }
        match size {
            1 => space.write8(at, offset, value as u8),
            2 => space.write16(at, offset & !1, value as u16),
            _ => space.write(at, offset & !3, value),
        }
    }

    fn load(&self, bar: usize, place: Place) -> u64 {
        match self.find(bar, place) {
            Some(at) => self.share.machine.load(at, place.size),
            None => open_bus(place.size.clamp(1, 8)),
        }
    }

    fn store(&self, bar: usize, place: Place, value: u64) {
        if let Some(at) = self.find(bar, place) {
            self.share.machine.store(at, place.size, value);
        }
    }

    fn set_master(&self, is_on: bool) {
        if !self.is_away() {
            self.set_command(is_on);
        }
    }

    fn set_interrupts(&self, is_on: bool) {
        if self.is_away() {
            return;
        }
        match self.vectors.first().map(|vector| (vector, vector.gate())) {
            Some((vector, Gate::Control(..))) => vector.set_off(!is_on),
            _ => self.capability.switch(self.space(), self.at(), is_on),
        }
    }

    fn direct(&self, vector: u16, message: Option<Message>) -> bool {
        let index = usize::from(vector);
        let Some(vector) = self.vectors.get(index) else {
            return false;
        };
        let Some(message) = message else {
            vector.set_masked(true);
            return true;
        };
        if self.is_away() {
            return true;
        }
        vector.aim(message);
        let is_routed = self.route(index);
        if is_routed {
            vector.set_masked(false);
        }
        is_routed
    }

    fn reset(&self) {
        let asked = self.state.compare_exchange(HERE, ASKED, AcqRel, Relaxed);
        if asked.is_ok() {
            self.stop();
            self.is_away.store(true, Release);
            self.share.machine.wake();
        }
    }

    fn is_away(&self) -> bool {
        self.is_away.load(Acquire) || self.share.is_over()
    }
}

/// Returns the memory of a base address register: `None` for one of ports, an error for one without an address or size.
fn memory_of(bar: &Bar) -> Option<Option<PhysicalBar>> {
    let is_wide = match bar.kind {
        BarKind::Io => return None,
        BarKind::Memory32 => false,
        BarKind::Memory64 => true,
    };
    let size = bar.size.filter(|size| *size >= 1);
    Some(size.filter(|_| bar.address != 0).and_then(|size| {
        Some(PhysicalBar {
            index: bar.index.into(),
            is_wide,
            is_prefetchable: bar.prefetchable,
            range: bar.address..bar.address.checked_add(size)?,
        })
    }))
}

fn no_memory(at: Address) -> String {
    format!("the firmware gave the memory of PCI function {at} no address")
}

/// Returns the gates of a function's interrupts.
fn gates(capability: Capability, windows: &[Option<(u64, u64)>; 6]) -> Vec<Gate> {
    match capability {
        Capability::None => Vec::new(),
        Capability::Msi { offset, control } => {
            let msi = Msi::at(offset, control);
            let gate = match msi.mask {
                Some(mask) => Gate::Register(mask),
                None => Gate::Control(msi.control, msi.enabled),
            };
            Vec::from([gate])
        }
        Capability::Msix { vectors, table, .. } => {
            let start = windows[table.0].map_or(0, |(start, _)| start + table.1);
            let entries = (0..u64::from(vectors)).map(|index| start + index * ENTRY);
            entries
                .map(|entry| Gate::Table(entry + ENTRY_CONTROL))
                .collect()
        }
    }
}

fn shape(
    function: &Function,
    memory: Vec<PhysicalBar>,
    capability: Capability,
    way: Option<Reset>,
) -> Shape {
    let identity = function.identity;
    let class = u32::from(identity.class.code()) << 8 | u32::from(identity.class.interface);
    let subsystem = u32::from(identity.subsystem.unwrap_or_default()) << 16
        | u32::from(identity.subsystem_vendor.unwrap_or_default());
    let others = function.capabilities.standard.iter();
    let others =
        others.filter(|capability| !matches!(capability.id, standard::MSI | standard::MSI_X));
    Shape {
        identity: Identity {
            vendor: identity.vendor,
            device: identity.device,
            class,
            revision: identity.revision,
            subsystem,
        },
        memory,
        interrupts: capability.shape(),
        capabilities: others.map(|found| (found.id as u8, found.offset)).collect(),
        has_reset: matches!(way, Some(Reset::Function | Reset::Advanced | Reset::Power)),
    }
}
