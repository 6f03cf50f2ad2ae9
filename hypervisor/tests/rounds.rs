//! Tests that a thousand TDs, one after the other, leave frames, heap and HKIDs unchanged. It is the only test of this
//! program, so that only the host allocates.

#[path = "../host/tests/td/kit.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod kit;
#[path = "operator/operator.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod operator;
#[path = "../host/tests/rig/mod.rs"]
mod rig;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use kit::{FULL, Server};
use operator::Operator;

const ROUNDS: u32 = 1000;

/// The system's allocator, with a count of allocated bytes.
struct Counting;

static BYTES: AtomicI64 = AtomicI64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[expect(unsafe_code, reason = "a global allocator hands out raw memory")]
// SAFETY: every call is passed to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size() as i64, Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size() as i64, Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) };
    }
}

/// The counts that must not change.
#[derive(Debug, PartialEq)]
struct Ledger {
    frames: Vec<mm::frames::Counts>,
    hkids: host::tdx::hkids::Count,
    heap: i64,
}

fn ledger(server: &Server) -> Ledger {
    // Reads the heap before the ledger itself is allocated.
    let heap = BYTES.load(Relaxed);
    Ledger {
        frames: server.rig.counts(),
        hkids: server.coordinator.hkids().count(),
        heap,
    }
}

/// Number of rounds until the console has as many lines as it keeps, the last life's report exists, and the emulated
/// module has touched all its memory.
const WARM_UP: u32 = 40;
/// Number of extra rounds; one of them must leave the heap as it was.
const MORE: usize = 20;

#[test]
fn a_thousand_rounds_of_create_start_destroy_leave_everything_as_it_was() {
    let server = Server::new("");
    let tds = server.tds(FULL);
    let mut operator = Operator::new(&tds);
    let mut round = || {
        operator.succeed("td create full");
        operator.succeed("td start full");
        assert_eq!(operator.succeed("td destroy full")["state"], "reclaimed");
        ledger(&server)
    };
    for _ in 0..WARM_UP {
        round();
    }
    // Adds the heap that the remembered ledger itself takes.
    let mut before = round();
    before.heap += size_of_val(&*before.frames) as i64;
    for number in 0..ROUNDS {
        let now = round();
        assert_eq!(
            (&now.frames, &now.hkids),
            (&before.frames, &before.hkids),
            "after {number} rounds"
        );
    }
    // The report of the last life varies by some bytes, depending on contention, so the heap must match after one of
    // a few more rounds. `heaps` is an array because a list would be on the heap itself.
    let heaps = [(); MORE].map(|()| round().heap);
    assert!(
        heaps.contains(&before.heap),
        "{heaps:?}, and it was {}",
        before.heap
    );
    server.assert_spotless();
}
