//! The frame allocator and memory, at the price of the cost model.

use std::sync::Arc;

use mm::frames::Frames;
use mm::pages::Flush;
use seam::abi::{PAGE_4K, PageSize};
use seam::address::Hpa;
use seam::page::Clear;
use spin::Mutex;
use stub_module::host::Server;

use crate::machine::Machine;

/// The frame allocator behind its lock.
pub struct Ledger {
    frames: Mutex<Frames>,
    machine: Arc<Machine>,
}

impl Ledger {
    pub fn new(frames: Frames, machine: Arc<Machine>) -> Self {
        Self {
            frames: Mutex::new(frames),
            machine,
        }
    }
}

impl mm::private::Ledger for Ledger {
    fn with<R>(&self, work: impl FnOnce(&mut Frames) -> R) -> R {
        let mut frames = self.frames.lock();
        let before = out(&frames);
        let result = work(&mut frames);
        self.machine.lock_frames(out(&frames).abs_diff(before));
        result
    }
}

/// Frames that are out, whatever their size.
pub fn out(frames: &Frames) -> u64 {
    frames.counts().iter().map(|counts| counts.used).sum()
}

/// Memory as the frame pool reaches it.
pub struct Direct {
    server: Arc<Server>,
    machine: Arc<Machine>,
}

impl Direct {
    pub fn new(server: Arc<Server>, machine: Arc<Machine>) -> Self {
        Self { server, machine }
    }
}

impl Flush for Direct {
    // Nothing is in a cache: the lines of a frame were stored around the caches when it was cleared.
    fn flush(&self, _: Hpa, _: PageSize) {}
}

impl Clear for Direct {
    // The emulated module objects when the host touches what is not its own; the ends of a large frame stand for all of it.
    fn clear(&self, hpa: Hpa, size: PageSize) {
        self.machine.clear(hpa.0, size.bytes());
        let ends = [hpa.0, hpa.0 + size.bytes() - PAGE_4K];
        let ends = &ends[..if size == PageSize::Size4K { 1 } else { 2 }];
        if let Some(cpu) = self.server.processor(0) {
            for end in ends {
                // The module counts what it objects to, and the session looks at that count.
                _ = cpu.clear(*end);
            }
        }
    }
}
