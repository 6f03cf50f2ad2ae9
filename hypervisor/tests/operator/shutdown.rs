//! Tests of a TDX module that shuts down under its host: the operator reads the same sentence everywhere, nothing is
//! lost, and nothing hangs.

use std::cell::Cell;
use std::sync::Once;

use host::platform::shutdown::SHUT_DOWN;
use host::sched::{Scheduler, ends};
use host::td::end::Way;
use host::td::error::Error;
use host::td::life::State;
use host::td::registry::Tds;
use seam::abi::{Leaf, PAGE_4K, Status};
use seam::call::Fault;
use serde_json::json;

use super::kit::{FULL, ONE, Server, TWO, config, no_hypercall};
use super::operator::Operator;
use super::rig::{Rig, Setup};
use super::script::{Act, Script};

/// Said of a module that was not asked to record its fatal errors.
const UNRECORDED: &str = "the module does not tell why: it has no FATAL_DIAGNOSTICS";

/// Shuts the module down, as no code of this host does.
fn shut_down(server: &Server) {
    let cpu = server.rig.server().processor(3).unwrap();
    let mut regs = seam::abi::Gprs {
        rax: Leaf::SysShutdown.rax(),
        rcx: server.rig.server().module().release().handoff_version(),
        ..Default::default()
    };
    seam::call::SeamCall::seamcall(&cpu, &mut regs).unwrap();
    assert_eq!(regs.rax, 0);
}

/// Counts the error lines of each test's thread.
struct Lines;

thread_local! {
    static LINES: Cell<u64> = const { Cell::new(0) };
}

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LINES.set(LINES.get() + u64::from(record.level() == log::Level::Error));
    }

    fn flush(&self) {}
}

/// Returns the error lines that this thread has logged since the first call.
fn log_lines() -> u64 {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Lines).unwrap();
        log::set_max_level(log::LevelFilter::Error);
    });
    LINES.get()
}

/// Asserts that each frame is free, used by the host, or in quarantine. Frames of TDs and their HKIDs are in
/// quarantine.
fn assert_put_away(server: &Server, tds: &Tds<'_, Rig>, hkids: usize) -> u64 {
    while tds.work() {}
    let (used, quarantined) = server.rig.out();
    assert_eq!(used, 0, "what TDs had is in quarantine");
    assert_eq!(server.hkids(), (0, hkids));
    assert_eq!(seam::page::lost_pages(), 0);
    assert_eq!(seam::hkid::lost_hkids(), 0);
    quarantined
}

#[test]
fn every_command_says_that_the_module_was_shut_down() {
    let server = Server::new("");
    let tds = server.tds(&format!("{FULL}{ONE}"));
    let mut operator = Operator::new(&tds);
    operator.succeed("td start full");
    let held = server.rig.out().0;
    shut_down(&server);
    assert_eq!(
        operator.succeed("tdx")["state"],
        "ready",
        "nobody knows yet"
    );
    // The first command that calls the module notices the shutdown.
    assert_eq!(operator.fail("td start one"), SHUT_DOWN);
    let calls = server.rig.illegal();
    for line in [
        "td create one",
        "td start one",
        "td pause full",
        "td resume full",
        "td terminate full",
        "td destroy full",
        "td destroy --dynamic full",
        "td retry full",
        "td reset full",
        "td shrink full 12M",
        "td console one",
        "td regs full 0",
        "td dump full 0 64",
        "seam bench",
    ] {
        assert_eq!(operator.fail(line), SHUT_DOWN, "{line}");
    }
    assert_eq!(server.rig.illegal(), calls, "the module is left alone");

    let tdx = operator.succeed("tdx");
    assert_eq!(
        (&tdx["state"], &tdx["reasons"]),
        (&json!("failed"), &json!([SHUT_DOWN, UNRECORDED]))
    );
    assert_eq!(operator.succeed("boot")["problems"], json!([SHUT_DOWN]));
    let text = operator.read("boot") + &operator.read("tdx");
    assert_eq!(text.matches(SHUT_DOWN).count(), 2, "{text}");
    assert!(!text.contains("missing"), "{text}");
    let pages = held / PAGE_4K;
    let lost =
        format!("{SHUT_DOWN}; {pages} of its pages are in quarantine: its module was shut down");
    let list = operator.succeed("td list");
    assert_eq!(list["tds"][0]["problem"], lost);
    assert_eq!(list["tds"][1]["problem"], SHUT_DOWN);
    assert_eq!(operator.succeed("td show full")["problem"], lost);
    assert_eq!(operator.succeed("td show one")["problem"], SHUT_DOWN);
    let list = operator.read("td list");
    assert_eq!(
        list.matches("TDX failed: the module was shut down").count(),
        2,
        "{list}"
    );
    let hkids = operator.succeed("hkids");
    assert_eq!(hkids["taken"][1]["reason"], SHUT_DOWN);
    assert_eq!(assert_put_away(&server, &tds, 1), held);
}

