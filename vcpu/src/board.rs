//! What the vCPUs of one TD share: its memory, its devices, its console, and how each of them is reached.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};

use mm::shared::SharedMap;
use seam::abi::Status;
use seam::address::Gpa;
use spin::{Once, RwLock};

use crate::apic::{Destination, FIRST_VECTOR, IpiKind};
use crate::clock::Clock;
use crate::console::Console;
use crate::devices::{Devices, Message, Trigger};
use crate::ghci::{Branches, FatalError};
use crate::host::Notify;
use crate::posted::Descriptor;
use crate::tally::Tally;

/// What a TD is to its vCPUs.
#[derive(Debug)]
pub struct Board {
    stations: Box<[Station]>,
    /// Bits of an x2APIC id.
    id_bits: u32,
    memory: Box<[Memory]>,
    shared: SharedMap,
    /// Held for reading while private memory is mapped, and for writing while memory is converted: a page is never both.
    /// Only ever tried, for who holds it may wait for all other CPUs.
    pub(crate) conversions: RwLock<()>,
    devices: Devices,
    console: Arc<Console>,
    clock: Clock,
    end: Once<End>,
}

/// A range of a TD's memory, whose end the operator may lower.
#[derive(Debug)]
struct Memory {
    start: u64,
    end: AtomicU64,
}

/// How one vCPU is reached.
#[derive(Debug)]
pub struct Station {
    apic_id: u32,
    descriptor: Descriptor,
    nmi: AtomicBool,
    halt: AtomicU8,
    branches: Branches,
    tally: Tally,
}

/// What a halted vCPU waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Halt {
    /// It is not halted.
    No,
    /// For an interrupt or an NMI.
    Interruptible,
    /// For an NMI alone: the guest had interrupts off.
    Blocked,
}

/// Why a TD came to its end, or one of its vCPUs, without which it can't go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked to be started anew.
    Reset,
    /// The guest's kernel said that it has panicked.
    Panicked,
    /// ReportFatalError.
    Fatal(FatalError),
    /// A triple fault.
    TripleFault {
        /// Which vCPU.
        vcpu: u32,
    },
    /// A machine check while it ran.
    MachineCheck(Status),
    /// The module will not run it any more.
    Lost(Status),
    /// An exit that can't be served.
    Unknown(Status),
    /// The guest used a private address where it has no memory.
    NoMemory(Gpa),
    /// The guest used memory privately that it shares.
    UsedShared(Gpa),
    /// The guest used memory that it had not accepted.
    Unaccepted(Gpa),
    /// The guest used a shared address where nothing is, where it could not be told.
    NothingShared(Gpa),
    /// The shared EPT is broken.
    Misconfigured(Gpa),
    /// Memory could not be given or taken.
    Memory(mm::private::Error),
    /// A SEAMCALL failed that must not.
    Seam(seam::error::Error),
}

impl End {
    /// Whether the guest wanted it.
    #[must_use]
    pub const fn is_orderly(&self) -> bool {
        matches!(self, Self::PowerOff | Self::Reset)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("it switched itself off"),
            Self::Reset => f.write_str("it asked for a reset"),
            Self::Panicked => f.write_str("its kernel has panicked"),
            Self::Fatal(error) => error.fmt(f),
            Self::TripleFault { vcpu } => write!(f, "triple fault on vCPU {vcpu}"),
            Self::MachineCheck(status) => write!(f, "machine check in the TD ({status:?})"),
            Self::Lost(status) => write!(f, "the module will not run it any more: {status:?}"),
            Self::Unknown(status) => write!(f, "an exit that is not known: {status:?}"),
            Self::NoMemory(gpa) => write!(f, "it has no memory at {gpa:?}"),
            Self::UsedShared(gpa) => {
                write!(f, "it used what it shares as private memory at {gpa:?}")
            }
            Self::Unaccepted(gpa) => {
                write!(f, "it used memory that it had not accepted at {gpa:?}")
            }
            Self::NothingShared(gpa) => write!(f, "nothing is shared at {gpa:?}"),
            Self::Misconfigured(gpa) => write!(f, "its shared EPT is broken at {gpa:?}"),
            Self::Memory(error) => write!(f, "its memory: {error}"),
            Self::Seam(error) => error.fmt(f),
        }
    }
}

