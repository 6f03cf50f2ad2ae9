//! The host's accesses to memory, each of which the module may reject.

use std::sync::Arc;

use mm::pages::Flush;
use seam::abi::{PAGE_4K, PageSize};
use seam::address::Hpa;
use seam::page::Clear;
use stub_module::host::{Memory, Server};

use super::{cpus, outside};

/// Memory access of the frame pool.
pub struct Direct(pub Arc<Server>);

impl Flush for Direct {
    // The simulated machine has no caches.
    fn flush(&self, _: Hpa, _: PageSize) {}
}

impl Clear for Direct {
    fn clear(&self, hpa: Hpa, size: PageSize) {
        let cpu = self.0.processor(cpus::this()).unwrap();
        outside(|| {
            for offset in (0..size.bytes()).step_by(PAGE_4K as usize) {
                cpu.clear(hpa.0 + offset).unwrap();
            }
        });
    }
}

/// Runs `work` with memory, if the calling CPU may access the `len` bytes at `hpa`.
pub fn access(server: &Server, hpa: Hpa, len: usize, work: impl FnOnce(&Memory)) {
    let cpu = server.processor(cpus::this()).unwrap();
    let first = hpa.0 / PAGE_4K * PAGE_4K;
    for page in (first..hpa.0 + len as u64).step_by(PAGE_4K as usize) {
        cpu.load(page).unwrap();
    }
    work(server.machine().memory());
}
