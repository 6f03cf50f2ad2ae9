//! TD-wide state: memory, devices, console, and the part of each vCPU's state that other CPUs reach.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use devices::{Devices, fw_cfg::Facts, pci::Function};
use mm::shared::SharedMap;
use spin::Once;
use sync::{Mutex, atomic::AtomicBool};

use crate::clock::Clock;
use crate::console::Console;
use crate::conversions::Conversions;
use crate::end::End;
use crate::quotes::Quotes;
use crate::state::VcpuState;
use crate::unanswered::Report;
use crate::windows::Windows;

/// TD-wide state, outside the module.
#[derive(Debug)]
pub struct Vm {
    vcpus: Box<[VcpuState]>,
    /// Number of bits of an x2APIC id.
    id_bits: u32,
    memory: Box<[Memory]>,
    shared: SharedMap,
    pub(crate) conversions: Conversions,
    devices: Devices,
    console: Arc<Console>,
    /// The quotes that the guest asks for, if the host can have a quoting service.
    quotes: Option<Quotes>,
    clock: Clock,
    end: Once<End>,
    /// Set when a vCPU that waited in the run queue was woken.
    woken: AtomicBool,
}

/// A range of a TD's memory. The operator may lower its end.
#[derive(Debug)]
struct Memory {
    start: u64,
    end: AtomicU64,
}

impl Vm {
    /// Creates the shared state of a TD with one vCPU for each x2APIC id. `memory` is ascending and aligned to 4 KiB.
    /// `console` is new, or the console of the TD's previous life.
    #[must_use]
    pub fn new(
        apic_ids: impl IntoIterator<Item = u32>,
        memory: Vec<Range<u64>>,
        shared: SharedMap,
        clock: Clock,
        console: Arc<Console>,
    ) -> Self {
        console.begin();
        let vcpus: Box<[_]> = apic_ids.into_iter().map(VcpuState::new).collect();
        let last = vcpus.iter().map(VcpuState::apic_id).fold(0, u32::max);
        Self {
            vcpus,
            id_bits: u32::BITS - last.leading_zeros(),
            devices: Devices::new(memory.iter().cloned(), Vec::new()),
            memory: memory.into_iter().map(Memory::from).collect(),
            shared,
            conversions: Conversions::default(),
            console,
            quotes: None,
            clock,
            end: Once::new(),
            woken: AtomicBool::new(false),
        }
    }

    /// Adds functions to the TD's PCI bus, in this order. Called once, before everything else is added and a vCPU runs.
    ///
    /// # Panics
    /// More than [`devices::pci::MOST`] functions.
    #[must_use]
    pub fn with_functions(mut self, functions: Vec<Arc<Mutex<dyn Function>>>) -> Self {
        self.devices = Devices::new(self.memory(), functions);
        self.conversions = Conversions::new(Windows::of(self.devices.pci()));
        self
    }

    /// Lets the guest ask for quotes.
    #[must_use]
    pub fn with_quotes(mut self, quotes: Quotes) -> Self {
        self.quotes = Some(quotes);
        self
    }

    /// Adds the device that tells UEFI firmware what machine it runs on.
    #[must_use]
    pub fn with_fw_cfg(mut self, facts: &Facts) -> Self {
        self.devices = self.devices.with_fw_cfg(facts);
        self
    }

    /// Returns the vcpus of all vCPUs, by vCPU index.
    #[must_use]
    pub fn vcpus(&self) -> &[VcpuState] {
        &self.vcpus
    }

    /// Returns the number of bits in the x2APIC ids of the vCPUs.
    pub(crate) const fn id_bits(&self) -> u32 {
        self.id_bits
    }

    /// Returns the TD's console.
    #[must_use]
    pub const fn console(&self) -> &Arc<Console> {
        &self.console
    }

    /// Returns the quotes that the guest asks for.
    #[must_use]
    pub const fn quotes(&self) -> Option<&Quotes> {
        self.quotes.as_ref()
    }

    /// Returns the TD's devices.
    #[must_use]
    pub const fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Returns the accesses that nothing answered.
    #[must_use]
    pub fn unanswered(&self) -> Report {
        Report::of(self.vcpus.iter().map(VcpuState::unanswered))
    }

    /// Returns the TD's shared memory.
    #[must_use]
    pub const fn shared(&self) -> &SharedMap {
        &self.shared
    }

    /// Returns the TD's time-stamp counter.
    #[must_use]
    pub const fn clock(&self) -> Clock {
        self.clock
    }

    /// Returns the reason why the TD ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<&End> {
        self.end.get()
    }

    /// Ends the TD and writes the reason to its console. The first reason is final.
    pub fn end_with(&self, why: End) {
        self.end.call_once(|| {
            self.console.note(format_args!("{why}"));
            why
        });
    }

    /// Returns the TD's memory ranges in ascending order.
    pub fn memory(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let all = self.memory.iter().map(Memory::range);
        all.filter(|range| range.start < range.end)
    }

    /// Returns the memory range that contains `gpa`.
    #[must_use]
    pub fn memory_at(&self, gpa: u64) -> Option<Range<u64>> {
        self.memory().find(|range| range.contains(&gpa))
    }

    /// Takes away all memory from `end` on. Pages mapped there still have to be removed. Returns `false` while a vCPU
    /// may be mapping or converting that memory: the caller must retry, and must not remove any page before.
    #[must_use]
    pub fn end_memory_at(&self, end: u64) -> bool {
        for memory in &self.memory {
            memory.end.fetch_min(end.max(memory.start), SeqCst);
        }
        self.conversions.try_write().is_some()
    }

    /// Returns whether a vCPU waits for devices to pause, because it converts memory. Nobody helps the devices then.
    #[must_use]
    pub fn is_converting(&self) -> bool {
        self.conversions.is_wanted()
    }

    /// Notes that a vCPU has been woken in the run queue.
    pub(crate) fn note_woken(&self) {
        self.woken.store(true, SeqCst);
    }

    /// Takes the numbers of the vCPUs that waited in the run queue and were woken since the last call
    /// ([`crate::Executor::woken`]).
    pub fn take_woken(&self) -> impl Iterator<Item = u32> + '_ {
        let any = self.woken.swap(false, SeqCst);
        let all = (0..).zip(&self.vcpus).take_while(move |_| any);
        all.filter(|(_, state)| state.take_woken())
            .map(|(number, _)| number)
    }
}

impl Memory {
    fn range(&self) -> Range<u64> {
        self.start..self.end.load(SeqCst)
    }
}

impl From<Range<u64>> for Memory {
    fn from(range: Range<u64>) -> Self {
        Self {
            start: range.start,
            end: AtomicU64::new(range.end),
        }
    }
}
