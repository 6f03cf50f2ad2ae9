//! The part of the server that runs vCPUs: a clock that the tests advance, timers driven by it, and records of
//! notifications.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};

use host::functions::Functions;
use host::platform::{Attention, Platform, Running};
use mm::frames::Frame;
use mm::shared::{self, Words};
use seam::abi::{PAGE_4K, PageSize};
use seam::address::Hpa;
use stub_module::Machine as _;
use stub_module::host::Guest;
use vcpu::{PhysicalCpu, posted::Descriptor};

use super::cpus;
use super::{Rig, outside};

/// The vector of the notification interrupt.
pub const NOTIFICATION: u8 = 0xF2;
/// The vector by which a guest's script signals its end. The CPU then has something else to do.
pub const OUT_OF_LINES: u8 = 0xFE;

/// Duration of a turn after the end of a script.
const TURN: u64 = 1_000_000;

/// State for running vCPUs.
#[derive(Default)]
pub struct State {
    clock: AtomicU64,
    cpus: Vec<Cpu>,
    console_wakes: AtomicU64,
    functions: OnceLock<Box<dyn Functions + Send>>,
    /// A CPU, and what happens whenever it takes its interrupts.
    interrupts: Mutex<Option<(u32, Happening)>>,
}

type Happening = Box<dyn FnMut() + Send>;

#[derive(Default)]
struct Cpu {
    attention: Attention,
    /// Expiry of the timer; 0 if it is stopped.
    timer: AtomicU64,
    served: Mutex<Vec<u8>>,
    pokes: AtomicU64,
    notified: AtomicU64,
}

impl State {
    pub fn new(cpus: usize) -> Self {
        Self {
            clock: AtomicU64::new(1_000_000_000),
            cpus: (0..cpus).map(|_| Cpu::default()).collect(),
            console_wakes: AtomicU64::new(0),
            functions: OnceLock::new(),
            interrupts: Mutex::new(None),
        }
    }

    fn cpu(&self) -> &Cpu {
        &self.cpus[cpus::this() as usize]
    }
}

impl Rig {
    /// Advances the clock. Timers that are due ring.
    pub fn pass(&self, ticks: u64) {
        let running = &self.machine.running;
        let now = running.clock.fetch_add(ticks, SeqCst) + ticks;
        for cpu in &running.cpus {
            let due = cpu.timer.load(SeqCst);
            if due != 0 && due <= now {
                cpu.timer.store(0, SeqCst);
                cpu.attention.ring();
            }
        }
    }

    /// Makes something happen whenever a CPU takes its interrupts.
    pub fn set_interrupts(&self, cpu: u32, happening: impl FnMut() + Send + 'static) {
        let mut interrupts = self.machine.running.interrupts.lock().unwrap();
        *interrupts = Some((cpu, Box::new(happening)));
    }

    /// Gives the server PCI functions for TDs, once.
    pub fn set_functions(&self, functions: impl Functions + Send + 'static) {
        let set = self.machine.running.functions.set(Box::new(functions));
        assert!(set.is_ok());
    }

    /// Sets the guest on CPU `cpu`.
    pub fn set_guest(&self, cpu: u32, guest: Option<Box<dyn Guest>>) {
        self.server().machine().set_guest(cpu, guest);
    }

    /// Takes the vectors that a CPU has served for its host since the last call.
    pub fn served(&self, cpu: u32) -> Vec<u8> {
        std::mem::take(
            &mut self.machine.running.cpus[cpu as usize]
                .served
                .lock()
                .unwrap(),
        )
    }

    /// Returns how often a CPU was interrupted to look for work.
    pub fn pokes(&self, cpu: u32) -> u64 {
        self.machine.running.cpus[cpu as usize].pokes.load(SeqCst)
    }

    /// Returns how often the CPU of the machine's console was woken to check it.
    pub fn console_wakes(&self) -> u64 {
        self.machine.running.console_wakes.load(SeqCst)
    }

    /// Returns the expiry of a CPU's timer.
    pub fn timer(&self, cpu: u32) -> Option<u64> {
        let due = self.machine.running.cpus[cpu as usize].timer.load(SeqCst);
        Some(due).filter(|due| *due != 0)
    }
}

