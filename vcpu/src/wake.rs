//! The door to a TD's vCPUs.
//!
//! Everything that a vCPU must notice goes through [`Waker::wake`]: interrupts from devices, from the operator's typed
//! bytes, and from other vCPUs, and NMIs. A waker takes no lock, waits for nobody, and may be an interrupt handler. A
//! scheduler stands behind the door as an [`Executor`].
//!
//! # Memory ordering
//!
//! A waker writes the event (the posted-interrupt descriptor, or the NMI flag), then reads the vCPU's place. A CPU
//! writes the place, then reads the events:
//!
//! - before it enters the vCPU: the place is its own number;
//! - after it has put the halted vCPU into the run queue: the place is "waiting".
//!
//! All four accesses are sequentially consistent. In their total order, either the waker's read comes after the CPU's
//! write, so that the waker finds the place and interrupts the CPU or wakes the vCPU, or the CPU's read comes after the
//! waker's write, so that the CPU finds the event. No event is lost. Both may happen; the second one to act finds
//! nothing left to do.
//!
//! Only one of several wakers changes the place from "waiting" to "woken" (a compare-and-exchange), and it alone calls
//! [`Executor::woken`]. What the waker wrote before, the scheduler reads after [`Vm::take_woken`].

use crate::state::{Event, Halt, Place};
use crate::vm::Vm;

/// A scheduler, as the wakers of its vCPUs need it. No method waits or takes a lock that is not free.
pub trait Executor {
    /// Sends the notification interrupt to CPU `cpu`, unless it is the calling one: the CPU moves posted interrupts into
    /// the vCPU that it runs.
    fn notify(&self, cpu: u32);

    /// Makes CPU `cpu` leave the guest, unless it is the calling one, which is not in a guest.
    fn interrupt(&self, cpu: u32);

    /// Makes the vCPUs ready that wait in the run queue and have been woken ([`Vm::take_woken`]), soon.
    fn woken(&self);
}

/// The door to the vCPUs of one TD.
#[derive(Clone, Copy)]
pub struct Waker<'a> {
    vm: &'a Vm,
    executor: &'a dyn Executor,
}

impl<'a> Waker<'a> {
    /// Creates the door to the vCPUs of `vm`, which `executor` runs.
    #[must_use]
    pub const fn new(vm: &'a Vm, executor: &'a dyn Executor) -> Self {
        Self { vm, executor }
    }

    /// Returns the scheduler.
    pub(crate) fn executor(self) -> &'a dyn Executor {
        self.executor
    }

    /// Returns the TD-wide state.
    #[must_use]
    pub const fn vm(self) -> &'a Vm {
        self.vm
    }

    /// Posts an event to a vCPU and makes the vCPU notice it: a CPU in its guest is interrupted, and a halted vCPU is
    /// made ready. A number that no vCPU has is ignored.
    pub fn wake(self, vcpu: u32, event: Event) {
        let Some(state) = self.vm.vcpus().get(vcpu as usize) else {
            return;
        };
        // If an earlier event has not been taken yet, its waker makes the vCPU notice both.
        if !state.post(event) {
            return;
        }
        match (state.wake(), event) {
            (Place::Elsewhere, _) => {}
            (Place::Cpu(cpu), Event::Interrupt(_)) => self.executor.notify(cpu),
            (Place::Cpu(cpu), Event::Nmi) => self.executor.interrupt(cpu),
            (Place::Queue, _) => self.admit(),
        }
    }

    /// Wakes a vCPU again for which events came before it waited in the run queue. The scheduler calls this after
    /// [`VcpuState::wait`](crate::VcpuState::wait).
    pub fn recheck(self, vcpu: u32) {
        let Some(state) = self.vm.vcpus().get(vcpu as usize) else {
            return;
        };
        let can_serve = state.halt() != Halt::Blocked && self.vm.devices().pci().has_work();
        if (!state.is_waiting() || can_serve) && state.wake() == Place::Queue {
            self.admit();
        }
    }

    /// Makes a vCPU leave its guest, or run, so that it serves the devices that have work ([`devices::pci::Bus::has_work`]).
    /// The event is the work itself: a vCPU looks for it before each entry, and after it has begun to wait
    /// ([`Self::recheck`]). A vCPU that is halted with interrupts disabled serves nothing. While another CPU helps, none is
    /// summoned: that CPU finds the work, or calls this afterwards.
    pub fn summon(self) {
        if !self.vm.devices().pci().has_work() {
            return;
        }
        let mut vcpus = self.vm.vcpus().iter();
        let Some(state) = vcpus.find(|state| state.halt() != Halt::Blocked) else {
            return;
        };
        match state.wake() {
            Place::Elsewhere => {}
            Place::Cpu(cpu) => self.executor.interrupt(cpu),
            Place::Queue => self.admit(),
        }
    }

    fn admit(self) {
        self.vm.note_woken();
        self.executor.woken();
    }
}

impl core::fmt::Debug for Waker<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Waker").finish_non_exhaustive()
    }
}
