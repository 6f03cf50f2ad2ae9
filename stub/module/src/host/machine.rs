//! The host machine: sparse memory, simulated processors, and their exceptional conditions.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use std::boxed::Box;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use seam::abi::{PAGE_4K, ReportMac};

use super::breakpoint::{Breakpoint, Held};
use super::conditions::{Conditions, Current, take_one};
use super::config::Config;
use super::guest::{Exit, Guest};
use super::memory::Memory;
use crate::guest::Impossible;
use crate::vcpu::Vcpu;
use crate::{Machine, PageWords, PconfigError, Platform, Point, splitmix};

/// Ticks that RDTSC adds at each reading, so that time always advances.
const TICKS_PER_READING: u64 = 64;

#[derive(Default)]
struct Processor {
    conditions: Current,
    breakpoint: Breakpoint,
    guest: Mutex<Option<Box<dyn Guest>>>,
    xmm: Mutex<[u128; 16]>,
    task_priority: AtomicU64,
    /// Instructions that the guest retired since its last entry.
    retired: AtomicU64,
    /// The values written to the ICR, in order.
    icr: Mutex<Vec<u64>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A [`Machine`] on the developer's computer.
pub struct HostMachine {
    config: Config,
    memory: Memory,
    processors: Vec<Processor>,
    random: AtomicU64,
    tsc: AtomicU64,
    guarded: Option<Mutex<BTreeSet<u64>>>,
    impossible: Mutex<Vec<Impossible>>,
}

impl HostMachine {
    /// Creates a machine whose memory reads as zero everywhere.
    pub fn new(config: Config) -> Self {
        Self {
            memory: Memory::new(),
            processors: config
                .lp_to_package
                .iter()
                .map(|_| Processor::default())
                .collect(),
            random: AtomicU64::new(config.rng_seed),
            tsc: AtomicU64::new(0),
            guarded: config.books_guards.then(Mutex::default),
            impossible: Mutex::default(),
            config,
        }
    }

    /// Returns the machine's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns physical memory, regardless of ownership, as a debugger sees it.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Returns the 4 KiB pages that the module told the machine to guard from the host. It is empty unless the
    /// configuration records them.
    pub fn guarded(&self) -> BTreeSet<u64> {
        let book = self.guarded.as_ref();
        book.map(|pages| locked(pages).clone()).unwrap_or_default()
    }

    /// Returns the VM exits that the module reported because no CPU produces them.
    pub fn impossible_exits(&self) -> Vec<Impossible> {
        locked(&self.impossible).clone()
    }

    /// Sets the conditions of `lp`. They last until they are set again.
    pub fn set_conditions(&self, lp: u32, conditions: Conditions) {
        if let Some(processor) = self.processors.get(lp as usize) {
            processor.conditions.set(conditions);
        }
    }

    /// Holds a SEAMCALL on `lp` when it reaches `point` for the `nth` time (1 is the first).
    ///
    /// # Errors
    /// `None` if there is no such logical processor.
    pub fn hold_at(&self, lp: u32, point: Point, nth: u32) -> Option<Held> {
        let processor = self.processors.get(lp as usize)?;
        Some(processor.breakpoint.arm(point, nth))
    }

    /// Cancels [`Self::hold_at`]. A waiter is told that the call ended without reaching the point.
    pub fn release(&self, lp: u32) {
        if let Some(processor) = self.processors.get(lp as usize) {
            processor.breakpoint.disarm();
        }
    }

    /// Sets the guest that runs when a vCPU is entered on `lp`, and returns the former one. Without a guest, every
    /// entry ends at once with an external interrupt.
    pub fn set_guest(&self, lp: u32, guest: Option<Box<dyn Guest>>) -> Option<Box<dyn Guest>> {
        let processor = self.processors.get(lp as usize)?;
        core::mem::replace(&mut *locked(&processor.guest), guest)
    }

