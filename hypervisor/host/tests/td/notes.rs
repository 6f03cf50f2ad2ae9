//! Tests of the record of a TD's states: each change is in it once, and says on whose behalf it happened.

use host::hypercall::serve;
use host::td::end::Way;
use seam::abi::Gprs;
use seam::abi::hypercall::{Function, SIGNATURE};

use super::kit::{ONE, Server, td};

fn changes(server: &Server, id: u32) -> Vec<String> {
    let notes = server.rig.notes();
    let own = notes.iter().filter(|note| note.td == id);
    own.map(|note| match note.asked_by {
        Some(by) => format!("{} by {by}", note.what),
        None => note.what.clone(),
    })
    .collect()
}

#[test]
fn each_change_of_state_is_recorded_once() {
    let server = Server::new("");
    let tds = server.tds(ONE);
    tds.start(1).unwrap();
    tds.pause(1).unwrap();
    tds.resume(1).unwrap();
    // A command that changes nothing is not recorded.
    tds.resume(1).unwrap_err();
    tds.destroy(1, Way::Terminate).unwrap();
    tds.destroy(1, Way::Terminate).unwrap();
    assert_eq!(
        changes(&server, 1),
        [
            "created -> building",
            "building -> paused",
            "paused -> runnable",
            "runnable -> paused",
            "paused -> runnable",
            "runnable -> terminating",
            "terminating -> teardown",
            "teardown -> reclaimed",
        ]
    );
    assert!(server.rig.notes().iter().all(|note| note.name == "one"));
}

#[test]
fn a_termination_names_the_td_that_asked_for_it() {
    let server = Server::new("");
    let boss = ONE
        .replace("one", "boss")
        .replace("vcpus = 2", "control = true");
    let tds = server.tds(&format!("{ONE}{boss}"));
    tds.start(1).unwrap();
    tds.start(2).unwrap();
    let mut regs = Gprs {
        r10: SIGNATURE,
        r11: Function::TdTerminate as u64,
        r12: 1,
        ..Gprs::default()
    };
    serve(&tds, &td(&tds, 2), &mut regs);
    while tds.work() {}
    // The host's own request names nobody.
    tds.ask_end(2).unwrap();
    while tds.work() {}
    let end = |id| changes(&server, id).split_off(3);
    assert_eq!(
        end(1),
        [
            "runnable -> terminating by 2",
            "terminating -> teardown",
            "teardown -> reclaimed",
        ]
    );
    assert_eq!(end(2)[0], "runnable -> terminating");
}
