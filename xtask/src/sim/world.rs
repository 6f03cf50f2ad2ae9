//! The environment of the hypervisor's code in the simulation: the emulated module behind every SEAMCALL, frames, CPUs
//! that call each other. All of it runs on one thread; the current CPU and the clocks are kept here.

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, anyhow};
use host::platform::shutdown::Shutdown;
use host::platform::{CpuPlace, Platform};
use mm::frames::{Frames, words_for};
use mm::pages::Flush;
use mm::private::{Clock, FramePool, Kick, Ledger};
use seam::abi::{Gprs, PAGE_1G, PAGE_4K, PageSize};
use seam::address::Hpa;
use seam::call::{Fault, SeamCall};
use seam::counters::Counters;
use seam::page::Clear;
use seam::retry::Never;
use seam::tdh::Tdh;
use stub_module::host::{Config, Server, TdmrPlan};
use sync::call::NoAnswer;

use super::cost::{self, Cost, Number};
use super::machine::{Charge, Line, Machine, Sums, package_of};

/// The start of the memory for TDs.
pub const BASE: u64 = 4 << 30;
/// The module's own HKID, the first of the private ones.
pub const GLOBAL_HKID: u16 = 32;

/// Maximum number of charges that most steps note.
const STEP_CHARGES: usize = 128;

/// The handling of charges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    /// Charges are ignored while the TD is being built.
    Off,
    /// Charges take place at once, on the current CPU's clock.
    Now,
    /// Charges are noted and take place later.
    Later,
}

/// The current CPU and the clocks.
pub struct Time {
    pub taking: Taking,
    pub current: u32,
    /// The clock of each CPU, in picoseconds.
    pub clocks: Vec<u64>,
    noted: Vec<Charge>,
    pub machine: Machine,
}

impl Time {
    /// Notes a charge. Adjacent charges of plain time are merged.
    fn note(&mut self, charge: Charge) {
        let Charge::Spend(number, count) = charge else {
            self.noted.push(charge);
            return;
        };
        let ps = self.machine.count(number, count.into());
        match self.noted.last_mut() {
            Some(Charge::Pass(before)) => *before += ps,
            _ => self.noted.push(Charge::Pass(ps)),
        }
    }
}

/// The emulated module and the time.
pub struct Core {
    pub server: Server,
    time: Mutex<Time>,
}

impl Core {
    pub fn time(&self) -> MutexGuard<'_, Time> {
        self.time.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn charge(&self, charges: &[Charge]) {
        let time = &mut *self.time();
        match time.taking {
            Taking::Off => {}
            Taking::Later => charges.iter().for_each(|charge| time.note(*charge)),
            Taking::Now => {
                let clock = &mut time.clocks[time.current as usize];
                for charge in charges {
                    *clock = time.machine.pass(time.current, *clock, *charge);
                }
            }
        }
    }
}

/// The simulated server.
pub struct World {
    pub core: Arc<Core>,
    pool: FramePool<SimLedger, SimMemory>,
    places: Vec<CpuPlace>,
    counters: Vec<Counters>,
    /// SEAMCALLs that are in no CPU's counters.
    raw: AtomicU64,
    shutdown: Shutdown,
}