    /// Returns the XMM registers of the host on `lp`; zeros if there is no such logical processor.
    pub fn xmm(&self, lp: u32) -> [u128; 16] {
        self.processors
            .get(lp as usize)
            .map_or([0; 16], |processor| *locked(&processor.xmm))
    }

    /// Sets the XMM registers of the host on `lp`.
    pub fn set_xmm(&self, lp: u32, xmm: [u128; 16]) {
        if let Some(processor) = self.processors.get(lp as usize) {
            *locked(&processor.xmm) = xmm;
        }
    }

    /// Returns the task priority (0 to 15) of the physical APIC of `lp`.
    pub fn task_priority(&self, lp: u32) -> u64 {
        self.processors.get(lp as usize).map_or(0, |processor| {
            processor.task_priority.load(Ordering::Relaxed)
        })
    }

    /// Sets the number of instructions that the guest on `lp` retired since its last entry. Each entry sets it to
    /// [`Self::USUALLY_RETIRED`].
    pub fn set_retired(&self, lp: u32, instructions: u64) {
        if let Some(processor) = self.processors.get(lp as usize) {
            processor.retired.store(instructions, Ordering::Relaxed);
        }
    }

    /// Instructions that a guest retires between an entry and an exit, unless it says otherwise.
    pub const USUALLY_RETIRED: u64 = 1000;

    /// Returns the values that the module wrote to the x2APIC's ICR on `lp` since the last call of this.
    pub fn take_icr(&self, lp: u32) -> Vec<u64> {
        let processor = self.processors.get(lp as usize);
        processor.map_or_else(Vec::new, |processor| {
            core::mem::take(&mut *locked(&processor.icr))
        })
    }

    /// Advances the time-stamp counter by `ticks`.
    pub fn advance_tsc(&self, ticks: u64) {
        self.tsc.fetch_add(ticks, Ordering::Relaxed);
    }

    fn ask<T>(&self, lp: u32, question: impl FnOnce(&mut Conditions) -> Option<T>) -> Option<T> {
        self.processors.get(lp as usize)?.conditions.ask(question)
    }

    /// Returns the next number of the generator behind RDRAND and RDSEED.
    fn random(&self) -> u64 {
        let state = self.random.fetch_add(splitmix::STEP, Ordering::Relaxed);
        splitmix::mix(state.wrapping_add(splitmix::STEP))
    }
}

impl Machine for HostMachine {
    fn platform(&self) -> Platform<'_> {
        let config = &self.config;
        Platform {
            lp_to_package: &config.lp_to_package,
            cmrs: &config.cmrs,
            max_pa: config.max_pa,
            keyid_bits: config.keyid_bits,
            num_mktme_keyids: config.num_mktme_keyids,
            num_tdx_keyids: config.num_tdx_keyids,
            seamrr: config.seamrr,
            wbinvd_sub_blocks: config.wbinvd_sub_blocks,
        }
    }

    fn page(&self, pa: u64) -> &PageWords {
        self.memory.page(pa)
    }

    fn word(&self, pa: u64) -> u64 {
        self.memory.word(pa)
    }

    fn repeated(&self, pa: u64) -> Option<u64> {
        self.memory.repeated(pa)
    }

    fn fill_page(&self, pa: u64, word: u64) {
        self.memory.fill(pa, word);
    }

    fn copy_page(&self, from: u64, to: u64) {
        self.memory.copy(from, to);
    }

    // Nothing to enforce: every access of the host's software asks the module, see `Processor::load`.
    fn guard(&self, _lp: u32, pages: Range<u64>, private: bool) {
        if let Some(book) = &self.guarded {
            let mut book = locked(book);
            for page in pages.step_by(PAGE_4K as usize) {
                if private {
                    book.insert(page);
                } else {
                    book.remove(&page);
                }
            }
        }
    }

    fn cpuid(&self, lp: u32, leaf: u32, sub_leaf: u32) -> [u32; 4] {
        self.config.cpuid(lp, leaf, sub_leaf)
    }

    fn rdmsr(&self, lp: u32, msr: u32) -> u64 {
        self.ask(lp, |conditions| conditions.msrs.get(&msr).copied())
            .unwrap_or_else(|| self.config.rdmsr(lp, msr))
    }

