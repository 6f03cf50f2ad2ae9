//! A device of a TD, as the devices of other TDs know it: they copy to its memory, and leave news for it.
//!
//! A CPU that works for one TD never waits for another one's CPU. It reads the other's memory only while nothing is mapped
//! or unmapped there, and takes the lock of the other's device only if it is free.

use alloc::sync::{Arc, Weak};
use core::fmt;

use devices::{Memory, Other, Page, Unshared};
use mm::shared::{Frames, Reader};
use seam::address::Gpa;
use spin::Once;

use crate::interrupts::deliver;
use crate::vm::Vm;
use crate::wake::{Executor, Waker};

/// A device of a TD ([`devices::Other`]).
pub struct Peer {
    /// The device's number on the TD's bus.
    device: u8,
    vm: Once<Weak<Vm>>,
}

impl Peer {
    /// Creates what others know of the device of this number on a TD's bus.
    #[must_use]
    pub const fn new(device: u8) -> Self {
        Self {
            device,
            vm: Once::new(),
        }
    }

    /// Returns the device's number on the TD's bus.
    #[must_use]
    pub const fn device(&self) -> u8 {
        self.device
    }

    /// Makes the device known as one of `vm`. Nobody reaches it before.
    pub fn belong_to(&self, vm: &Arc<Vm>) {
        self.vm.call_once(|| Arc::downgrade(vm));
    }

    /// Lets the device take its news, and interrupts its driver. A vCPU of the TD does what needs the TD's memory.
    pub(crate) fn tell(&self, executor: &dyn Executor) {
        let Some(vm) = self.vm() else {
            return;
        };
        let waker = Waker::new(&vm, executor);
        let bus = vm.devices().pci();
        if bus.tell(self.device, &mut |message| deliver(waker, message)) {
            waker.summon();
        }
    }

    fn vm(&self) -> Option<Arc<Vm>> {
        self.vm.get()?.upgrade()
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

/// A TD that is reached by one of its devices, several times in a row.
pub struct Reached {
    peer: Arc<Peer>,
    vm: Arc<Vm>,
}

impl Reached {
    /// Returns the TD of a device; `None` if it is gone.
    pub fn new(other: &Other) -> Option<Self> {
        let peer = other.clone().downcast::<Peer>().ok()?;
        let vm = peer.vm()?;
        Some(Self { peer, vm })
    }

    /// Returns whether this is the TD of a device.
    #[inline]
    pub fn is(&self, other: &Other) -> bool {
        core::ptr::addr_eq(Arc::as_ptr(&self.peer), Arc::as_ptr(other))
    }

    /// Calls `work` with the TD's memory, no page of which is unmapped meanwhile. Returns `false`, and does not call it,
    /// if entries of its shared memory change now.
    #[inline]
    pub fn with_memory<F: Frames>(&self, frames: &F, work: &mut dyn FnMut(&dyn Memory)) -> bool {
        let map = self.vm.shared();
        let Some(reader) = map.try_reader(frames) else {
            return false;
        };
        work(&PeerMemory {
            shared_bit: map.shared_bit(),
            reader,
        });
        true
    }
}

/// The memory of another TD, for one copy.
struct PeerMemory<'m, F> {
    reader: Reader<'m, F>,
    shared_bit: u64,
}

impl<F: Frames> Memory for PeerMemory<'_, F> {
    fn page(&self, gpa: u64) -> Result<&Page, Unshared> {
        let page = self.reader.page(Gpa(gpa & !self.shared_bit));
        page.ok_or(Unshared(gpa))
    }
}
