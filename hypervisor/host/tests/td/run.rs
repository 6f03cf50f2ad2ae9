//! Tests of running TDs: turns of vCPUs, halts and wake-ups, and the consequences of a guest's end.

use std::sync::Arc;

use host::platform::Running;
use host::sched::ends;
use host::td::end::Way;
use host::td::error::Error;
use host::td::host::Listens;
use host::td::life::State;
use host::td::registry::{Asked, DefineError};

use seam::abi::x86::exit_reason;
use seam::abi::{Leaf, Operand, Status};
use vcpu::{End, PhysicalCpu};

use super::kit::{Server, TWO};
use super::rig::running::OUT_OF_LINES;
use super::site::{Act, Site, call, on_site};

const HLT: u64 = 0xC;
const IO: u64 = 0x1E;
/// Length of a turn, in ticks of the server's clock.
const SLICE: u64 = 10_000_000;

fn with_site(text: &str, test: impl FnOnce(&Site<'_>)) {
    let server = Server::new("");
    on_site(&server, text, test);
    server.assert_spotless();
}

fn halt() -> Act {
    Act::Call(call(HLT, [0; 4]))
}

fn write_port(port: u64, size: u64, value: u64) -> Act {
    Act::Call(call(IO, [size, 1, port, value]))
}

#[test]
fn a_vcpu_runs_until_its_cpu_has_something_else_to_do() {
    with_site(TWO, |site| {
        assert!(!site.scheduler.schedule(), "no TD runs");
        site.tds.start(1).unwrap();
        let script = site.play(&[
            write_port(0x3F8, 1, b'a'.into()),
            write_port(0x3F8, 1, b'b'.into()),
        ]);
        assert_eq!(script.left(), 0);
        assert_eq!(site.rig.served(0), [OUT_OF_LINES]);
        let guest = site.scheduler.guest(1).unwrap();
        assert_eq!(site.said(1), ("ab".into(), 0));
        assert_eq!(guest.vm().vcpus()[0].cpu(), None);
    });
}

#[test]
fn two_tds_take_turns() {
    with_site(TWO, |site| {
        site.tds.start(1).unwrap();
        site.tds.start(2).unwrap();
        for _ in 0..20 {
            site.play(&[]);
            site.rig.pass(SLICE);
        }
        for id in [1, 2] {
            let guest = site.scheduler.guest(id).unwrap();
            assert_eq!(guest.vm().vcpus()[0].tally().entries.get(), 10);
        }
    });
}

#[test]
fn a_turn_ends_when_the_timer_says_so() {
    with_site(TWO, |site| {
        site.tds.start(1).unwrap();
        let begin = site.rig.tsc();
        site.play(&[]);
        assert_eq!(site.rig.timer(0), Some(begin + SLICE));
    });
}

#[test]
fn a_turn_is_as_long_as_the_operator_wants() {
    with_site(&format!("[host]\nslice_ms = 3\n{TWO}"), |site| {
        site.tds.start(1).unwrap();
        let begin = site.rig.tsc();
        site.play(&[]);
        assert_eq!(site.rig.timer(0), Some(begin + 3_000_000));
    });
}

#[test]
fn a_cap_is_kept_over_the_period_that_the_operator_wants() {
    const MS: u64 = 1_000_000;
    // Two of the rig's turns, 1 ms each, are the budget of both.
    for (period, cap) in [(40, 5), (20, 10)] {
        let text = format!("[host]\ncap_period_ms = {period}\n{TWO}cap = {cap}\n");
        with_site(&text, |site| {
            site.tds.start(2).unwrap();
            let begin = site.rig.tsc();
            site.play(&[]);
            site.play(&[]);
            assert!(!site.scheduler.schedule(), "its budget is used up");
            assert_eq!(site.rig.timer(0), Some(begin + period * MS));
            site.rig.pass(period * MS);
            site.play(&[]);
        });
    }
}

#[test]
fn a_halted_vcpu_yields_its_cpu_and_resumes_on_an_event() {
    with_site(TWO, |site| {
        site.tds.start(1).unwrap();
        let script = site.play(&[halt()]);
        assert_eq!(script.left(), 0);
        assert!(!site.scheduler.schedule(), "it is halted");
        site.rig.pass(5 * SLICE);
        assert!(!site.scheduler.schedule(), "nothing has come");
        assert!(site.scheduler.post_nmi(1, 0));
        assert!(!site.scheduler.post_nmi(1, 1), "there is no such vCPU");
        assert!(site.rig.attention(0).is_poked(), "the CPU is told");
        site.play(&[]);
        let times = site.scheduler.times_us(1, 0).unwrap();
        assert!(times.wait >= 5 * SLICE / 1000, "{times:?}");
    });
}

#[test]
fn a_guest_that_powers_off_is_torn_down() {
    with_site(TWO, |site| {
        site.tds.start(1).unwrap();
        // SLP_EN with type 0 in PM1 control.
        site.play(&[write_port(0x604, 2, 1 << 13)]);
        assert!(ends::serve(site.scheduler, &site.tds));
        assert!(matches!(
            site.tds.state(1),
            State::Teardown | State::Reclaimed
        ));
        while site.tds.work() {}
        assert_eq!(site.tds.state(1), State::Reclaimed);
        assert!(!site.scheduler.schedule());
        assert!(!ends::serve(site.scheduler, &site.tds), "once is enough");
    });
}

#[test]
fn a_guest_that_requests_a_reset_is_rebuilt() {
    with_site(TWO, |site| {
        site.tds.start(1).unwrap();
        let before = site.tds.get(1).unwrap();
        site.play(&[write_port(0xCF9, 1, 6)]);
        let end = site.scheduler.guest(1).unwrap().vm().end().cloned();
        assert_eq!(end, Some(End::Reset));
        assert_eq!(
            site.scheduler.problem(1),
            None,
            "that is no problem: it goes on by itself"
        );
        assert!(ends::serve(site.scheduler, &site.tds));
        assert_eq!(before.state(), State::Reclaimed);
        assert_eq!(site.tds.state(1), State::Runnable);
        site.play(&[write_port(0x3F8, 1, b'x'.into())]);
        assert!(site.scheduler.guest(1).unwrap().vm().end().is_none());
    });
}

#[test]
fn console_output_survives_a_reset() {
    with_site(TWO, |site| {
        site.tds.start(1).unwrap();
        site.play(&[write_port(0x3F8, 1, b'a'.into()), write_port(0xCF9, 1, 6)]);
        // More bytes than the serial port has room for.
        assert!((0..32).all(|_| site.scheduler.type_byte(1, b'?')));
        let last = "a\r\n[it asked for a reset]\r\n";
        assert_eq!(site.said(1), (last.into(), 0));
        let before = site.scheduler.guest(1).unwrap();
        assert!(ends::serve(site.scheduler, &site.tds));
        let note = "\r\n[started anew]\r\n";
        let began = last.len() as u64;
        assert_eq!(site.said(1), (format!("{last}{note}"), began));
        let guest = site.scheduler.guest(1).unwrap();
        assert!(!Arc::ptr_eq(&before, &guest), "a life of its own");
        assert_eq!(guest.vm().console().take_typed(), None);
        site.play(&[write_port(0x3F8, 1, b'b'.into())]);
        assert_eq!(site.said(1), (format!("{last}{note}b"), began));
    });
}

#[test]
fn an_operator_who_watches_a_console_sees_the_host_s_own_lines_at_once() {
    with_site(TWO, |site| {
        site.tds.start(1).unwrap();
        site.scheduler.watch(Some(1));
        let mut seen = 0;
        let mut told = |what: &str| {
            let (said, wakes) = (site.said(1).0, site.rig.console_wakes());
            assert!(said.ends_with(&format!("\r\n[{what}]\r\n")), "{said}");
            assert_eq!(wakes - seen, 1, "{what}");
            seen = wakes;
        };
        site.play(&[write_port(0xCF9, 1, 6)]);
        told("it asked for a reset");
        assert!(ends::serve(site.scheduler, &site.tds));
        told("started anew");
        site.play(&[Act::Exit(stub_module::host::Exit::of(
            exit_reason::TRIPLE_FAULT,
        ))]);
        told("triple fault on vCPU 0");
        site.tds.reset(1).unwrap();
        told("started anew");
        // The console is not woken for a TD that is not watched.
        site.scheduler.watch(Some(2));
        site.play(&[write_port(0x604, 2, 1 << 13)]);
        assert_eq!(site.said(1).0.matches("switched itself off").count(), 1);
        assert_eq!(site.rig.console_wakes(), seen);
    });
}

#[test]
fn a_life_that_is_not_built_leaves_the_console_as_it_was() {
    with_site(TWO, |site| {
        site.tds.start(1).unwrap();
        site.play(&[write_port(0x3F8, 1, b'a'.into())]);
        site.tds.destroy(1, Way::Terminate).unwrap();
        // Before its vCPUs are prepared, and after.
        for leaf in [Leaf::MngInit, Leaf::VpInit] {
            let busy = Status::OPERAND_BUSY.with(Operand::RCX);
            site.rig.refuse(leaf, 1..=u64::MAX, busy);
            assert!(site.tds.start(1).is_err(), "{}", leaf.name());
            site.rig.refuse_no_more();
            assert_eq!(site.said(1).0, "a");
        }
        site.tds.create(1).unwrap();
        assert_eq!(site.said(1), ("a".into(), 1));
        site.tds.start(1).unwrap();
        assert_eq!(site.said(1), ("a\r\n[started anew]\r\n".into(), 1));
        // Pausing and resuming does not begin a new life.
        site.tds.pause(1).unwrap();
        site.tds.resume(1).unwrap();
        assert_eq!(site.said(1), ("a\r\n[started anew]\r\n".into(), 1));
    });
}

#[test]
fn a_guest_that_asks_for_a_reset_does_not_undo_its_end() {
    with_site(TWO, |site| {
        site.tds.start(1).unwrap();
        site.play(&[write_port(0xCF9, 1, 6)]);
        // The operator terminates the TD before a CPU rebuilds it.
        site.tds.destroy(1, Way::Terminate).unwrap();
        site.tds.begin_anew(1).unwrap();
        assert_eq!(site.tds.state(1), State::Reclaimed);
        // A request to end an earlier life does not apply to the next one.
        site.tds.start(1).unwrap();
        site.tds.begin_anew(1).unwrap();
        assert_eq!(site.tds.state(1), State::Runnable);
    });
}

#[test]
fn a_crashed_guest_is_kept_for_inspection() {
    with_site(TWO, |site| {
        site.tds.start(1).unwrap();
        site.tds.start(2).unwrap();
        site.play(&[Act::Exit(stub_module::host::Exit::of(
            exit_reason::TRIPLE_FAULT,
        ))]);
        assert!(ends::serve(site.scheduler, &site.tds));
        let broken = site
            .tds
            .ids()
            .find(|id| site.tds.state(*id) == State::Paused)
            .unwrap();
        let problem = site.tds.notes(broken).unwrap().problem.unwrap();
        assert!(problem.contains("triple fault on vCPU 0"), "{problem}");
        assert!(problem.contains("td reset"), "{problem}");
        let end = site.scheduler.problem(broken).unwrap();
        assert!(problem.starts_with(&end), "{end}");
        // The other TD continues.
        let other = 3 - broken;
        site.play(&[write_port(0x3F8, 1, b'y'.into())]);
        assert_eq!(site.tds.state(other), State::Runnable);
        assert_eq!(
            site.scheduler
                .guest(other)
                .unwrap()
                .vm()
                .console()
                .written(),
            1
        );
    });
}

#[test]
fn a_paused_td_gets_no_turn() {
    with_site(TWO, |site| {
        site.tds.start(1).unwrap();
        site.play(&[]);
        site.tds.pause(1).unwrap();
        site.rest();
        // The first turn finds out that the TD is paused.
        while site.scheduler.schedule() {}
        site.tds.resume(1).unwrap();
        let script = site.play(&[write_port(0x3F8, 1, b'z'.into())]);
        assert_eq!(script.left(), 0);
    });
}

#[test]
fn a_vcpu_that_ran_elsewhere_is_flushed_there_and_migrates() {
    with_site(TWO, |site| {
        site.tds.start(1).unwrap();
        let td = site.tds.get(1).unwrap();
        let elsewhere = 2;
        drop(td.hold(site.rig, 0).unwrap());
        assert_eq!(td.vcpus().association(0), Some(0));
        let rig = site.rig.clone();
        let moved = {
            let td = std::sync::Arc::clone(&td);
            site.rig
                .start(elsewhere, move || td.hold(&rig, 0).map(drop))
        };
        moved.wait(site.rig).unwrap();
        assert_eq!(td.vcpus().association(0), Some(elsewhere));
        site.play(&[]);
        assert_eq!(td.vcpus().association(0), Some(0));
    });
}

#[test]
fn memory_returns_after_sharing_and_shrinking() {
    const MAP_GPA: u64 = 0x1_0001;
    const SHARED: u64 = 1 << 47;
    with_site(TWO, |site| {
        site.tds.start(1).unwrap();
        let share = Act::Call(call(MAP_GPA, [SHARED, 4 << 20, 0, 0]));
        let script = site.play(&[Act::Touch(14 << 20), share]);
        assert_eq!(script.answers()[0].regs().r10, 0);
        let shared = site.scheduler.guest(1).unwrap();
        assert_eq!(shared.vm().shared().holding().pages, [0, 2]);
        site.tds.shrink(1, 12 << 20).unwrap();
        site.play(&[Act::Touch(14 << 20)]);
        assert!(
            ends::serve(site.scheduler, &site.tds),
            "it has no memory there"
        );
        assert_eq!(site.tds.state(1), State::Paused);
    });
}

/// PM1 enable and PM1 control, with the bits of the power button and of power-off.
const ENABLE_BUTTON: (u64, u64) = (0x602, 1 << 8);
const POWER_OFF: (u64, u64) = (0x604, 1 << 13);

#[test]
fn the_power_button_wakes_a_guest_that_listens() {
    with_site(TWO, |site| {
        site.tds.start(1).unwrap();
        site.play(&[halt()]);
        assert_eq!(site.tds.shut_down(1, 60, false), Ok(Listens::No));
        assert!(!site.scheduler.schedule(), "the guest noticed nothing");

        let guest = site.scheduler.guest(1).unwrap();
        guest
            .vm()
            .devices()
            .output(0x602, 2, ENABLE_BUTTON.1, Default::default);
        // Pin 9 of the I/O APIC: its register's number, then its value.
        for (offset, value) in [(0, 0x22), (0x10, 0x39)] {
            let devices = guest.vm().devices();
            devices.store(0xFEC0_0000 + offset, 4, value, Default::default());
        }
        assert_eq!(site.tds.shut_down(1, 60, false), Ok(Listens::Yes));
        let left = site.tds.asked_to_shut_down(1).unwrap();
        assert!(
            matches!(
                left,
                Asked::Waiting {
                    left_s: 1..=60,
                    force: false
                }
            ),
            "{left:?}"
        );
        // It is awake, and follows.
        site.play(&[write_port(POWER_OFF.0, 2, POWER_OFF.1)]);
        assert!(ends::serve(site.scheduler, &site.tds));
        assert_eq!(site.tds.state(1), State::Teardown);
        assert_eq!(site.tds.asked_to_shut_down(1), None);
        while site.tds.work() {}
        assert!(!site.tds.is_overdue());
    });
}

#[test]
fn a_guest_that_does_not_shut_down_runs_on_or_is_terminated() {
    with_site(TWO, |site| {
        for id in [1, 2] {
            site.tds.start(id).unwrap();
        }
        site.tds.shut_down(1, 0, false).unwrap();
        site.tds.shut_down(2, 0, true).unwrap();
        assert!(site.tds.is_overdue());
        while site.tds.work() {}
        assert_eq!(site.tds.state(1), State::Runnable);
        assert_eq!(
            site.tds.asked_to_shut_down(1),
            Some(Asked::Overdue { limit_s: 0 })
        );
        assert_eq!(site.tds.state(2), State::Reclaimed);
        assert!(!site.tds.is_overdue());
        // A new life was not asked for anything.
        site.tds.reset(1).unwrap();
        assert_eq!(site.tds.asked_to_shut_down(1), None);
        site.tds.pause(1).unwrap();
        assert_eq!(
            site.tds.shut_down(1, 0, true),
            Err(Error::State(State::Paused))
        );
        site.tds.destroy(1, Way::Terminate).unwrap();
    });
}

#[test]
fn a_td_that_is_forgotten_leaves_no_console_and_no_number() {
    with_site(TWO, |site| {
        site.tds.start(1).unwrap();
        assert!(site.scheduler.guest(1).is_some());
        assert_eq!(
            site.tds.undefine(1),
            Err(DefineError::State(State::Runnable))
        );
        site.tds.destroy(1, Way::Terminate).unwrap();
        assert!(site.scheduler.guest(1).is_some(), "what it said is kept");
        site.tds.undefine(1).unwrap();
        assert!(site.scheduler.guest(1).is_none());
        assert_eq!(site.tds.ids().collect::<Vec<_>>(), [2]);
        assert_eq!(site.tds.undefine(1), Err(DefineError::NoSuchTd));
        let again = (*site.tds.config(2).unwrap()).clone();
        let again = config::Td {
            name: "one".into(),
            ..again
        };
        assert_eq!(site.tds.add(again), Ok(3));
        assert_eq!(site.tds.find("one"), Some(3));
        assert_eq!(site.tds.ids().collect::<Vec<_>>(), [2, 3]);
    });
}
