//! The state that the vCPUs of one TD share: memory, devices, console, and the means to reach each vCPU.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};

use mm::shared::SharedMap;
use spin::{Once, RwLock};

use crate::apic::{Destination, FIRST_VECTOR, IpiKind};
use crate::branch::Branches;
use crate::clock::Clock;
use crate::console::Console;
use crate::devices::{Devices, Message, Trigger};
use crate::end::End;
use crate::host::Notify;
use crate::posted::Descriptor;
use crate::tally::Tally;

/// Shared state of a TD's vCPUs.
#[derive(Debug)]
pub struct Vm {
    vcpus: Box<[VcpuState]>,
    /// Number of bits of an x2APIC id.
    id_bits: u32,
    memory: Box<[Memory]>,
    shared: SharedMap,
    /// Held for reading while private memory is mapped, and for writing while memory is converted, so that no page is
    /// both private and shared. Only ever try-locked, because the holder may wait for all other CPUs.
    pub(crate) conversions: RwLock<()>,
    devices: Devices,
    console: Arc<Console>,
    clock: Clock,
    end: Once<End>,
}

/// A range of a TD's memory. The operator may lower its end.
#[derive(Debug)]
struct Memory {
    start: u64,
    end: AtomicU64,
}

/// The means to reach one vCPU, and its counters.
#[derive(Debug)]
pub struct VcpuState {
    apic_id: u32,
    descriptor: Descriptor,
    nmi: AtomicBool,
    halt: AtomicU8,
    branches: Branches,
    tally: Tally,
}

/// The halt state of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Halt {
    /// Not halted.
    No,
    /// Halted until an interrupt or an NMI arrives.
    Interruptible,
    /// Halted with interrupts disabled, until an NMI arrives.
    Blocked,
}

impl Vm {
    /// Creates the shared state of a TD with one vCPU for each x2APIC id. `memory` is ascending and aligned to 4 KiB.
    /// `console` is new, or the console of the TD's previous life.
    #[must_use]
    pub fn new(
        apic_ids: impl IntoIterator<Item = u32>,
        memory: Vec<Range<u64>>,
        shared: SharedMap,
        clock: Clock,
        console: Arc<Console>,
    ) -> Self {
        console.begin();
        let vcpus: Box<[_]> = apic_ids.into_iter().map(VcpuState::new).collect();
        let last = vcpus.iter().map(VcpuState::apic_id).fold(0, u32::max);
        Self {
            vcpus,
            id_bits: u32::BITS - last.leading_zeros(),
            devices: Devices::new(memory.iter().cloned()),
            memory: memory.into_iter().map(Memory::from).collect(),
            shared,
            conversions: RwLock::new(()),
            console,
            clock,
            end: Once::new(),
        }
    }

    /// Returns the vcpus of all vCPUs, by vCPU index.
    #[must_use]
    pub fn vcpus(&self) -> &[VcpuState] {
        &self.vcpus
    }

    /// Returns the number of bits in the x2APIC ids of the vCPUs.
    pub(crate) const fn id_bits(&self) -> u32 {
        self.id_bits
    }

    /// Returns the TD's console.
    #[must_use]
    pub const fn console(&self) -> &Arc<Console> {
        &self.console
    }

    /// Returns the TD's devices.
    #[must_use]
    pub const fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Returns the TD's shared memory.
    #[must_use]
    pub const fn shared(&self) -> &SharedMap {
        &self.shared
    }

    /// Returns the TD's time-stamp counter.
    #[must_use]
    pub const fn clock(&self) -> Clock {
        self.clock
    }

