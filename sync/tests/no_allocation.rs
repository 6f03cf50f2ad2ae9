//! Calls between CPUs allocate nothing, whether the CPUs answer or not.
#![expect(unsafe_code, reason = "an allocator that counts is a global allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use sync::call::{Machine, Mailbox, NoAnswer, call};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// CPU 0 of many. A CPU serves its mailbox as soon as it is notified, unless it is silent.
struct Cpus {
    boxes: Vec<Mailbox>,
    silent: &'static [u32],
    clock: Cell<u64>,
}

impl Machine for Cpus {
    fn me(&self) -> u32 {
        0
    }

    fn mailbox(&self, cpu: u32) -> &Mailbox {
        &self.boxes[cpu as usize]
    }

    fn notify(&self, cpu: u32) {
        if !self.silent.contains(&cpu) {
            self.boxes[cpu as usize].serve(cpu);
        }
    }

    fn now(&self) -> u64 {
        self.clock.get()
    }

    fn is_over(&self, since: u64) -> bool {
        self.clock.set(self.clock.get() + 1);
        self.clock.get() - since > 100
    }
}

#[test]
fn calls_allocate_nothing() {
    let all: Vec<u32> = (0..5000).collect();
    for silent in [[].as_slice(), &[3, 4500]] {
        let cpus = Cpus {
            boxes: all.iter().map(|_| Mailbox::new()).collect(),
            silent,
            clock: Cell::new(0),
        };
        let ran = std::sync::atomic::AtomicUsize::new(0);
        let before = ALLOCATIONS.get();
        let answer = call(&cpus, &all, &|_| {
            ran.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(ALLOCATIONS.get(), before);
        let expected = match silent {
            [] => Ok(()),
            some => Err(NoAnswer::of(some)),
        };
        assert_eq!(answer, expected);
        assert_eq!(ran.into_inner(), all.len() - silent.len());
    }
}