    fn rdtsc(&self, lp: u32) -> u64 {
        self.reached(lp, Point::Rdtsc);
        self.tsc.fetch_add(TICKS_PER_READING, Ordering::Relaxed)
    }

    fn scales_tsc(&self) -> bool {
        self.config.scales_tsc
    }

    fn rdrand(&self, lp: u32) -> Option<u64> {
        let failed = self.ask(lp, |c| Some(take_one(&mut c.rdrand_failures)));
        (failed != Some(true)).then(|| self.random())
    }

    fn rdseed(&self, lp: u32) -> Option<u64> {
        let failed = self.ask(lp, |c| Some(take_one(&mut c.rdseed_failures)));
        (failed != Some(true)).then(|| self.random())
    }

    fn interrupt_pending(&self, lp: u32) -> bool {
        self.reached(lp, Point::IntrCheck);
        self.ask(lp, |c| Some(c.interrupt_pending())) == Some(true)
    }

    fn pconfig(&self, lp: u32, _hkid: u32) -> Result<(), PconfigError> {
        self.reached(lp, Point::Pconfig);
        match self.ask(lp, Conditions::pconfig_error) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn cache_write_back(&self, lp: u32, _sub_block: u32) {
        self.reached(lp, Point::Wbnoinvdp);
    }

    fn reached(&self, lp: u32, point: Point) {
        if let Some(processor) = self.processors.get(lp as usize) {
            processor.breakpoint.reached(point);
        }
    }

    fn run_vcpu(&self, lp: u32, vcpu: &Vcpu<'_>) {
        self.reached(lp, Point::Guest);
        let Some(processor) = self.processors.get(lp as usize) else {
            return Exit::EXTERNAL_INTERRUPT.leave(self, vcpu);
        };
        processor
            .retired
            .store(Self::USUALLY_RETIRED, Ordering::Relaxed);
        match locked(&processor.guest).as_mut() {
            Some(guest) => guest.run(self, lp, vcpu),
            None => Exit::EXTERNAL_INTERRUPT.leave(self, vcpu),
        }
    }

    fn instructions_retired(&self, lp: u32) -> Option<u64> {
        let processor = self.processors.get(lp as usize)?;
        Some(processor.retired.load(Ordering::Relaxed))
    }

    fn write_icr(&self, lp: u32, value: u64) {
        if let Some(processor) = self.processors.get(lp as usize) {
            locked(&processor.icr).push(value);
        }
    }

    fn impossible(&self, _lp: u32, exit: &Impossible) {
        locked(&self.impossible).push(*exit);
    }

    fn host_xmm(&self, lp: u32, index: usize) -> u128 {
        self.xmm(lp)[index % 16]
    }

    fn set_host_xmm(&self, lp: u32, index: usize, value: u128) {
        if let Some(processor) = self.processors.get(lp as usize) {
            locked(&processor.xmm)[index % 16] = value;
        }
    }

    fn task_priority(&self, lp: u32) -> u64 {
        Self::task_priority(self, lp)
    }

    // Only its script interrupts a scripted guest.
    fn send_self_ipi(&self, _lp: u32, _vector: u8) {}

    fn set_task_priority(&self, lp: u32, priority: u64) {
        if let Some(processor) = self.processors.get(lp as usize) {
            processor.task_priority.store(priority, Ordering::Relaxed);
        }
    }

    fn report_key(&self, lp: u32) -> Result<[u8; 32], u64> {
        match self.ask(lp, |c| Some(c.seamreport_status)) {
            None | Some(0) => Ok(self.config.report_key()),
            Some(status) => Err(status),
        }
    }

    fn verify_report(&self, lp: u32, report: &ReportMac) -> Result<(), u64> {
        match self.ask(lp, |c| c.verifyreport_status) {
            None => crate::check_report(report, &self.config.report_key()),
            Some(0) => Ok(()),
            Some(status) => Err(status),
        }
    }
}
