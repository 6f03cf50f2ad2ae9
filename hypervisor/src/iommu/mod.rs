//! The machine's VT-d units: switched on before any memory goes to the TDX module, the routes of the host's interrupts,
//! and the faults.

mod buses;
mod confine;
mod hardware;
mod reserved;

use alloc::{format, string::String, vec::Vec};
use core::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use spin::Once;
use vtd::{
    Error, Event, Iommu, Origin,
    books::{FLOOD, INTERVAL_US},
    dmar::Dmar,
    interrupt::{Handle, Route},
};

pub use confine::unconfined;
pub use hardware::Hardware;
pub use reserved::{keep, reserved};

use crate::time;
use buses::Bridges;

static IOMMU: Once<Iommu<Hardware>> = Once::new();

/// The reason why there is no unit that blocks anything, as the end of a sentence.
static WHY_NOT: Once<String> = Once::new();

/// The functions whose requests no unit remaps.
static UNCOVERED: Once<Vec<vtd::Function>> = Once::new();

/// Minimum time in microseconds between two looks at fault records: a function that makes faults without end does not
/// take more of a CPU.
const LOOK_US: u64 = 100_000;

/// True if a unit has signalled faults that were not read yet. Its interrupt is masked until they are.
static SIGNALLED: AtomicBool = AtomicBool::new(false);
/// True if units signal faults by interrupts.
static SIGNALS: AtomicBool = AtomicBool::new(false);
static LOOKED_US: AtomicU64 = AtomicU64::new(0);

/// Switches every unit on. From then on no function reaches any memory. Returns the problems.
///
/// A unit that does not answer is named, and its functions are as on a machine without units: they reach nothing as long
/// as their bus mastering is off.
pub fn start(dmar: Option<&Dmar>) -> Vec<String> {
    let Some(dmar) = dmar else {
        WHY_NOT.call_once(|| {
            "the firmware reports no VT-d unit (no DMAR): switch VT-d on in its setup".into()
        });
        return Vec::new();
    };
    let iommu = match Iommu::start(&Hardware, dmar, &Bridges) {
        Ok(iommu) => IOMMU.call_once(|| iommu),
        Err(error) => {
            let problem = format!("VT-d is off: {error}");
            WHY_NOT.call_once(|| format!("{error}"));
            return Vec::from([problem]);
        }
    };
    let mut problems = iommu.problems();
    let uncovered = buses::functions(|function| !iommu.covers(function));
    if problems.is_empty() && !uncovered.is_empty() {
        problems.push(format!(
            "no VT-d unit of the DMAR remaps {} PCI functions, the first of them {}",
            uncovered.len(),
            uncovered[0]
        ));
    }
    let units = iommu.units().len();
    let interrupts = if iommu.remaps_interrupts() {
        "remapped"
    } else {
        "not remapped"
    };
    log::info!("VT-d: {units} units, DMA is blocked, interrupts are {interrupts}");
    UNCOVERED.call_once(|| uncovered);
    problems
}

/// Returns the units.
///
/// # Errors
/// The reason why there are none, as the end of a sentence.
pub fn get() -> Result<&'static Iommu<Hardware>, &'static str> {
    let why = || WHY_NOT.get().map_or("it was not looked for", |why| why);
    IOMMU.get().ok_or_else(why)
}

/// Returns true if every function's DMA is blocked by a unit.
#[must_use]
pub fn blocks_all() -> bool {
    get().is_ok_and(Iommu::blocks_all) && uncovered().is_empty()
}

/// Returns the functions whose requests no unit remaps, as far as they were found.
#[must_use]
pub fn uncovered() -> &'static [vtd::Function] {
    UNCOVERED.get().map_or(&[], Vec::as_slice)
}

/// Makes the entry of an interrupt that `origin` alone can raise. Returns `None` if its interrupts are not remapped.
///
/// # Errors
/// The reason why there is no entry.
pub fn route(origin: Origin, route: &Route) -> Option<Result<Handle, Error>> {
    let iommu = get().ok()?;
    match iommu.route(origin, route) {
        Err(Error::NoRemapping(_)) => None,
        outcome => Some(outcome),
    }
}

/// Frees the entry of an interrupt.
pub fn unroute(handle: Handle) {
    let freed = get().map(|iommu| iommu.unroute(handle));
    if let Ok(Err(error)) = freed {
        log::error!("an interrupt's entry stays taken: {error}");
    }
}

/// Lets units signal faults to the CPU with this APIC id.
pub fn signal_faults(apic_id: u32, vector: u8) {
    let Ok(iommu) = get() else { return };
    let (low, high) = (apic_id & 0xFF, apic_id & !0xFF);
    let address = 0xFEE0_0000 | u64::from(low) << 12 | u64::from(high) << 32;
    SIGNALS.store(true, Relaxed);
    iommu.signal_faults(address, vector.into());
}

/// Serves the interrupt of faults: it is masked until [`serve`] has read them.
pub fn on_interrupt() {
    if let Ok(iommu) = get() {
        iommu.mask_faults();
        SIGNALLED.store(true, Release);
    }
}

/// Returns true if [`serve`] has something to do, now or soon.
pub fn are_waiting() -> bool {
    SIGNALLED.load(Relaxed)
}

/// Reads the fault records and tells what is new. The bootstrap CPU calls it in its loop. On a machine whose units can't
/// interrupt, it looks at most ten times a second.
pub fn serve() {
    let Ok(iommu) = get() else { return };
    let now = time::us();
    let is_due = now.saturating_sub(LOOKED_US.load(Relaxed)) >= LOOK_US;
    if !is_due || SIGNALS.load(Relaxed) && !SIGNALLED.swap(false, Acquire) {
        return;
    }
    LOOKED_US.store(now, Relaxed);
    iommu.serve(&mut |event| match event {
        Event::Fault(fault) => log::warn!(
            "VT-d blocked {} by {}: {}",
            fault.request,
            fault.function,
            fault.reason
        ),
        Event::Muted(function) => log::warn!(
            "{function} made more than {FLOOD} accesses in {} s that VT-d blocked; it goes on blocking them, and no \
             longer reports them",
            INTERVAL_US / 1_000_000
        ),
    });
    if SIGNALS.load(Relaxed) {
        iommu.unmask_faults();
    }
}