#[test]
fn each_sign_of_a_shutdown_counts_as_one() {
    for fault in [Fault::NotLoaded, Fault::NotEnabled] {
        let server = Server::new("");
        let tds = server.tds(FULL);
        tds.start(1).unwrap();
        server.rig.fault(Leaf::MngCreate, 1..=1, fault);
        server.rig.fault(Leaf::VpFlush, 1..=1, fault);
        assert_eq!(tds.destroy(1, Way::Terminate), Err(Error::ShutDown));
        assert!(tds.is_down());
        assert!(assert_put_away(&server, &tds, 1) > 0);
    }
    // A CPU that is not in VMX operation says nothing about the module.
    let server = Server::new("");
    let tds = server.tds(FULL);
    server.rig.fault(Leaf::MngCreate, 1..=1, Fault::NotVmx);
    assert!(matches!(tds.create(1), Err(Error::Create(_))));
    assert!(!tds.is_down());
}

#[test]
fn a_shutdown_is_noticed_at_every_leaf_of_a_life() {
    const BUILD: [Leaf; 12] = [
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
        Leaf::MrFinalize,
    ];
    for leaf in BUILD {
        goes_down(leaf, |tds| tds.start(1).map(drop));
    }
    for (way, leaf) in [
        (Way::Terminate, Leaf::VpFlush),
        (Way::Terminate, Leaf::MngVpflushdone),
        (Way::Terminate, Leaf::PhymemCacheWb),
        (Way::Terminate, Leaf::MngKeyFreeid),
        (Way::Terminate, Leaf::PhymemPageReclaim),
        (Way::Terminate, Leaf::PhymemPageWbinvd),
        (Way::Dynamic, Leaf::MemRangeBlock),
        (Way::Dynamic, Leaf::MemTrack),
        (Way::Dynamic, Leaf::MemPageRemove),
        (Way::Dynamic, Leaf::MemSeptRemove),
        (Way::Dynamic, Leaf::PhymemPageWbinvd),
    ] {
        let end = |tds: &Tds<'_, Rig>| tds.destroy(1, way).map(drop);
        goes_down_after(leaf, |tds| tds.start(1).unwrap(), end);
    }
}

fn goes_down(leaf: Leaf, act: impl Fn(&Tds<'_, Rig>) -> Result<(), Error>) {
    goes_down_after(leaf, |_| (), act);
}

/// Shuts the module down at the second call of `leaf`, or at the first if there is only one.
fn goes_down_after(
    leaf: Leaf,
    before: impl Fn(&Tds<'_, Rig>),
    act: impl Fn(&Tds<'_, Rig>) -> Result<(), Error>,
) {
    for call in [2, 1] {
        let server = Server::new("");
        let tds = server.tds(FULL);
        before(&tds);
        server
            .rig
            .refuse(leaf, call..=u64::MAX, Status::SYS_SHUTDOWN);
        let result = act(&tds);
        if call == 2 && result.is_ok() {
            tds.destroy(1, Way::Terminate).unwrap();
            continue;
        }
        assert_eq!(result, Err(Error::ShutDown), "{}", leaf.name());
        assert!(tds.is_down(), "{}", leaf.name());
        assert_eq!(seam::page::lost_pages(), 0, "{} {call}", leaf.name());
        assert_put_away(&server, &tds, server.hkids().1);
        assert!(tds.get(1).is_none(), "{}", leaf.name());
        return;
    }
}

#[test]
fn after_a_shutdown_no_vcpu_is_entered_and_no_td_counts_as_ended_by_itself() {
    let server = Server::new("");
    let scheduler = Scheduler::new(&server.rig, &config(TWO).host, no_hypercall);
    let tds = server.tds_on(&server.rig, TWO, &scheduler);
    tds.start(1).unwrap();
    tds.start(2).unwrap();
    let script = Script::new([Act::Touch(0)].iter().copied());
    server.rig.set_guest(0, Some(script.player()));
    shut_down(&server);
    assert!(scheduler.schedule(), "the first one finds out");
    let entries = server.rig.calls(Leaf::VpEnter);
    assert!(!scheduler.schedule(), "nobody runs any more");
    ends::serve(&scheduler, &tds);
    assert!(tds.work(), "what they had is put away");
    while tds.work() {}
    assert!(!scheduler.schedule());
    assert_eq!(server.rig.calls(Leaf::VpEnter), entries);
    let mut operator = Operator::with(&tds, &scheduler);
    for id in [1, 2] {
        assert_eq!(tds.state(id), State::Reclaimed);
        let problem = operator.succeed(&format!("td show {id}"))["problem"].to_string();
        assert!(
            problem.contains(SHUT_DOWN) && !problem.contains("td reset"),
            "{problem}"
        );
    }
    assert_put_away(&server, &tds, 2);
}

#[test]
fn memory_on_its_way_back_is_put_away_with_one_line_for_each_td() {
    let setup = Setup::default();
    let server = Server::of(&setup);
    let tds = server.tds(&FULL.replace("16M", "64M"));
    tds.start(1).unwrap();
    let held = server.rig.out().0;
    tds.terminate(1).unwrap();
    assert!(tds.work() && tds.work(), "some of it is back");
    let lines = log_lines();
    shut_down(&server);
    while tds.work() {}
    let quarantined = assert_put_away(&server, &tds, 0);
    assert!(
        0 < quarantined && quarantined < held,
        "{quarantined:#x} of {held:#x}"
    );
    assert_eq!(tds.state(1), State::Reclaimed);
    let problem = tds.notes(1).unwrap().problem.unwrap();
    assert!(
        problem.starts_with(&format!("{} of its pages", quarantined / PAGE_4K)),
        "{problem}"
    );
    assert_eq!(log_lines() - lines, 2, "the module's end, and the count");
}