impl World {
    /// Creates a server with `cpus` CPUs and `bytes` of memory for TDs, a multiple of 1 GiB.
    pub fn new(cost: Cost, cpus: u32, bytes: u64) -> Result<Self> {
        let places = (0..cpus).map(|cpu| CpuPlace {
            cpu,
            package: package_of(cpu, cpus),
        });
        let places: Vec<_> = places.collect();
        let pamt = (bytes / 128).next_multiple_of(PAGE_1G);
        let config = Config {
            lp_to_package: places.iter().map(|place| place.package).collect(),
            cmrs: [(BASE, bytes + pamt)].into(),
            // Above everything else.
            seamrr: (1 << 44, 128 << 20),
            ..Config::default()
        };
        let server = Server::new(config);
        let tdmr = TdmrPlan {
            base: BASE,
            size: bytes,
        };
        let up = server.bring_up(tdmr, GLOBAL_HKID.into());
        up.map_err(|status| anyhow!("the emulated module does not come up: {status:?}"))?;

        let span = (BASE, BASE + bytes);
        let mut frames = Frames::new();
        let words = Box::leak(vec![0; words_for(span)].into_boxed_slice());
        let added = frames.add_zone(span, words).and_then(|()| frames.add(span));
        added.map_err(|error| anyhow!("{error}"))?;
        let time = Time {
            taking: Taking::Off,
            current: 0,
            clocks: vec![0; cpus as usize],
            noted: Vec::new(),
            machine: Machine::new(cost, cpus, BASE, bytes),
        };
        let core = Arc::new(Core {
            server,
            time: Mutex::new(time),
        });
        let ledger = SimLedger(Mutex::new(frames), Arc::clone(&core));
        Ok(Self {
            pool: FramePool::new(ledger, SimMemory(Arc::clone(&core))),
            core,
            places,
            counters: (0..cpus).map(|_| Counters::new()).collect(),
            raw: AtomicU64::new(0),
            shutdown: Shutdown::new(),
        })
    }

    /// Incurs charges.
    pub fn charge(&self, charges: &[Charge]) {
        self.core.charge(charges);
    }

    /// Sets the handling of charges.
    pub fn take(&self, taking: Taking) {
        self.core.time().taking = taking;
    }

    /// Makes a CPU the current one, with its charges noted for later.
    pub fn turn(&self, cpu: u32) {
        let mut time = self.core.time();
        time.current = cpu;
        time.taking = Taking::Later;
    }

    /// Returns the charges noted since the last call.
    pub fn noted(&self) -> Vec<Charge> {
        mem::replace(
            &mut self.core.time().noted,
            Vec::with_capacity(STEP_CHARGES),
        )
    }

    /// Returns the clock of a CPU, in picoseconds.
    pub fn clock(&self, cpu: u32) -> u64 {
        self.core.time().clocks[cpu as usize]
    }

    /// Returns the sums so far.
    pub fn sums(&self) -> Sums {
        self.core.time().machine.sums()
    }

    /// Returns the number of 4 KiB frames that are allocated.
    pub fn frames_out(&self) -> u64 {
        let taking = self.core.time().taking;
        self.take(Taking::Off);
        let out = self.pool.ledger().with(|frames| {
            let counts = frames.counts().iter().enumerate();
            counts.map(|(order, count)| count.used << order).sum()
        });
        self.take(taking);
        out
    }

    /// Returns the number of calls that the module refused, and of violations that it saw.
    pub fn refused(&self) -> u64 {
        let illegal: u64 = self.counters.iter().map(|c| c.total().illegal).sum();
        illegal + self.core.server.module().violations().total() + self.pool.refused()
    }

    /// Returns the number of SEAMCALLs of all CPUs.
    pub fn calls(&self) -> u64 {
        let typed: u64 = self.counters.iter().map(|c| c.total().calls).sum();
        typed + self.raw.load(Relaxed)
    }

    /// Makes a SEAMCALL on the current CPU, given its registers.
    pub fn raw_call(&self, regs: &mut Gprs) -> Result<(), Fault> {
        let call = SimCall {
            core: Arc::clone(&self.core),
            cpu: self.this_cpu(),
        };
        self.raw.fetch_add(1, Relaxed);
        call.seamcall(regs)
    }

    /// Returns a CPU's interface to the module.
    pub fn on(&self, cpu: u32) -> Tdh<'_, SimCall, Never> {
        let call = SimCall {
            core: Arc::clone(&self.core),
            cpu,
        };
        Tdh::new(call, Never, &self.counters[cpu as usize])
    }
}

/// SEAMCALL as a simulated CPU executes it.
pub struct SimCall {
    core: Arc<Core>,
    cpu: u32,
}

impl SeamCall for SimCall {
    fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault> {
        let (leaf, page) = (regs.rax, regs.rcx);
        let processor = self.core.server.processor(self.cpu);
        processor.ok_or(Fault::NotVmx)?.seamcall(regs)?;
        cost::of_call(leaf, page, |charges| self.core.charge(charges));
        Ok(())
    }