impl Board {
    /// A TD with one vCPU for each of these x2APIC ids, memory in these ranges (aligned to 4 KiB, ascending), and this
    /// clock. Its life begins on `console`, which is the one of its lives before, or a new one.
    #[must_use]
    pub fn new(
        apic_ids: impl IntoIterator<Item = u32>,
        memory: Vec<Range<u64>>,
        shared: SharedMap,
        clock: Clock,
        console: Arc<Console>,
    ) -> Self {
        console.begin();
        let stations: Box<[_]> = apic_ids.into_iter().map(Station::new).collect();
        let last = stations.iter().map(Station::apic_id).fold(0, u32::max);
        Self {
            stations,
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

    /// Its vCPUs, by number.
    #[must_use]
    pub fn stations(&self) -> &[Station] {
        &self.stations
    }

    /// How many bits the x2APIC ids of its vCPUs have.
    pub(crate) const fn id_bits(&self) -> u32 {
        self.id_bits
    }

    /// Its console.
    #[must_use]
    pub const fn console(&self) -> &Arc<Console> {
        &self.console
    }

    /// Its devices.
    #[must_use]
    pub const fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Its shared memory.
    #[must_use]
    pub const fn shared(&self) -> &SharedMap {
        &self.shared
    }

    /// Its time-stamp counter.
    #[must_use]
    pub const fn clock(&self) -> Clock {
        self.clock
    }

    /// Why it ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<&End> {
        self.end.get()
    }

    /// Ends it, for this reason unless it had one before. Its console has the reason as its last line.
    pub fn end_with(&self, why: End) {
        self.end.call_once(|| {
            self.console.note(format_args!("{why}"));
            why
        });
    }

    /// Where it has memory, ascending.
    pub fn memory(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let all = self.memory.iter().map(Memory::range);
        all.filter(|range| range.start < range.end)
    }

    /// The range of memory with `gpa` in it.
    #[must_use]
    pub fn memory_at(&self, gpa: u64) -> Option<Range<u64>> {
        self.memory().find(|range| range.contains(&gpa))
    }

    /// Takes memory away: from now on it has none from `end` on, though what is mapped there still has to be removed.
    /// `false` when a vCPU is at mapping or converting memory that it had: the caller tries again, and removes nothing
    /// before.
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
        if let Some(station) = self.stations.get(vcpu as usize)
            && station.descriptor.post(vector)
        {
            by.notify(vcpu);
        }
    }

    /// Asks for an NMI on a vCPU. Several that were not taken yet are one.
    pub fn post_nmi(&self, by: &(impl Notify + ?Sized), vcpu: u32) {
        if let Some(station) = self.stations.get(vcpu as usize)
            && !station.nmi.swap(true, SeqCst)
        {
            by.interrupt(vcpu);
        }
    }

    /// Sends a message from the vCPU with x2APIC id `sender` to all that it is for.
    pub(crate) fn send(
        &self,
        by: &(impl Notify + ?Sized),
        kind: IpiKind,
        to: Destination,
        sender: u32,
    ) {
        for (number, station) in (0..).zip(&self.stations) {
            if to.includes(station.apic_id, sender) {
                match kind {
                    IpiKind::Fixed(vector) => self.post(by, number, vector),
                    IpiKind::Nmi => self.post_nmi(by, number),
                }
            }
        }
    }

    /// Takes what was typed as far as the serial port has room, and shows its line to the interrupt controller.
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
        // Nobody has this id: devices are not vCPUs.
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

impl Station {
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

    /// Its x2APIC id.
    #[must_use]
    pub const fn apic_id(&self) -> u32 {
        self.apic_id
    }

    /// Its posted-interrupt descriptor, whose physical address the module is to be given.
    #[must_use]
    pub const fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// How often its guest took each branch of the GHCI.
    #[must_use]
    pub const fn branches(&self) -> &Branches {
        &self.branches
    }

    /// How often it exited, and why.
    #[must_use]
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// What it waits for.
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

    /// Whether it is halted and nothing that it waits for has come. Whoever takes it off a CPU for that asks once more
    /// after every [`Notify::notify`] can find it.
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

    /// The NMI that was taken could not be handed in.
    pub(crate) fn put_nmi(&self) {
        self.nmi.store(true, SeqCst);
    }
}
