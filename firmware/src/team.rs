//! The work of all vCPUs together: they accept the TD's memory; then all but the first wait for the kernel.
#![expect(unsafe_code, reason = "memory and its ranges are shared between vCPUs")]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use core::cell::UnsafeCell;

use td_base::accept;

use crate::places::{self, Ranges};
use crate::{console, mailbox};
use td_base::kernel::WAITING_STACK_BYTES;

/// The address of the stacks that vCPUs use while they accept memory; 0 before there are any.
pub static STACKS: AtomicU64 = AtomicU64::new(0);
/// Number of vCPUs that have started waiting for the kernel.
pub static WAITING: AtomicU32 = AtomicU32::new(0);
/// The address of the stacks of waiting vCPUs, which stay.
pub static WAITING_STACKS: AtomicU64 = AtomicU64::new(0);

/// The next block to be accepted, and the number of vCPUs that found no block left.
static NEXT: AtomicU64 = AtomicU64::new(0);
static FINISHED: AtomicU32 = AtomicU32::new(0);

/// The first vCPU's orders to the others.
#[derive(Debug)]
struct Orders {
    ranges: Ranges,
    vcpus: u32,
    /// Blocks of 2 MiB that are accepted already.
    done: core::ops::Range<u64>,
    /// Ticks of the time-stamp counter between two polls of the mailbox; 0 to poll continuously.
    patience: u64,
}

struct Told(UnsafeCell<Option<Orders>>);
// SAFETY: it is written once, by the first vCPU, before the others are released, and only read afterwards.
unsafe impl Sync for Told {}

static ORDERS: Told = Told(UnsafeCell::new(None));

/// The frequency of the crystal on which CPUID bases that of the time-stamp counter.
const CRYSTAL_HZ: u64 = 25_000_000;
/// Polls of the mailbox per second. The kernel waits for one poll for each vCPU that it starts; nothing else waits.
const LOOKS: u64 = 50;

/// Accepts all of the TD's memory on all vCPUs. All but the first then wait for the kernel, with stacks from `waiting`
/// on.
pub fn accept_all(ranges: &Ranges, vcpus: u32, waiting: u64) {
    let stacks = match places::stacks(ranges, vcpus) {
        Ok(stacks) => stacks,
        Err(why) => console::fatal(why),
    };
    accept_range(stacks.clone());
    mailbox::prepare_gates();
    WAITING_STACKS.store(waiting, Ordering::Relaxed);
    let frequency = core::arch::x86_64::__cpuid(0x15);
    let hz = match frequency.eax {
        0 => 0,
        unit => CRYSTAL_HZ * u64::from(frequency.ebx) / u64::from(unit),
    };
    let orders = Orders {
        ranges: ranges.clone(),
        vcpus,
        done: stacks.clone(),
        patience: hz / LOOKS,
    };
    // SAFETY: no other vCPU reads it before `STACKS` is set.
    unsafe { *ORDERS.0.get() = Some(orders) };
    STACKS.store(stacks.start, Ordering::Release);
    work(ranges, &stacks, vcpus);
    while WAITING.load(Ordering::Acquire) + 1 < vcpus {
        core::hint::spin_loop();
    }
}

/// Lets vCPU `index` accept memory with the others. Returns the state in which it then waits.
pub extern "sysv64" fn join(index: u32) -> Rest {
    let orders = orders(index);
    work(&orders.ranges, &orders.done, orders.vcpus);
    rest(index, orders)
}

/// Prepares vCPU `index` for waiting when it returns from an operating system, whose interrupts are ended.
pub extern "sysv64" fn come_back(index: u32) -> Rest {
    let orders = orders(index);
    mailbox::end_interrupts();
    rest(index, orders)
}

fn orders(index: u32) -> &'static Orders {
    // SAFETY: the first vCPU set it before there were stacks.
    let Some(orders) = (unsafe { &*ORDERS.0.get() }) else {
        console::fatal("a vCPU came too early");
    };
    if index >= orders.vcpus {
        console::fatal("there are more vCPUs than the module tells");
    }
    orders
}

fn rest(index: u32, orders: &Orders) -> Rest {
    let stacks = WAITING_STACKS.load(Ordering::Relaxed);
    Rest {
        stack: stacks + u64::from(index + 1) * WAITING_STACK_BYTES,
        patience: if orders.patience != 0 && mailbox::has_timer() {
            orders.patience
        } else {
            0
        },
    }
}

/// The state in which a vCPU waits, returned in RAX and RDX: the end of its stack, and the ticks between two polls.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Rest {
    stack: u64,
    patience: u64,
}

/// Accepts blocks until none is left. Returns when no vCPU has one any more.
fn work(ranges: &Ranges, done: &core::ops::Range<u64>, vcpus: u32) {
    while let Some(block) = places::block(ranges, NEXT.fetch_add(1, Ordering::Relaxed)) {
        if !done.contains(&block.start) {
            accept_range(block);
        }
    }
    FINISHED.fetch_add(1, Ordering::AcqRel);
    while FINISHED.load(Ordering::Acquire) < vcpus {
        core::hint::spin_loop();
    }
}

fn accept_range(range: core::ops::Range<u64>) {
    if accept::range(range).is_err() {
        console::fatal("memory that the host promised can't be accepted");
    }
}
