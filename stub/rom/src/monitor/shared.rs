//! The part of a processor's state that other processors access.

use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use spin::Mutex;
use stub_rom::apic::Station;

use super::hardware::{self, Hardware, command};

/// Flags, by processor number, of mailboxes that may hold something. Each processor checks its flag after every exit.
static POSTED: [AtomicBool; 256] = [const { AtomicBool::new(false) }; 256];

/// Returns the flag of processor `number`.
#[inline(always)]
pub fn posted(number: u32) -> &'static AtomicBool {
    &POSTED[usize::from(number as u8)]
}

/// A processor as the others see it.
pub struct Shared {
    pub number: u32,
    pub apic_id: u32,
    pub package: u32,
    pub mailbox: Mutex<Mailbox>,
    pub station: Mutex<Station>,
    /// True if an NMI is on its way whose purpose is to empty the mailbox.
    pub kicked: AtomicBool,
    phase: AtomicU8,
}

/// Requests of other processors to a processor.
#[derive(Default)]
pub struct Mailbox {
    pub init: bool,
    pub start: Option<u8>,
    pub nmi: bool,
    pub waits: bool,
}

/// The phase of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Never started: firmware still runs on it, outside SVM.
    Outside,
    /// A start-up IPI is on its way. The processor will enter the monitor.
    Starting,
    /// The monitor runs on it.
    Running,
}

impl From<Phase> for AtomicU8 {
    fn from(phase: Phase) -> Self {
        Self::new(phase as u8)
    }
}

/// The meaning of an NMI for a processor that runs a TD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InTd {
    /// A request of the monitor, which the exit from the TD has satisfied.
    Nothing,
    /// The host's NMI.
    Nmi,
    /// An INIT, which makes a TD exit.
    Init,
}

impl Shared {
    /// Creates processor `number`, which firmware still runs on.
    pub fn new(number: u32, apic_id: u32, package: u32, station: Station) -> Self {
        Self {
            number,
            apic_id,
            package,
            mailbox: Mutex::default(),
            station: Mutex::new(station),
            kicked: AtomicBool::new(false),
            phase: Phase::Outside.into(),
        }
    }

    /// Posts a request to the mailbox.
    pub fn post(&self, put: impl FnOnce(&mut Mailbox)) {
        let mut mailbox = self.mailbox.lock();
        put(&mut mailbox);
        posted(self.number).store(true, Ordering::SeqCst);
    }

    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    /// Returns whether the processor is in this phase.
    pub fn is(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::SeqCst) == phase as u8
    }

    /// Makes the processor check its mailbox. A processor that is still starting checks it anyway.
    pub fn kick(&self) {
        if self.is(Phase::Running) && !self.kicked.swap(true, Ordering::SeqCst) {
            self.send_nmi();
        }
    }

    /// Sends the processor an NMI. If it is the executing processor, where the NMI arrived at a place that could not
    /// handle it, the NMI makes it exit the next guest that it enters.
    pub fn send_nmi(&self) {
        Hardware.send(self.apic_id, command::NMI);
    }

    /// Takes the NMI of the exit that this processor, the executing one, has just made. Returns whether the NMI is the
    /// software's: not one whose purpose is to empty the mailbox.
    pub fn take_nmi(&self) -> bool {
        hardware::take_nmi();
        !self.kicked.swap(false, Ordering::SeqCst)
    }

    /// Takes the NMI that made a TD exit on this processor, the executing one.
    pub fn take_nmi_in_td(&self) -> InTd {
        if self.take_nmi() {
            return InTd::Nmi;
        }
        let mut mailbox = self.mailbox.lock();
        if core::mem::take(&mut mailbox.init) {
            InTd::Init
        } else if core::mem::take(&mut mailbox.nmi) {
            InTd::Nmi
        } else {
            InTd::Nothing
        }
    }
}
