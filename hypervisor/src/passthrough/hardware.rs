//! This machine, as passthrough needs it.
#![expect(
    unsafe_code,
    reason = "the memory of PCI functions is device memory, accessed with loads and stores of its size"
)]

use alloc::{format, string::String, vec::Vec};
use core::sync::atomic::{
    AtomicBool,
    Ordering::{Relaxed, SeqCst},
};

use io::{Clock, Inventory};
use seam::abi::x86::msr::x2apic::IRR;
use spin::Once;
use sync::IrqLock;
use vcpu::Executor;
use vtd::Iommu;

use super::machine::Machine;
use crate::{
    cpu::{
        self,
        line::{self, Line, Lines},
        timer,
    },
    iommu::{self, Hardware},
    memory, msr,
    pci::{self, Configuration, Pci},
    time, watchdog,
};

/// This machine. It exists once its PCI functions are known.
#[derive(Clone, Copy)]
pub struct Here(&'static Pci);

/// The memory of functions that is mapped, with its address. It stays: a function has the same memory for the machine's
/// life.
static WINDOWS: IrqLock<Vec<((u64, u64), u64)>> = IrqLock::new(Vec::new());

static EXECUTOR: Once<&'static (dyn Executor + Sync)> = Once::new();

/// Sets what runs vCPUs.
pub fn run_by(executor: &'static (dyn Executor + Sync)) {
    EXECUTOR.call_once(|| executor);
}

/// The longest time in microseconds that a CPU has to serve an interrupt that is pending.
const DRAIN_US: u64 = 1_000_000;

impl Here {
    /// Returns this machine, if its PCI functions are known and CPUs can be interrupted.
    pub fn get() -> Option<Self> {
        cpu::interrupts().then(pci::get)?.map(Self)
    }
}

impl core::fmt::Debug for Here {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Here")
    }
}

impl Clock for Here {
    fn us(&self) -> u64 {
        time::us()
    }

    fn relax(&self) {
        // The waits that this is part of are bounded.
        if cpu::number() == 0 {
            watchdog::feed();
        }
        core::hint::spin_loop();
    }
}

impl Machine for Here {
    type Space = Configuration;
    type Platform = Hardware;

    fn space(&self) -> &Configuration {
        &self.0.space
    }

    fn inventory(&self) -> &IrqLock<Inventory> {
        &self.0.inventory
    }

    fn iommu(&self) -> Result<&Iommu<Hardware>, &'static str> {
        iommu::get()
    }

    fn window(&self, pa: u64, bytes: u64) -> Result<u64, String> {
        let mut windows = WINDOWS.lock();
        if let Some((_, at)) = windows.iter().find(|(place, _)| *place == (pa, bytes)) {
            return Ok(*at);
        }
        let at = memory::device(pa, bytes).map_err(|error| format!("{error}"))?;
        windows.push(((pa, bytes), at));
        Ok(at)
    }

    fn load(&self, at: u64, size: u8) -> u64 {
        // SAFETY: `window` mapped the memory, uncached, and the access is aligned to its size and lies within. The
        // function belongs to a TD, which alone is affected by what the access does.
        unsafe {
            match size {
                1 => (at as *const u8).read_volatile().into(),
                2 => (at as *const u16).read_volatile().into(),
                4 => (at as *const u32).read_volatile().into(),
                _ => (at as *const u64).read_volatile(),
            }
        }
    }

    fn store(&self, at: u64, size: u8, value: u64) {
        // SAFETY: as above. The function's domain and its interrupt entries confine what it does then.
        unsafe {
            match size {
                1 => (at as *mut u8).write_volatile(value as u8),
                2 => (at as *mut u16).write_volatile(value as u16),
                4 => (at as *mut u32).write_volatile(value as u32),
                _ => (at as *mut u64).write_volatile(value),
            }
        }
    }

    fn lines(&self) -> &Lines {
        line::get_or(|| {
            let is_wide = iommu::get().is_ok_and(Iommu::has_extended_destinations);
            let cpus = cpu::all().iter();
            Lines::new(cpus.map(|cpu| {
                let is_in_reach = is_wide || cpu.apic_id < 0xFF;
                (cpu.is_up() && is_in_reach).then_some(cpu.apic_id)
            }))
        })
    }

    fn rest(&self, us: u64) {
        timer::rest_until(time::Deadline::after_us(us).tsc());
    }

    fn drain(&self, lines: &[Line]) -> Result<(), String> {
        let mut cpus: Vec<_> = lines.iter().map(|line| line.cpu).collect();
        cpus.sort_unstable();
        cpus.dedup();
        let start = self.us();
        loop {
            // A call is served between two handlers, so that none runs on the CPU meanwhile.
            let is_pending = AtomicBool::new(false);
            let look = |cpu| {
                let own = lines.iter().filter(|line| line.cpu == cpu);
                if own.map(|line| line.vector).any(is_requested) {
                    is_pending.store(true, SeqCst);
                }
            };
            cpu::on_each(&cpus, &look).map_err(|error| format!("{error}"))?;
            if !is_pending.load(Relaxed) {
                return Ok(());
            }
            if self.us().saturating_sub(start) > DRAIN_US {
                return Err("a CPU does not serve the interrupts of a PCI function".into());
            }
            self.relax();
        }
    }

    fn executor(&self) -> Option<&dyn Executor> {
        EXECUTOR.get().map(|executor| *executor as &dyn Executor)
    }

    fn wake(&self) {
        super::has_work();
    }
}

/// Returns true if an interrupt with this vector waits for the calling CPU (IRR).
fn is_requested(vector: u8) -> bool {
    let register = IRR + u32::from(vector / 32);
    msr::read(register).is_some_and(|bits| bits >> (vector % 32) & 1 != 0)
}
