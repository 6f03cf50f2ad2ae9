//! The state of a vCPU that other CPUs reach: pending events, halt, the CPU that runs it, counters.

use sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::SeqCst};

use crate::apic::FIRST_VECTOR;
use crate::branch::Branches;
use crate::posted::Descriptor;
use crate::tally::Tally;
use crate::unanswered::Unanswered;

/// An event for a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An interrupt with this vector. A vector below 16 is ignored.
    Interrupt(u8),
    /// An NMI.
    Nmi,
}

/// The state of one vCPU that any CPU may read, and to which any CPU posts events, and its counters.
#[derive(Debug)]
pub struct VcpuState {
    apic_id: u32,
    descriptor: Descriptor,
    nmi: AtomicBool,
    halt: AtomicU8,
    /// The vCPU's place; its CPU's number, or one of the constants below.
    place: AtomicU32,
    branches: Branches,
    tally: Tally,
    unanswered: Unanswered,
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

/// Place of a vCPU that is on no CPU and does not wait. It looks for events before its next entry.
const OFF_CPU: u32 = u32::MAX;
/// Place of a vCPU in the run queue that waits for an event.
const WAITING: u32 = OFF_CPU - 1;
/// Place of a vCPU in the run queue that has waited until an event came. The scheduler has to make it ready.
const WOKEN: u32 = OFF_CPU - 2;

/// The place of a vCPU as a waker finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The vCPU looks for events before it is entered next.
    Elsewhere,
    /// The CPU of this number runs the vCPU.
    Cpu(u32),
    /// The vCPU waited in the run queue, and the caller alone has woken it.
    Queue,
}

impl VcpuState {
    pub(crate) fn new(apic_id: u32) -> Self {
        Self {
            apic_id,
            descriptor: Descriptor::new(),
            nmi: AtomicBool::new(false),
            halt: AtomicU8::new(Halt::No as u8),
            place: AtomicU32::new(OFF_CPU),
            branches: Branches::default(),
            tally: Tally::default(),
            unanswered: Unanswered::default(),
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

    /// Returns the accesses that nothing answered.
    pub(crate) const fn unanswered(&self) -> &Unanswered {
        &self.unanswered
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
    /// its CPU, it must check again, once [`crate::Waker::wake`] finds the vCPU waiting ([`crate::Waker::recheck`]).
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

    /// Records an event. Returns `false` if it merges with one that the vCPU has not taken yet.
    pub(crate) fn post(&self, event: Event) -> bool {
        match event {
            Event::Interrupt(vector) => vector >= FIRST_VECTOR && self.descriptor.post(vector),
            Event::Nmi => !self.nmi.swap(true, SeqCst),
        }
    }

    /// Returns the CPU that runs the vCPU.
    #[must_use]
    pub fn cpu(&self) -> Option<u32> {
        let place = self.place.load(SeqCst);
        (place < WOKEN).then_some(place)
    }

    /// Notes that CPU `cpu` runs the vCPU. The CPU then looks for events, before it enters the guest.
    pub(crate) fn begin(&self, cpu: u32) {
        self.place.store(cpu, SeqCst);
    }

    /// Notes that no CPU runs the vCPU any more.
    pub(crate) fn leave(&self) {
        self.place.store(OFF_CPU, SeqCst);
    }

    /// Notes that the vCPU waits in the run queue. The scheduler holds the lock under which it takes vCPUs from there,
    /// and then rechecks for events ([`crate::Waker::recheck`]).
    pub fn wait(&self) {
        self.place.store(WAITING, SeqCst);
    }

    /// Wakes the vCPU if it waits in the run queue, and returns where it was.
    pub(crate) fn wake(&self) -> Place {
        let exchanged = self.place.compare_exchange(WAITING, WOKEN, SeqCst, SeqCst);
        match exchanged {
            Ok(_) => Place::Queue,
            Err(OFF_CPU | WOKEN) => Place::Elsewhere,
            Err(cpu) => Place::Cpu(cpu),
        }
    }

    /// Takes the vCPU from those that were woken. Returns `false` if it is not one of them.
    pub(crate) fn take_woken(&self) -> bool {
        let exchanged = self.place.compare_exchange(WOKEN, OFF_CPU, SeqCst, SeqCst);
        exchanged.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_several_wakers_wakes_a_vcpu_that_waits() {
        let state = VcpuState::new(0);
        assert_eq!(state.wake(), Place::Elsewhere, "it has not run yet");
        state.wait();
        assert_eq!(state.wake(), Place::Queue);
        assert_eq!(state.wake(), Place::Elsewhere, "another has woken it");
        assert!(state.take_woken());
        assert!(!state.take_woken());
    }

    #[test]
    fn a_vcpu_that_runs_is_found_on_its_cpu() {
        let state = VcpuState::new(0);
        state.begin(7);
        assert_eq!((state.wake(), state.cpu()), (Place::Cpu(7), Some(7)));
        assert!(!state.take_woken());
        state.leave();
        assert_eq!((state.wake(), state.cpu()), (Place::Elsewhere, None));
        // A vCPU that was woken may run before the scheduler takes it from the woken ones.
        state.wait();
        assert_eq!(state.wake(), Place::Queue);
        state.begin(3);
        assert!(!state.take_woken());
        assert_eq!(state.cpu(), Some(3));
    }

    #[test]
    fn the_first_event_wakes_and_others_merge_with_it() {
        let state = VcpuState::new(0);
        assert!(state.post(Event::Interrupt(0x31)));
        assert!(!state.post(Event::Interrupt(0x32)));
        assert!(state.post(Event::Nmi));
        assert!(!state.post(Event::Nmi));
        assert!(!state.post(Event::Interrupt(FIRST_VECTOR - 1)));
        assert_eq!(state.descriptor().pending()[0], 3 << 0x31);
    }
}
