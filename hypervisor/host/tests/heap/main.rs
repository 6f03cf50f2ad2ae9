//! Guests that drive the host while its heap is used up. Each allocation on a guest's way fails in turn; the guest is
//! answered or ended, and nothing else suffers.
//!
//! An allocation whose failure the host does not expect ends this program, as it would end the machine.
#![expect(unsafe_code, reason = "the test's own allocator is one that refuses")]

#[allow(dead_code, reason = "it has what the tests of TDs need, too")]
#[path = "../td/kit.rs"]
mod kit;
#[path = "../rig/mod.rs"]
mod rig;
#[allow(dead_code, reason = "it has what the tests of TDs need, too")]
#[path = "../td/site.rs"]
mod site;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr;

use host::sched::ends;
use host::td::life::State;
use seam::abi::PAGE_2M;

use kit::{Server, TWO};
use site::{Act, Script, Site, accept, call, on_site};

/// The system's allocator, which can refuse one allocation of the host.
struct Refusing;

thread_local! {
    /// Number of allocations of this thread until the refused one; `None` while none is refused.
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
}

// SAFETY: all memory is the system allocator's; a null pointer is a refusal.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(left) = LEFT.get()
            && !rig::is_outside()
        {
            LEFT.set(left.checked_sub(1));
            if left == 0 {
                return ptr::null_mut();
            }
        }
        // SAFETY: the caller's duty.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's duty.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static HEAP: Refusing = Refusing;

/// Number of the allocation that is refused, counted from 0.
#[derive(Clone, Copy)]
struct Refused(u64);

impl Refused {
    /// Runs `work` with the refusal. Returns whether `work` came as far as that.
    fn during(self, work: impl FnOnce()) -> bool {
        LEFT.set(Some(self.0));
        work();
        LEFT.take().is_none()
    }
}

const SHARED: u64 = 1 << 47;
/// Memory outside the image.
const BLOCK: u64 = 14 << 20;
const MAP_GPA: u64 = 0x1_0001;

fn ask(function: u64, operands: [u64; 4]) -> Act {
    Act::Call(call(function, operands))
}

fn write_port(port: u64, value: u64) -> Act {
    ask(0x1E, [1, 1, port, value])
}

/// Everything that makes the host change a TD's memory, and one act for each device.
fn everything() -> Vec<Act> {
    vec![
        Act::Touch(BLOCK),
        accept(BLOCK | 0x1000),
        ask(MAP_GPA, [SHARED | BLOCK, 0x1000, 0, 0]),
        ask(MAP_GPA, [BLOCK, 0x1000, 0, 0]),
        accept(BLOCK),
        ask(MAP_GPA, [SHARED | (BLOCK - PAGE_2M), PAGE_2M, 0, 0]),
        ask(MAP_GPA, [BLOCK - PAGE_2M, PAGE_2M, 0, 0]),
        Act::Touch(BLOCK - PAGE_2M),
        write_port(0x3F8, u64::from(b'a')),
        write_port(0x70, 0),
        write_port(0xCF8, 0),
        ask(0x1_0002, [SHARED | BLOCK, 0x1000, 0, 0]),
        ask(0x1_0004, [0x40, 0, 0, 0]),
        ask(0x1_0005, [SHARED | BLOCK, SHARED | BLOCK, 0, 0]),
        ask(0xA, [0; 4]),
        ask(0x1F, [0x1B, 0, 0, 0]),
        ask(0x20, [0x830, 0, 0, 0]),
    ]
}

/// Lets the guest of the only TD that runs do `acts`, and the host follow its end.
fn drive(site: &Site<'_>, acts: &[Act], refused: Refused) -> bool {
    let script = Script::new(acts.iter().copied());
    site.rig.set_guest(0, Some(script.player()));
    refused.during(|| {
        site.scheduler.schedule();
        ends::serve(site.scheduler, &site.tds);
    })
}

/// Plays `acts` again and again, and refuses a later allocation each time. Returns the number of allocations.
fn refuse_each(acts: &[Act]) -> u64 {
    for number in 0..200 {
        let server = Server::new("");
        let mut reached = false;
        on_site(&server, TWO, |site| {
            site.tds.start(1).unwrap();
            reached = drive(site, acts, Refused(number));
            // An operation that was refused once works now, for this TD and for another.
            ends::serve(site.scheduler, &site.tds);
            let state = site.tds.state(1);
            assert!(
                matches!(state, State::Runnable | State::Paused),
                "{number}: {state:?}"
            );
            if state == State::Runnable {
                assert_eq!(site.scheduler.guest(1).unwrap().vm().end(), None);
                site.tds.pause(1).unwrap();
            }
            site.tds.start(2).unwrap();
            let script = site.play(&everything());
            // The first TD's turn may not have been over.
            site.scheduler.schedule();
            assert_eq!(script.left(), 0, "{number}");
        });
        server.assert_spotless();
        if !reached {
            return number;
        }
    }
    panic!("200 allocations in {} acts", acts.len());
}

#[test]
fn a_guest_that_changes_its_memory_survives_or_ends_alone() {
    // At least the page table of the block that is split.
    let count = refuse_each(&everything());
    assert!(count >= 1, "{count}");
}

#[test]
fn a_guest_that_switches_itself_off_waits_until_there_is_room_to_end_it() {
    for (port, bytes, value) in [(0x604, 2, 1 << 13), (0xCF9, 1, 6)] {
        let server = Server::new("");
        on_site(&server, TWO, |site| {
            site.tds.start(1).unwrap();
            assert!(drive(
                site,
                &[ask(0x1E, [bytes, 1, port, value])],
                Refused(0)
            ));
            let waits = || {
                let guest = site.scheduler.guest(1).unwrap();
                site.tds.state(1) == State::Runnable && guest.vm().end().is_some()
            };
            assert!(waits());
            assert!(ends::serve(site.scheduler, &site.tds));
            assert!(!waits());
            while site.tds.work() {}
        });
        server.assert_spotless();
    }
}

#[test]
fn the_end_of_a_guest_is_followed_without_a_byte_of_heap() {
    for last in [
        Act::Touch(1 << 45),
        ask(0x1_0003, [0; 4]),
        write_port(0x505, 1),
    ] {
        let count = refuse_each(&[Act::Touch(BLOCK), last]);
        assert!(count >= 1, "{last:?}: {count}");
    }
}