    // The simulation's module does not shut down.
    fn note_shutdown(&self) {}
}

/// The frame allocator behind its lock.
pub struct SimLedger(Mutex<Frames>, Arc<Core>);

impl Ledger for SimLedger {
    fn with<R>(&self, work: impl FnOnce(&mut Frames) -> R) -> R {
        self.1.charge(&[
            Charge::Touch(Line::Ledger),
            Charge::Spend(Number::Ledger, 1.0),
        ]);
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Physical memory. Its content does not matter here, only the time to clear it.
pub struct SimMemory(Arc<Core>);

impl Flush for SimMemory {
    fn flush(&self, _: Hpa, _: PageSize) {}
}

impl Clear for SimMemory {
    fn clear(&self, hpa: Hpa, size: PageSize) {
        let units = (size.bytes() / PAGE_4K) as u32;
        self.0.charge(&[Charge::Clear { units, at: hpa.0 }]);
    }
}

/// A clock for code that measures itself; the simulation measures from outside.
pub struct Unmeasured;

impl Clock for Unmeasured {
    fn ns(&self) -> u64 {
        0
    }
}

/// Makes every vCPU of a TD, one on each CPU, leave the guest.
pub struct KickAll<'a>(pub &'a World);

impl Kick for KickAll<'_> {
    fn kick(&self) -> Result<(), mm::private::NoAnswer> {
        let me = self.0.this_cpu();
        let places = &self.0.places;
        let package = places[me as usize].package;
        let near = places
            .iter()
            .filter(|place| place.package == package)
            .count();
        self.0.charge(&[
            Charge::Spend(Number::KickNear, near as f32),
            Charge::Spend(Number::KickFar, (places.len() - near) as f32),
        ]);
        Ok(())
    }
}

impl Platform for World {
    type Call = SimCall;
    type Wait = Never;
    type Pool = FramePool<SimLedger, SimMemory>;

    fn tdh(&self) -> Tdh<'_, SimCall, Never> {
        self.on(self.this_cpu())
    }

    fn counters(&self, cpu: u32) -> Option<&Counters> {
        self.counters.get(cpu as usize)
    }

    // Nothing shuts the simulated module down.
    fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    fn pool(&self) -> &Self::Pool {
        &self.pool
    }

    fn cpus(&self) -> &[CpuPlace] {
        &self.places
    }

    fn this_cpu(&self) -> u32 {
        self.core.time().current
    }

    /// Each CPU begins when the IPI has arrived and its clock permits; the caller continues after the last.
    fn on_each(&self, cpus: &[u32], work: &(dyn Fn(u32) + Sync)) -> Result<(), NoAnswer> {
        let me = self.this_cpu();
        let start = self.clock(me);
        let mut end = start;
        for (sent, cpu) in (1..).zip(cpus) {
            {
                let mut time = self.core.time();
                let machine = &mut time.machine;
                let way = if *cpu == me {
                    0
                } else {
                    machine.count(Number::IpiSend, 1.0);
                    machine.count(Number::Ipi, 1.0)
                        + machine.cost().ps(Number::IpiSend, f64::from(sent))
                };
                time.current = *cpu;
                let clock = &mut time.clocks[*cpu as usize];
                *clock = (start + way).max(*clock);
            }
            work(*cpu);
            end = end.max(self.clock(*cpu));
        }
        let mut time = self.core.time();
        time.current = me;
        time.clocks[me as usize] = end;
        Ok(())
    }

    fn relax(&self) {
        self.charge(&[Charge::Spend(Number::Poll, 1.0)]);
    }

    fn write_back_caches(&self) {
        self.charge(&[Charge::Spend(Number::CacheWriteBack, 1.0)]);
    }

    fn read(&self, from: Hpa, into: &mut [u8]) {
        self.core.server.machine().memory().read(from.0, into);
    }

    fn write(&self, to: Hpa, bytes: &[u8]) {
        self.core.server.machine().memory().write(to.0, bytes);
    }

    fn now_us(&self) -> u64 {
        self.clock(self.this_cpu()) / 1_000_000
    }
}