    /// Returns the reason why the TD ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<&End> {
        self.end.get()
    }

    /// Ends the TD and writes the reason to its console. The first reason is final.
    pub fn end_with(&self, why: End) {
        self.end.call_once(|| {
            self.console.note(format_args!("{why}"));
            why
        });
    }

    /// Returns the TD's memory ranges in ascending order.
    pub fn memory(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let all = self.memory.iter().map(Memory::range);
        all.filter(|range| range.start < range.end)
    }

    /// Returns the memory range that contains `gpa`.
    #[must_use]
    pub fn memory_at(&self, gpa: u64) -> Option<Range<u64>> {
        self.memory().find(|range| range.contains(&gpa))
    }

    /// Takes away all memory from `end` on. Pages mapped there still have to be removed. Returns `false` while a vCPU
    /// may be mapping or converting that memory: the caller must retry, and must not remove any page before.
    #[must_use]
    pub fn end_memory_at(&self, end: u64) -> bool {
        for memory in &self.memory {
            memory.end.fetch_min(end.max(memory.start), SeqCst);
        }
        self.conversions.try_write().is_some()
    }

    /// Posts an interrupt to a vCPU.
    pub fn post(&self, by: &(impl Notify + ?Sized), vcpu: u32, vector: u8) {
        if vector < FIRST_VECTOR {
            return;
        }
        if let Some(state) = self.vcpus.get(vcpu as usize)
            && state.descriptor.post(vector)
        {
            by.notify(vcpu);
        }
    }

    /// Requests an NMI on a vCPU. Several pending requests merge into one.
    pub fn post_nmi(&self, by: &(impl Notify + ?Sized), vcpu: u32) {
        if let Some(state) = self.vcpus.get(vcpu as usize)
            && !state.nmi.swap(true, SeqCst)
        {
            by.interrupt(vcpu);
        }
    }

    /// Sends a message from the vCPU with x2APIC id `sender` to all its targets.
    pub(crate) fn send(
        &self,
        by: &(impl Notify + ?Sized),
        kind: IpiKind,
        to: Destination,
        sender: u32,
    ) {
        for (number, state) in (0..).zip(&self.vcpus) {
            if to.includes(state.apic_id, sender) {
                match kind {
                    IpiKind::Fixed(vector) => self.post(by, number, vector),
                    IpiKind::Nmi => self.post_nmi(by, number),
                }
            }
        }
    }

    /// Moves typed bytes to the serial port as long as it has room, and updates its line at the interrupt controller.
    pub fn receive_typed(&self, by: &(impl Notify + ?Sized)) {
        {
            let mut uart = self.devices.uart.lock();
            while uart.has_room()
                && let Some(byte) = self.console.take_typed()
            {
                uart.receive(byte);
            }
        }
        if let Some(message) = self.devices.route_lines() {
            self.deliver(by, message);
        }
    }

    fn deliver(&self, by: &(impl Notify + ?Sized), message: Message) {
        let to = match (message.is_logical, message.destination) {
            (_, 0xFF) => Destination::All,
            (true, set) => Destination::Logical(0, set.into()),
            (false, id) => Destination::Physical(id.into()),
        };
        let kind = match message.trigger {
            Trigger::Fixed => IpiKind::Fixed(message.vector),
            Trigger::Nmi => IpiKind::Nmi,
        };
        // No vCPU has this id, so the sender is never a target: devices are not vCPUs.
        self.send(by, kind, to, u32::MAX);
    }
}

impl Memory {
    fn range(&self) -> Range<u64> {
        self.start..self.end.load(SeqCst)
    }
}

impl From<Range<u64>> for Memory {
    fn from(range: Range<u64>) -> Self {
        Self {
            start: range.start,
            end: AtomicU64::new(range.end),
        }
    }
}

impl VcpuState {
    fn new(apic_id: u32) -> Self {
        Self {
            apic_id,
            descriptor: Descriptor::new(),
            nmi: AtomicBool::new(false),
            halt: AtomicU8::new(Halt::No as u8),
            branches: Branches::default(),
            tally: Tally::default(),
        }
    }

    /// Returns the vCPU's x2APIC id.
    #[must_use]
    pub const fn apic_id(&self) -> u32 {
        self.apic_id
    }

    /// Returns the vCPU's posted-interrupt descriptor. The module needs its physical address.
    #[must_use]
    pub const fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Returns the counters of the GHCI branches that the guest took.
    #[must_use]
    pub const fn branches(&self) -> &Branches {
        &self.branches
    }

    /// Returns the exit counters.
    #[must_use]
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Returns the halt state.
    #[must_use]
    pub fn halt(&self) -> Halt {
        match self.halt.load(SeqCst) {
            0 => Halt::No,
            1 => Halt::Interruptible,
            _ => Halt::Blocked,
        }
    }

    pub(crate) fn set_halt(&self, halt: Halt) {
        self.halt.store(halt as u8, SeqCst);
    }

    /// Returns whether the vCPU is halted and no event that wakes it is pending. Before a scheduler takes the vCPU off
    /// its CPU, it must check again, at a point where [`Notify::notify`] can already find the vCPU.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        match self.halt() {
            Halt::No => false,
            Halt::Interruptible => !self.has_nmi() && !self.descriptor.is_outstanding(),
            Halt::Blocked => !self.has_nmi(),
        }
    }

    pub(crate) fn has_nmi(&self) -> bool {
        self.nmi.load(SeqCst)
    }

    pub(crate) fn take_nmi(&self) -> bool {
        self.nmi.swap(false, SeqCst)
    }

    /// Restores an NMI request that was taken but could not be injected.
    pub(crate) fn put_nmi(&self) {
        self.nmi.store(true, SeqCst);
    }
}