impl PhysicalCpu for Rig {
    type Frames = Self;

    fn shared_frames(&self) -> &Self {
        self
    }

    fn tsc(&self) -> u64 {
        self.machine.running.clock.load(SeqCst)
    }

    fn monotonic_us(&self) -> u64 {
        self.now_us()
    }

    fn unix_seconds(&self) -> u64 {
        1_790_000_000
    }

    fn wake_console(&self) {
        self.machine.running.console_wakes.fetch_add(1, SeqCst);
        self.attention(0).poke();
    }

    fn notify(&self, cpu: u32) {
        let cpu = &self.machine.running.cpus[cpu as usize];
        cpu.notified.fetch_add(1, SeqCst);
    }

    fn serve_interrupt(&self, vector: u8) {
        let cpu = self.machine.running.cpu();
        outside(|| cpu.served.lock().unwrap().push(vector));
        if vector == OUT_OF_LINES {
            cpu.attention.poke();
            self.machine.running.clock.fetch_add(TURN, SeqCst);
        }
    }

    fn serve_nmi(&self) {
        self.serve_interrupt(2);
    }

    fn serve_machine_check(&self) {
        self.serve_interrupt(18);
    }

    fn take_interrupts(&self) {
        self.serve();
        outside(|| {
            let mut interrupts = self.machine.running.interrupts.lock().unwrap();
            if let Some((cpu, happening)) = &mut *interrupts
                && *cpu == self.this_cpu()
            {
                happening();
            }
        });
    }
}

impl Running for Rig {
    fn tsc_hz(&self) -> u64 {
        1_000_000_000
    }

    // The simulated CPU reads no descriptors, so any of the host's addresses will do.
    fn descriptor_at(&self, _: &Descriptor) -> Hpa {
        Hpa(1 << 20)
    }

    fn attention(&self, cpu: u32) -> &Attention {
        &self.machine.running.cpus[cpu as usize].attention
    }

    fn poke(&self, cpu: u32) {
        let cpu = &self.machine.running.cpus[cpu as usize];
        cpu.pokes.fetch_add(1, SeqCst);
    }

    fn set_timer(&self, tsc: Option<u64>) {
        let cpu = self.machine.running.cpu();
        cpu.timer.store(tsc.unwrap_or(0), SeqCst);
    }

    fn notification_vector(&self) -> u8 {
        NOTIFICATION
    }

    fn functions(&self) -> Option<&dyn Functions> {
        let functions = self.machine.running.functions.get()?;
        Some(&**functions)
    }

    fn flush_shared_ept(&self) {}
}

impl shared::Frames for Rig {
    fn take(&self, size: PageSize) -> Option<Hpa> {
        let frame = self.machine.pool.ledger().lock().alloc(order(size)).ok()?;
        outside(|| {
            for offset in (0..size.bytes()).step_by(PAGE_4K as usize) {
                self.server().machine().fill_page(frame.pa + offset, 0);
            }
        });
        Some(Hpa(frame.pa))
    }

    fn give(&self, hpa: Hpa, size: PageSize) {
        let frame = Frame {
            pa: hpa.0,
            order: order(size),
        };
        self.machine.pool.ledger().lock().free(frame).unwrap();
    }

    fn quarantine(&self, hpa: Hpa, size: PageSize) {
        let frame = Frame {
            pa: hpa.0,
            order: order(size),
        };
        self.machine.pool.ledger().lock().quarantine(frame).unwrap();
    }

    fn split(&self, hpa: Hpa) {
        let frame = Frame {
            pa: hpa.0,
            order: order(PageSize::Size2M),
        };
        self.machine.pool.ledger().lock().split(frame, 0).unwrap();
    }

    fn words(&self, hpa: Hpa) -> &Words {
        let server: &Arc<_> = &self.machine.server;
        outside(|| server.machine().page(hpa.0))
    }
}

const fn order(size: PageSize) -> u32 {
    match size {
        PageSize::Size4K => 0,
        PageSize::Size2M => 9,
        PageSize::Size1G => 18,
    }
}
