//! All vCPUs at once: they accept the TD's memory together, and all but the first wait for the kernel then.
#![expect(unsafe_code, reason = "memory and its ranges are shared between vCPUs")]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use core::cell::UnsafeCell;

use td_base::accept;

use crate::places::{self, Ranges};
use crate::{console, mailbox};
use td_base::kernel::WAITING_STACK_BYTES;

/// Where the stacks are that vCPUs have while they accept memory; 0 until there are some.
pub static STACKS: AtomicU64 = AtomicU64::new(0);
/// vCPUs that wait for the kernel for the first time.
pub static WAITING: AtomicU32 = AtomicU32::new(0);
/// Where the stacks of waiting vCPUs begin, which stay.
pub static WAITING_STACKS: AtomicU64 = AtomicU64::new(0);

/// The next block to be accepted, and how many vCPUs found none any more.
static NEXT: AtomicU64 = AtomicU64::new(0);
static FINISHED: AtomicU32 = AtomicU32::new(0);

/// What the first vCPU tells the others.
#[derive(Debug)]
struct Orders {
    ranges: Ranges,
    vcpus: u32,
    /// Blocks of 2 MiB that are accepted already.
    done: core::ops::Range<u64>,
    /// Ticks of the time-stamp counter between two looks into the mailbox; 0 to look all the time.
    patience: u64,
}

struct Told(UnsafeCell<Option<Orders>>);
// SAFETY: it is written once, by the first vCPU, before the others are let go, and only read then.
unsafe impl Sync for Told {}

static ORDERS: Told = Told(UnsafeCell::new(None));

/// The frequency of the crystal by which CPUID tells that of the time-stamp counter.
const CRYSTAL_HZ: u64 = 25_000_000;
/// Looks into the mailbox a second: the kernel waits for one of them with each vCPU that it starts, and nothing else does.
const LOOKS: u64 = 50;

/// Accepts all of the TD's memory on all vCPUs; those that are not the first wait for the kernel then, with stacks from
/// `waiting` on.
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
    // SAFETY: no other vCPU looks at it before `STACKS` is set.
    unsafe { *ORDERS.0.get() = Some(orders) };
    STACKS.store(stacks.start, Ordering::Release);
    work(ranges, &stacks, vcpus);
    while WAITING.load(Ordering::Acquire) + 1 < vcpus {
        core::hint::spin_loop();
    }
}

/// What vCPU `index` does until it waits: the end of the stack that it has then, and its patience.
pub extern "sysv64" fn join(index: u32) -> Rest {
    let orders = orders(index);
    work(&orders.ranges, &orders.done, orders.vcpus);
    rest(index, orders)
}

/// What vCPU `index` does when it comes back from an operating system: it takes nothing along that it could stumble over.
pub extern "sysv64" fn come_back(index: u32) -> Rest {
    let orders = orders(index);
    mailbox::end_interrupts();
    rest(index, orders)
}

fn orders(index: u32) -> &'static Orders {
    // SAFETY: the first vCPU has set it before there were stacks.
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

/// How a vCPU waits: in RAX and RDX.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Rest {
    stack: u64,
    patience: u64,
}

/// Accepts block after block until there is none, and returns when no vCPU has one any more.
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
