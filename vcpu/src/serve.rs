//! Work of devices with the guest's memory: virtio queues.
//!
//! A CPU does it while no vCPU runs on it, in bounded parts: between two entries of a vCPU of the TD ([`serve_devices`]), or
//! because it has nothing else to do ([`help_devices`]). It never waits for a CPU that converts memory, because that one may
//! wait for it. News for devices of other TDs is told after each part, with no lock held.

use alloc::sync::Arc;
use core::cell::{Cell, RefCell};

use arrayvec::ArrayVec;
use devices::{Memory, Now, Other, Page, Unshared};
use mm::shared::{Frames, Reader, SharedMap};
use seam::abi::PAGE_4K;
use seam::address::Gpa;

use crate::interrupts::deliver_messages;
use crate::peer::{Peer, Reached};
use crate::slice::PhysicalCpu;
use crate::wake::Waker;

/// Number of tries while memory is being converted, before the work is left to the next vCPU that exits.
const TRIES: u32 = 64;
/// Number of pages that are remembered.
const REMEMBERED: usize = 16;
/// Largest number of devices of other TDs that a part of the work has news for.
const MOST_RUNG: usize = virtio::net::PORTS;

/// A TD's shared memory, as a device accesses it for a part of its work. No page is unmapped meanwhile, so the pages
/// that were found last are remembered.
pub struct TdMemory<'a, 'm, F> {
    reader: &'a Reader<'m, F>,
    shared_bit: u64,
    found: [Cell<Found<'m>>; REMEMBERED],
    /// Devices of other TDs for which there is news.
    rung: RefCell<ArrayVec<Arc<Peer>, MOST_RUNG>>,
    /// The TD that was reached last.
    reached: Cell<Option<Reached>>,
}

/// A page and its number.
#[derive(Clone, Copy)]
struct Found<'a> {
    number: u64,
    page: Option<&'a Page>,
}

impl<'a, 'm, F: Frames> TdMemory<'a, 'm, F> {
    /// Creates the memory of a TD whose shared map `reader` reads.
    pub fn new(map: &SharedMap, reader: &'a Reader<'m, F>) -> Self {
        let none = Found {
            number: 0,
            page: None,
        };
        Self {
            reader,
            shared_bit: map.shared_bit(),
            found: [none; REMEMBERED].map(Cell::new),
            rung: RefCell::default(),
            reached: Cell::default(),
        }
    }

    /// Returns the devices of other TDs for which the work left news.
    fn into_rung(self) -> ArrayVec<Arc<Peer>, MOST_RUNG> {
        self.rung.into_inner()
    }

    #[inline(never)]
    fn look_up(&self, number: u64) -> Option<&'m Page> {
        let page = self.reader.page(Gpa(number * PAGE_4K))?;
        let page = Some(page);
        self.found[number as usize % REMEMBERED].set(Found { number, page });
        page
    }
}

impl<F: Frames> Memory for TdMemory<'_, '_, F> {
    fn page(&self, gpa: u64) -> Result<&Page, Unshared> {
        let number = (gpa & !self.shared_bit) / PAGE_4K;
        let found = self.found[number as usize % REMEMBERED].get();
        match found.page {
            Some(page) if found.number == number => Ok(page),
            _ => self.look_up(number).ok_or(Unshared(gpa)),
        }
    }

    fn with_other(&self, other: &Other, work: &mut dyn FnMut(&dyn Memory)) -> bool {
        let last = self.reached.take();
        let reached = last.filter(|reached| reached.is(other));
        let Some(reached) = reached.or_else(|| Reached::new(other)) else {
            return false;
        };
        let is_done = reached.with_memory(self.reader.frames(), work);
        self.reached.set(Some(reached));
        is_done
    }

    fn ring(&self, other: &Other) {
        let Ok(peer) = other.clone().downcast::<Peer>() else {
            return;
        };
        let mut rung = self.rung.borrow_mut();
        if !rung.iter().any(|known| Arc::ptr_eq(known, &peer)) {
            // A part of the work has news for no more devices than a switch has ports.
            let fits = rung.try_push(peer);
            debug_assert!(fits.is_ok(), "news for too many devices");
        }
    }
}

/// Lets the devices of a TD do their work, part by part, until there is no more or `goes_on`, which is called after each
/// part, returns `false`. Returns `false` if some is left, also because memory is being converted or another CPU has the
/// device: the TD's next exit goes on with it.
pub fn serve_devices<C: PhysicalCpu>(
    waker: Waker<'_>,
    cpu: &C,
    mut goes_on: impl FnMut() -> bool,
) -> bool {
    let vm = waker.vm();
    let mut tries = 0;
    loop {
        match vm.conversions.try_read() {
            Some(_same) if serve_part(waker, cpu) => {}
            _ => tries += 1,
        }
        if !vm.devices().pci().has_work() {
            return true;
        }
        if tries == TRIES || !goes_on() {
            return false;
        }
    }
}

/// Lets the devices of a TD do their work on a CPU that runs none of its vCPUs, which leave the work to it meanwhile. Goes on
/// until there is no more, a CPU wants to convert memory, or `goes_on`, which is called before each part, returns `false`. A
/// vCPU is summoned for work that is left. Does nothing if another CPU helps.
pub fn help_devices<C: PhysicalCpu>(waker: Waker<'_>, cpu: &C, mut goes_on: impl FnMut() -> bool) {
    let vm = waker.vm();
    let bus = vm.devices().pci();
    if !bus.begin_help() {
        return;
    }
    let mut tries = 0;
    while bus.has_any_work() && tries < TRIES && !vm.conversions.is_wanted() && goes_on() {
        match vm.conversions.try_read() {
            Some(_same) if serve_part(waker, cpu) => tries = 0,
            _ => tries += 1,
        }
    }
    if bus.end_help() {
        waker.summon();
    }
}

/// Lets one device do a part of its work. Returns `false` if another CPU has that device.
fn serve_part<C: PhysicalCpu>(waker: Waker<'_>, cpu: &C) -> bool {
    let vm = waker.vm();
    let reader = vm.shared().reader(cpu.shared_frames());
    let memory = TdMemory::new(vm.shared(), &reader);
    if let Some(quotes) = vm.quotes() {
        quotes.serve(&memory, now(cpu));
    }
    let served = vm.devices().pci().serve(&memory, now(cpu));
    let rung = memory.into_rung();
    drop(reader);
    rung.iter().for_each(|peer| peer.tell(waker.executor()));
    let Some(served) = served else {
        return false;
    };
    if served.has_messages {
        deliver_messages(waker);
    }
    if served.has_output && vm.console().is_watched() {
        cpu.wake_console();
    }
    true
}

/// Returns the current time, as devices need it.
pub(crate) fn now(cpu: &impl PhysicalCpu) -> Now {
    Now {
        monotonic_us: cpu.monotonic_us(),
        unix_seconds: cpu.unix_seconds(),
    }
}
