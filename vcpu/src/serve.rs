//! Work of devices with the guest's memory: virtio queues.
//!
//! A CPU does it while no vCPU runs on it, in bounded parts. It never waits for a CPU that converts memory, because that
//! one may wait for it.

use core::cell::Cell;

use devices::{Memory, Now, Page, Unshared};
use mm::shared::{Frames, Reader, SharedMap};
use seam::abi::PAGE_4K;
use seam::address::Gpa;

use crate::interrupts::deliver_messages;
use crate::slice::PhysicalCpu;
use crate::wake::Waker;

/// Number of tries while memory is being converted, before the work is left to the next vCPU that exits.
const TRIES: u32 = 64;
/// Number of pages that are remembered.
const REMEMBERED: usize = 16;

/// A TD's shared memory, as a device accesses it for a part of its work. No page is unmapped meanwhile, so the pages
/// that were found last are remembered.
pub struct TdMemory<'a, 'm, F> {
    reader: &'a Reader<'m, F>,
    shared_bit: u64,
    found: [Cell<Found<'m>>; REMEMBERED],
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
        }
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
}

/// Lets the devices of a TD do their work, part by part, until there is no more or `goes_on`, which is called after each
/// part, returns `false`. Returns `false` if some is left, also because memory is being converted: the TD's next exit
/// goes on with it.
pub fn serve_devices<C: PhysicalCpu>(
    waker: Waker<'_>,
    cpu: &C,
    mut goes_on: impl FnMut() -> bool,
) -> bool {
    let vm = waker.vm();
    let mut tries = 0;
    loop {
        match vm.conversions.try_read() {
            Some(_same) => serve_part(waker, cpu),
            None => tries += 1,
        }
        if !vm.devices().pci().has_work() {
            return true;
        }
        if tries == TRIES || !goes_on() {
            return false;
        }
    }
}

/// Lets one device do a part of its work.
fn serve_part<C: PhysicalCpu>(waker: Waker<'_>, cpu: &C) {
    let vm = waker.vm();
    let reader = vm.shared().reader(cpu.shared_frames());
    let memory = TdMemory::new(vm.shared(), &reader);
    let served = vm.devices().pci().serve(&memory, now(cpu));
    if served.has_messages {
        deliver_messages(waker);
    }
    if served.has_output && vm.console().is_watched() {
        cpu.wake_console();
    }
}

/// Returns the current time, as devices need it.
pub(crate) fn now(cpu: &impl PhysicalCpu) -> Now {
    Now {
        monotonic_us: cpu.monotonic_us(),
        unix_seconds: cpu.unix_seconds(),
    }
}
