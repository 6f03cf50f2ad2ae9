//! The part of the machine that runs vCPUs.

use std::collections::BTreeMap;
// Held for no longer than a look-up, in which no other thread runs.
use std::sync::{Arc, Mutex, OnceLock};

use host::functions::Functions;
use host::platform::{Attention, Platform, Running};
use mm::frames::Frame;
use mm::shared::{self, Words};
use seam::abi::{PAGE_4K, PageSize};
use seam::address::Hpa;
use shuttle::thread;
use stub_module::Machine as _;
use sync::atomic::{AtomicU64, Ordering::SeqCst};
use vcpu::PhysicalCpu;
use vcpu::posted::Descriptor;

use crate::machine::{CPUS, Machine};

/// Ticks of the time-stamp counter in a second. Few, because each reading of the counter takes one.
const HZ: u64 = 1_000;

/// State for running vCPUs.
#[derive(Default)]
pub struct State {
    tsc: AtomicU64,
    attention: [Attention; CPUS],
    /// Expiry of each CPU's timer; 0 if it is stopped.
    timers: [AtomicU64; CPUS],
    functions: OnceLock<Box<dyn Functions + Send>>,
    /// The frames that the guests share with the host, and the tables for them: addresses and sizes.
    shared: Mutex<BTreeMap<u64, u64>>,
}

impl Machine {
    fn running(&self) -> &State {
        &self.0.running
    }

    /// Gives the machine PCI functions for TDs, once.
    pub fn set_functions(&self, functions: impl Functions + Send + 'static) {
        assert!(self.running().functions.set(Box::new(functions)).is_ok());
    }

    /// Returns whether an address is in a frame that a guest shares with the host.
    pub fn is_shared(&self, hpa: Hpa) -> bool {
        let shared = self.running().shared.lock().unwrap();
        let below = shared.range(..=hpa.0).next_back();
        below.is_some_and(|(start, bytes)| hpa.0 < start + bytes)
    }

    /// Spends a moment on the calling CPU, in which others run and its timer may go off.
    pub fn idle(&self) {
        let me = self.this_cpu() as usize;
        let due = self.running().timers[me].load(SeqCst);
        if due != 0 && due <= self.tsc() {
            self.running().timers[me].store(0, SeqCst);
            self.running().attention[me].ring();
        }
        self.breathe();
    }
}

impl PhysicalCpu for Machine {
    type Frames = Self;

    fn shared_frames(&self) -> &Self {
        self
    }

    // The scheduler reads it with its lock held, so that others find the lock taken.
    fn tsc(&self) -> u64 {
        thread::yield_now();
        self.running().tsc.fetch_add(1, SeqCst)
    }

    fn monotonic_us(&self) -> u64 {
        self.now_us()
    }

    fn unix_seconds(&self) -> u64 {
        0
    }

    fn serve_interrupt(&self, _: u8) {
        self.breathe();
    }

    fn serve_nmi(&self) {}

    fn serve_machine_check(&self) {}

    fn take_interrupts(&self) {
        self.breathe();
    }

    fn notify(&self, cpu: u32) {
        self.0.interrupts[cpu as usize].store(true, SeqCst);
    }

    fn wake_console(&self) {}
}

impl Running for Machine {
    fn tsc_hz(&self) -> u64 {
        HZ
    }

    // The simulated CPU reads no descriptors, so any of the host's addresses will do.
    fn descriptor_at(&self, _: &Descriptor) -> Hpa {
        Hpa(1 << 20)
    }

    fn attention(&self, cpu: u32) -> &Attention {
        &self.running().attention[cpu as usize]
    }

    fn poke(&self, cpu: u32) {
        self.0.interrupts[cpu as usize].store(true, SeqCst);
    }

    fn set_timer(&self, tsc: Option<u64>) {
        let me = self.this_cpu() as usize;
        self.running().timers[me].store(tsc.unwrap_or(0), SeqCst);
    }

    fn notification_vector(&self) -> u8 {
        0xF2
    }

    fn functions(&self) -> Option<&dyn Functions> {
        let functions = self.running().functions.get()?;
        Some(&**functions)
    }

    fn flush_shared_ept(&self) {}
}

impl shared::Frames for Machine {
    fn take(&self, size: PageSize) -> Option<Hpa> {
        let frame = self.pool().ledger().lock().alloc(order(size)).ok()?;
        for offset in (0..size.bytes()).step_by(PAGE_4K as usize) {
            self.0.server.machine().fill_page(frame.pa + offset, 0);
        }
        let mut shared = self.running().shared.lock().unwrap();
        shared.insert(frame.pa, size.bytes());
        Some(Hpa(frame.pa))
    }

    fn give(&self, hpa: Hpa, size: PageSize) {
        let removed = self.running().shared.lock().unwrap().remove(&hpa.0);
        assert_eq!(removed, Some(size.bytes()));
        let frame = Frame {
            pa: hpa.0,
            order: order(size),
        };
        self.pool().ledger().lock().free(frame).unwrap();
    }

    fn quarantine(&self, hpa: Hpa, size: PageSize) {
        let frame = Frame {
            pa: hpa.0,
            order: order(size),
        };
        self.pool().ledger().lock().quarantine(frame).unwrap();
    }

    fn split(&self, hpa: Hpa) {
        let frame = Frame {
            pa: hpa.0,
            order: order(PageSize::Size2M),
        };
        self.pool().ledger().lock().split(frame, 0).unwrap();
        let mut shared = self.running().shared.lock().unwrap();
        let parts = (hpa.0..hpa.0 + PageSize::Size2M.bytes()).step_by(PAGE_4K as usize);
        shared.extend(parts.map(|part| (part, PAGE_4K)));
    }

    fn words(&self, hpa: Hpa) -> &Words {
        assert!(self.is_shared(hpa), "{:#x} changed hands", hpa.0);
        let server: &Arc<_> = &self.0.server;
        server.machine().page(hpa.0)
    }
}

const fn order(size: PageSize) -> u32 {
    match size {
        PageSize::Size4K => 0,
        PageSize::Size2M => 9,
        PageSize::Size1G => 18,
    }
}
