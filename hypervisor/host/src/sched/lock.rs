//! The lock of the run queue. Wakers do not wait for it.
//!
//! A waker that finds the lock taken leaves the woken vCPU where it is: the holder makes it ready after it has released
//! the lock ([`QueueLock::with`]).
//!
//! # Memory ordering
//!
//! A waker changes the flag `woken`, then tries the lock. A holder releases the lock, then looks at the flag. Both
//! accesses to the flag are read-modify-writes, so one of them comes first. If it is the waker's, the holder sees the
//! flag set. If it is the holder's, the waker's access reads what the holder's wrote and synchronises with it, so the
//! waker finds the lock as the holder released it, or taken by a later holder, for whom the same holds. No woken vCPU is
//! left behind.

use alloc::{collections::BTreeMap, sync::Arc};

use sync::{
    IrqLock,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use super::{
    guest::Guest,
    poke,
    queue::{RunQueue, VcpuId},
};
use crate::platform::Running;

/// The run queue, and the TDs whose vCPUs are in it.
#[derive(Debug)]
pub struct Scheduled {
    pub queue: RunQueue,
    /// The TDs that run or have run, by number.
    pub guests: BTreeMap<u32, Arc<Guest>>,
}

/// The lock around [`Scheduled`].
pub struct QueueLock {
    inner: IrqLock<Scheduled>,
    /// Set when a vCPU that waits in the run queue has been woken.
    woken: AtomicBool,
}

impl QueueLock {
    /// Creates a lock around an empty run queue.
    pub const fn new(queue: RunQueue) -> Self {
        Self {
            inner: IrqLock::new(Scheduled {
                queue,
                guests: BTreeMap::new(),
            }),
            woken: AtomicBool::new(false),
        }
    }

    /// Runs `work` with the lock held. Then makes the vCPUs ready that were woken meanwhile.
    pub fn with<P: Running, R>(&self, platform: &P, work: impl FnOnce(&mut Scheduled) -> R) -> R {
        let result = work(&mut self.inner.lock());
        self.admit(platform);
        result
    }

    /// Notes that a vCPU that waits in the run queue has been woken, and makes it ready, or lets the holder of the lock
    /// do so.
    pub fn note_woken<P: Running>(&self, platform: &P) {
        self.woken.fetch_or(true, SeqCst);
        self.admit(platform);
    }

    /// Makes the woken vCPUs ready if the lock is free.
    fn admit<P: Running>(&self, platform: &P) {
        // A read-modify-write that changes nothing: see the memory ordering above.
        while self.woken.fetch_or(false, SeqCst) {
            let Some(mut scheduled) = self.inner.try_lock() else {
                return;
            };
            self.woken.swap(false, SeqCst);
            scheduled.admit(platform);
        }
    }
}

impl Scheduled {
    fn admit<P: Running>(&mut self, platform: &P) {
        let now = platform.tsc();
        for (td, guest) in &self.guests {
            for vcpu in guest.vm().take_woken() {
                let id = VcpuId {
                    td: *td,
                    vcpu: vcpu as u16,
                };
                if let Some(cpu) = self.queue.wake(id, now) {
                    poke(platform, cpu);
                }
            }
        }
    }
}
