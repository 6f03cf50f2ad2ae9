//! Tests of shrinking a TD during other operations, above all its termination: one of the two yields to the other, and
//! neither gets stuck.

use std::sync::{Arc, Mutex};

use host::td::end::{Ended, Way};
use host::td::error::Error;
use host::td::life::State;
use host::td::{Td, registry::Tds};
use mm::private::Outcome;
use seam::abi::Leaf;

use super::kit::{FULL, Server, Stubborn, td};
use super::rig::Rig;

const MIB: u64 = 1 << 20;
/// Memory of each TD after shrinking.
const LESS: u64 = 14 * MIB;

/// Creates a server with a TD of this much memory. Both are leaked, because work in the middle of a call may outlive a
/// test.
fn stage(memory: &str) -> (&'static Server, &'static Tds<'static, Rig>) {
    let server: &Server = Box::leak(Box::new(Server::new("")));
    let tds = server.tds(&FULL.replace("16M", memory));
    (server, Box::leak(Box::new(tds)))
}

/// Shrinks the TD when call `number` of `leaf` begins, and records the outcome.
fn shrink_at(
    server: &Server,
    tds: &'static Tds<'static, Rig>,
    leaf: Leaf,
    number: u64,
) -> Arc<Mutex<Option<Result<Outcome, Error>>>> {
    let came = Arc::new(Mutex::new(None));
    let noted = Arc::clone(&came);
    server.rig.meanwhile(leaf, number, move || {
        *noted.lock().unwrap() = Some(tds.shrink(1, LESS));
    });
    came
}

#[test]
fn a_shrink_leaves_everything_to_a_dynamic_termination() {
    for (leaf, number) in [
        (Leaf::MemRangeBlock, 1),
        (Leaf::MemPageRemove, 1),
        (Leaf::MemPageRemove, 5),
        (Leaf::MemSeptRemove, 1),
        (Leaf::VpFlush, 1),
    ] {
        let (server, tds) = stage("16M");
        tds.start(1).unwrap();
        let came = shrink_at(server, tds, leaf, number);
        assert!(matches!(tds.destroy(1, Way::Dynamic), Ok(Ended::Now(_))));
        let came = came.lock().unwrap().take().unwrap();
        assert_eq!(came, Ok(Outcome::Queued), "{}", leaf.name());
        assert_eq!(tds.notes(1).unwrap().problem, None);
        assert_eq!(tds.state(1), State::Reclaimed);
        server.assert_spotless();
    }
}

#[test]
fn a_termination_does_not_wait_for_a_whole_shrink() {
    let (server, tds) = stage("256M");
    tds.start(1).unwrap();
    let before = td(tds, 1).holding().bytes();
    server.rig.meanwhile(Leaf::MemPageRemove, 1, || {
        assert_eq!(tds.ask_end(1), Ok(()));
    });
    assert_eq!(tds.shrink(1, 14 * MIB), Ok(Outcome::Queued));
    assert_eq!(tds.state(1), State::Terminating);
    // One or two batches.
    let taken = before - td(tds, 1).holding().bytes();
    assert!((1..=64 * MIB).contains(&taken), "{}", taken / MIB);
    assert!(matches!(tds.destroy(1, Way::Dynamic), Ok(Ended::Now(_))));
    assert_eq!(tds.notes(1).unwrap().problem, None);
    server.assert_spotless();
}

/// Shrinks a TD while its termination is requested, which then fails because a CPU does not release a vCPU. `arrange`
/// sets up events after the shrink; `look` inspects the TD after the failure.
fn shrink_and_fail_to_end(
    arrange: impl FnOnce(&'static Server, &'static Tds<'static, Rig>),
    look: impl FnOnce(&Td),
) {
    let (server, tds) = stage("256M");
    tds.start(1).unwrap();
    let full = td(tds, 1);
    let stubborn = Stubborn::holding(&server.rig, &full);
    server.rig.meanwhile(Leaf::MemPageRemove, 1, || {
        assert_eq!(tds.ask_end(1), Ok(()));
    });
    assert_eq!(tds.shrink(1, LESS), Ok(Outcome::Queued));
    assert!(full.holding().bytes() > 128 * MIB);
    arrange(server, tds);
    assert_eq!(tds.terminate(1), Err(Error::Stuck([1].into())));
    look(&full);
    stubborn.let_go(&server.rig);
    drop(full);
    assert!(matches!(tds.destroy(1, Way::Dynamic), Ok(Ended::Now(_))));
    assert_eq!(tds.notes(1).unwrap().problem, None);
    server.assert_spotless();
}

#[test]
fn a_failed_termination_performs_the_queued_shrink() {
    shrink_and_fail_to_end(
        |_, _| {},
        |td| {
            assert_eq!(td.state(), State::Runnable);
            assert!(td.holding().bytes() <= 16 * MIB, "{:?}", td.holding());
        },
    );
}

#[test]
fn a_queued_shrink_yields_to_the_next_termination() {
    shrink_and_fail_to_end(
        |server, tds| {
            server.rig.meanwhile(Leaf::MemPageRemove, 1, || {
                assert_eq!(tds.shrink(1, LESS), Err(Error::Busy), "one at a time");
                assert_eq!(tds.ask_end(1), Ok(()));
            });
        },
        |td| {
            assert_eq!(td.state(), State::Terminating);
            assert!(td.holding().bytes() > 128 * MIB, "{:?}", td.holding());
        },
    );
}

#[test]
fn a_td_that_is_being_built_is_not_shrunk() {
    let (server, tds) = stage("16M");
    let came = shrink_at(server, tds, Leaf::MemPageAug, 2);
    tds.create(1).unwrap();
    let came = came.lock().unwrap().take().unwrap();
    assert_eq!(came, Err(Error::State(State::Building)));
    assert_eq!(td(tds, 1).layout().bytes(), 16 * MIB);
    tds.destroy(1, Way::Terminate).unwrap();
    server.assert_spotless();
}
