//! Work of a TD's devices that idle CPUs do.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;

use host::platform::Running;
use host::sched::guest::Guest;
use host::td::end::Way;
use host::td::life::State;
use vcpu::PhysicalCpu;

use super::kit::Server;
use super::site::{Act, Site, call, on_site};

const HLT: u64 = 0xC;
const US: u64 = 1_000;
const MS: u64 = 1_000_000;

/// A TD with four cards: its bus has six functions. All of them look for work when they are roused, a part for each, of which
/// the vCPU's CPU does four before it enters the guest.
const TD: &str = "[[network]]\nname = \"lan\"\n\
    [[td]]\nname = \"one\"\nmemory = \"16M\"\nvcpus = 1\n";
const CARD: &str = "[[td.net]]\nnetwork = \"lan\"\n";
const LEFT: u64 = 2;

/// Runs `test` on a server whose CPUs `idle` have nothing to do, with a TD that runs and has the configuration `more`.
fn with_td(idle: &[u32], more: &str, test: impl FnOnce(&Site<'_>, &Arc<Guest>)) {
    let server = Server::new("");
    let text = format!("{TD}{more}{}", CARD.repeat(4));
    on_site(&server, &text, |site| {
        for cpu in idle {
            site.rig
                .act_as(*cpu, || assert!(!site.scheduler.schedule()));
            assert!(!help(site, *cpu), "there is nothing to do");
        }
        site.tds.start(1).unwrap();
        test(site, &site.scheduler.guest(1).unwrap());
    });
    server.assert_spotless();
}

/// Lets a CPU help that has nothing else to do.
fn help(site: &Site<'_>, cpu: u32) -> bool {
    site.rig.act_as(cpu, || {
        site.rig.attention(cpu).clear();
        site.scheduler.help()
    })
}

/// Gives the devices more work than is done at once, and enters the guest.
fn leave_work(site: &Site<'_>, guest: &Guest) {
    let bus = guest.vm().devices().pci();
    bus.rouse();
    site.play(&[]);
    assert!(bus.has_work());
}

/// Lets time pass on a CPU whenever it takes its interrupts.
fn let_time_pass(site: &Site<'_>, cpu: u32, ticks: u64) {
    let rig = site.rig.clone();
    site.rig.set_interrupts(cpu, move || rig.pass(ticks));
}

/// Lets CPU 2 help, and runs `act` on CPU 0 before the first part.
fn while_helped(site: &Site<'_>, guest: &Guest, act: impl FnOnce()) {
    let (tell, begun) = channel();
    let (done, go_on) = channel();
    let mut is_first = true;
    site.rig.set_interrupts(2, move || {
        if core::mem::take(&mut is_first) {
            tell.send(()).unwrap();
            go_on.recv().unwrap();
        }
    });
    thread::scope(move |scope| {
        scope.spawn(|| assert!(help(site, 2)));
        begun.recv().unwrap();
        assert!(guest.vm().devices().pci().is_helped());
        act();
        done.send(()).unwrap();
    });
    assert!(!guest.vm().devices().pci().is_helped());
}

#[test]
fn an_idle_cpu_does_what_is_left_and_the_td_pays() {
    with_td(&[2], "", |site, guest| {
        let pokes = site.rig.pokes(2);
        leave_work(site, guest);
        assert_eq!(site.rig.pokes(2), pokes + 1);
        assert!(site.rig.attention(2).is_poked());
        let_time_pass(site, 2, 3 * US);
        assert!(help(site, 2));
        assert!(!guest.vm().devices().pci().has_any_work());
        assert_eq!(site.scheduler.helped_us(1), 3 * LEFT);
        assert!(!help(site, 2), "once is enough");
    });
}

#[test]
fn without_an_idle_cpu_the_vcpu_goes_on_after_the_guest_had_its_time() {
    with_td(&[], "", |site, guest| {
        let begin = site.rig.tsc();
        // Two microseconds a part are less than what a guest gets at least, and thirty are more.
        for (part, rest) in [(2 * US, 50 * US), (30 * US, 120 * US)] {
            let_time_pass(site, 0, part);
            let begin = site.rig.tsc().max(begin);
            leave_work(site, guest);
            assert_eq!(site.rig.timer(0), Some(begin + 4 * part + rest));
            site.play(&[]);
            assert!(!guest.vm().devices().pci().has_any_work());
        }
        assert_eq!(site.scheduler.helped_us(1), 0);
    });
}

#[test]
fn a_cpu_that_is_wanted_leaves_and_a_vcpu_wakes_to_do_the_rest() {
    with_td(&[2], "", |site, guest| {
        leave_work(site, guest);
        while_helped(site, guest, || {
            // The guest has nothing to wait for, and the vCPU is not the one to work.
            let script = site.play(&[Act::Call(call(HLT, [0; 4]))]);
            assert_eq!(script.left(), 0);
            site.rig.attention(0).clear();
            assert!(!site.scheduler.schedule(), "it sleeps");
            site.rig.attention(2).poke();
        });
        let bus = guest.vm().devices().pci();
        assert!(bus.has_work(), "nothing was done");
        assert!(site.rig.attention(0).is_poked());
        site.play(&[]);
        assert!(!bus.has_any_work());
    });
}

#[test]
fn work_that_comes_while_a_cpu_helps_is_done_by_it() {
    with_td(&[2], "", |site, guest| {
        leave_work(site, guest);
        let bus = guest.vm().devices().pci();
        while_helped(site, guest, || bus.rouse());
        assert!(!bus.has_any_work());
    });
}

#[test]
fn a_cpu_leaves_when_a_vcpu_becomes_ready_for_it() {
    with_td(&[2], "", |site, guest| {
        leave_work(site, guest);
        while_helped(site, guest, || {
            site.play(&[Act::Call(call(HLT, [0; 4]))]);
            // CPU 0 has not looked for more, so that CPU 2 is the idle one.
            site.rig.act_as(2, || assert!(!site.scheduler.schedule()));
            let pokes = site.rig.pokes(2);
            assert!(site.scheduler.post_nmi(1, 0));
            assert_eq!(site.rig.pokes(2), pokes + 1);
        });
        assert!(guest.vm().devices().pci().has_work(), "nothing was done");
        site.play(&[]);
        assert!(!guest.vm().devices().pci().has_any_work());
    });
}

#[test]
fn work_without_end_takes_a_turn_of_a_cpu_at_most() {
    for (cap, turn) in [("", 12), ("cap = 5\n", 4)] {
        with_td(&[2], cap, |site, guest| {
            leave_work(site, guest);
            let (rig, own) = (site.rig.clone(), guest.clone());
            site.rig.set_interrupts(2, move || {
                rig.pass(4 * MS);
                own.vm().devices().pci().rouse();
            });
            assert!(help(site, 2));
            assert!(guest.vm().devices().pci().has_work());
            assert_eq!(site.scheduler.helped_us(1), turn * 1000);
            let is_used_up = !cap.is_empty();
            assert_eq!(site.scheduler.schedule(), !is_used_up, "{cap}");
        });
    }
}

#[test]
fn an_offer_that_is_not_taken_is_made_to_another_cpu() {
    with_td(&[2, 3], "", |site, guest| {
        leave_work(site, guest);
        let pokes = [2, 3].map(|cpu| site.rig.pokes(cpu));
        let more = || [2, 3].map(|cpu| site.rig.pokes(cpu) - pokes[cpu as usize - 2]);
        guest.vm().devices().pci().rouse();
        site.play(&[]);
        assert_eq!(more(), [0, 0], "one CPU is asked");
        site.rig.pass(2 * MS);
        leave_work(site, guest);
        assert_eq!(more(), [0, 1]);
        assert!(!help(site, 2), "it is late");
        assert!(help(site, 3));
        assert!(!guest.vm().devices().pci().has_any_work());
    });
}

#[test]
fn a_td_ends_while_a_cpu_helps() {
    with_td(&[2], "", |site, guest| {
        leave_work(site, guest);
        while_helped(site, guest, || {
            site.tds.destroy(1, Way::Terminate).unwrap();
            assert_eq!(site.tds.state(1), State::Reclaimed);
            assert_eq!(guest.vm().shared().holding().tables, 0);
        });
        // Nothing comes of an offer that outlives its TD.
        site.tds.start(1).unwrap();
        let next = site.scheduler.guest(1).unwrap();
        assert!(!help(site, 2));
        leave_work(site, &next);
        site.tds.destroy(1, Way::Terminate).unwrap();
        assert!(help(site, 2));
        assert!(next.vm().devices().pci().has_any_work(), "no part was done");
    });
}

#[test]
fn a_paused_td_s_devices_rest() {
    with_td(&[2], "", |site, guest| {
        leave_work(site, guest);
        while_helped(site, guest, || site.tds.pause(1).unwrap());
        let bus = guest.vm().devices().pci();
        assert!(bus.has_work());
        site.rest();
        while site.scheduler.schedule() {}
        assert!(bus.has_work());
        site.tds.resume(1).unwrap();
        site.play(&[]);
        assert!(!bus.has_any_work());
    });
}

#[test]
fn no_cpu_helps_where_the_threads_of_a_core_keep_to_one_td() {
    let server = Server::new("");
    let text = format!("[host]\nsmt = \"same-td\"\n{TD}{}", CARD.repeat(4));
    on_site(&server, &text, |site| {
        assert!(!help(site, 2));
        site.tds.start(1).unwrap();
        let guest = site.scheduler.guest(1).unwrap();
        let pokes = site.rig.pokes(2);
        leave_work(site, &guest);
        assert!(!help(site, 2));
        assert_eq!(site.rig.pokes(2), pokes);
    });
    server.assert_spotless();
}
