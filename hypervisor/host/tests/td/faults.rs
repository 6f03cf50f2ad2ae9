//! Tests of building with a failure at every step: the operator is told, and nothing is lost.

use host::td::end::Way;
use host::td::error::Error;
use host::td::life::State;
use seam::abi::{Leaf, Operand, Status};
use seam::retry::Reason;

use super::kit::{FULL, Server, Wired};
use super::rig::Event;
use super::short::Short;

/// The leafs that only building calls.
const LEAFS: [Leaf; 14] = [
    Leaf::MngCreate,
    Leaf::MngKeyConfig,
    Leaf::MngAddcx,
    Leaf::MngInit,
    Leaf::MemSeptAdd,
    Leaf::MemPageAdd,
    Leaf::MrExtend,
    Leaf::MemPageAug,
    Leaf::VpCreate,
    Leaf::VpAddcx,
    Leaf::VpInit,
    Leaf::VpWr,
    Leaf::MrFinalize,
    Leaf::MngRd,
];

const BUSY: Status = Status::OPERAND_BUSY.with(Operand::RCX);

/// Builds a TD with the failure that `arrange` sets up, and checks that nothing is lost.
fn fails(server: &Server, arrange: impl FnOnce()) -> Error {
    let tds = server.tds(FULL);
    arrange();
    let error = tds.create(1).expect_err("a step failed");
    server.rig.refuse_no_more();
    assert!(tds.get(1).is_none());
    assert_eq!(tds.state(1), State::Reclaimed);
    server.assert_nothing_lost();
    // All resources are available to the next TD.
    tds.create(1).unwrap();
    tds.destroy(1, Way::Terminate).unwrap();
    server.assert_nothing_lost();
    error
}

/// Returns each leaf with the numbers of its first, a middle and its last call in a build without failures.
fn calls(server: &Server) -> Vec<(Leaf, u64)> {
    let tds = server.tds(FULL);
    tds.create(1).unwrap();
    let mut calls = Vec::new();
    for leaf in LEAFS {
        let count = server.rig.calls(leaf);
        assert!(count > 0, "{}", leaf.name());
        let mut numbers = vec![1, count.div_ceil(2), count];
        numbers.dedup();
        calls.extend(numbers.into_iter().map(|number| (leaf, number)));
    }
    tds.destroy(1, Way::Terminate).unwrap();
    calls
}

#[test]
fn an_error_at_any_step_gives_everything_back() {
    let server = Server::new("");
    for (leaf, number) in calls(&server) {
        let error = fails(&server, || {
            server
                .rig
                .refuse(leaf, number..=number, Status::OPERAND_INVALID);
        });
        assert!(error.to_string().contains(leaf.name()), "{error}");
    }
}

#[test]
fn a_permanently_busy_build_returns_everything() {
    let server = Server::new("");
    for leaf in LEAFS {
        let error = fails(&server, || server.rig.refuse(leaf, 1..=u64::MAX, BUSY));
        assert!(error.to_string().contains(leaf.name()), "{error}");
    }
}

#[test]
fn a_call_that_is_busy_once_is_repeated() {
    let server = Server::new("");
    for (leaf, number) in calls(&server) {
        let tds = server.tds(FULL);
        let retries = server.rig.retries(Reason::Busy);
        server.rig.refuse(leaf, number..=number, BUSY);
        tds.create(1).unwrap();
        assert!(
            server.rig.retries(Reason::Busy) > retries,
            "{}",
            leaf.name()
        );
        server.rig.refuse_no_more();
        tds.destroy(1, Way::Terminate).unwrap();
    }
    server.assert_spotless();
}

#[test]
fn a_build_without_entropy_returns_everything_and_succeeds_after_a_short_wait() {
    for leaf in LEAFS {
        let server = Server::new("");
        let (status, reason) = match leaf {
            Leaf::MngKeyConfig => (Status::KEY_GENERATION_FAILED, Reason::KeyGeneration),
            _ => (Status::RND_NO_ENTROPY, Reason::NoEntropy),
        };
        let error = fails(&server, || server.rig.refuse(leaf, 1..=u64::MAX, status));
        assert!(error.to_string().contains(leaf.name()), "{error}");
        let tds = server.tds(FULL);
        let retries = server.rig.retries(reason);
        server.rig.refuse(leaf, 1..=3, status);
        tds.create(1).unwrap();
        assert!(server.rig.retries(reason) >= retries + 3, "{}", leaf.name());
        tds.destroy(1, Way::Terminate).unwrap();
        server.assert_spotless();
    }
}

#[test]
fn a_cpu_that_falls_silent_before_its_vcpu_is_made_gives_everything_back() {
    let server = Server::new("");
    let tds = server.tds(&FULL.replace("vcpus = 2", "vcpus = 4"));
    // CPU 2 configures the key on its package, and then falls silent.
    let made_key = Event::Call(Leaf::MngKeyConfig);
    server.rig.set_silent_after(2, made_key);
    assert_eq!(tds.create(1).unwrap_err(), Error::Silent([2].into()));
    assert_eq!(tds.state(1), State::Reclaimed);
    server.assert_nothing_lost();
    server.rig.set_silent(2, false);
    tds.create(1).unwrap();
    tds.destroy(1, Way::Terminate).unwrap();
    server.assert_nothing_lost();
}

#[test]
fn a_missing_frame_returns_everything() {
    let server = Server::new("");
    let short = Short::new(&server.rig);
    let tds = server.tds_on(&short, FULL, &Wired);
    short.miss(u64::MAX);
    tds.create(1).unwrap();
    let asked = short.asked();
    tds.destroy(1, Way::Terminate).unwrap();
    // Missing frames of 2 MiB are replaced by others.
    let mut failed = 0;
    for number in (1..=40).chain(asked - 20..=asked) {
        short.miss(number);
        match tds.create(1) {
            Ok(_) => drop(tds.destroy(1, Way::Terminate).unwrap()),
            Err(_) => failed += 1,
        }
        server.assert_spotless();
    }
    assert!(failed > 50, "{failed} of 61");
}

#[test]
fn a_refused_parameter_is_reported_with_its_cpuid_leaf() {
    let server = Server::new("");
    let name = "[[td]]\nname = \"one\"\nmemory = \"2M\"\n[[td.cpuid]]\nleaf = 1\neax = 1\n";
    let tds = server.tds(name);
    // A family, model and stepping that no machine has.
    let error = tds.create(1).unwrap_err();
    assert!(matches!(error, Error::Init(..)), "{error}");
    assert!(
        error
            .to_string()
            .contains("(cpuid: leaf 0x1, with the value eax 0x1,"),
        "{error}"
    );
    server.assert_nothing_lost();
}
