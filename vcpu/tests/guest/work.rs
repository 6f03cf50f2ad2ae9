//! Work of devices without end: a CPU does a few parts of it before it enters the guest, and another CPU can help.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use devices::pci::{Config, Function, Identity, Served};
use devices::{Memory, Now};
use vcpu::{Stop, help_devices, serve_devices};

use crate::HLT;
use crate::kit::{Act, Rig, Script, Shape, Td, call};

/// Parts that a CPU does before it enters the guest.
const PARTS: u64 = 4;
const MEMORY: u64 = 64 << 20;

/// A function with parts of work.
#[derive(Debug)]
struct Toiler {
    config: Config,
    work: Arc<Work>,
}

#[derive(Debug, Default)]
struct Work {
    left: AtomicU64,
    done: AtomicU64,
    /// In the middle of a part, one side is told, and the other waited for.
    middle: Mutex<Option<(Sender<()>, Receiver<()>)>>,
}

impl Function for Toiler {
    fn config(&mut self) -> &mut Config {
        &mut self.config
    }

    fn serve(&mut self, _: &dyn Memory, _: Now) -> Served {
        let left = self.work.left.load(SeqCst);
        if left > 0 {
            self.work.left.store(left - 1, SeqCst);
            self.work.done.fetch_add(1, SeqCst);
        }
        if let Some((tell, go_on)) = self.work.middle.lock().unwrap().take() {
            tell.send(()).unwrap();
            go_on.recv().unwrap();
        }
        Served {
            has_more: left > 1,
            ..Served::default()
        }
    }
}

impl Work {
    fn done(&self) -> u64 {
        self.done.load(SeqCst)
    }

    /// Gives the device so many parts.
    fn make(&self, td: &Td<'_>, parts: u64) {
        self.left.store(parts + 1, SeqCst);
        td.vm.devices().pci().rouse();
        // One part of each function: the bridges have no more, and the device begins.
        for _ in 0..3 {
            let host = td.host();
            serve_devices(host.waker(), &host, || false);
        }
        assert_eq!(self.left.load(SeqCst), parts);
        self.done.store(0, SeqCst);
    }
}

/// Runs a test with a TD whose device has work.
fn with_work(parts: u64, test: impl FnOnce(&Td<'_>, &Work)) {
    let rig = Rig::new("");
    let work = Arc::<Work>::default();
    let toiler = Toiler {
        config: Config::of(Identity {
            vendor: 0x1234,
            device: 1,
            class: 0,
            revision: 0,
            subsystem: 0,
        }),
        work: work.clone(),
    };
    let td = Td::new(&rig, &Shape::default()).with_function(toiler);
    work.make(&td, parts);
    test(&td, &work);
    rig.audit();
}

/// Enters the guest once. Returns whether the vCPU's host was told that work is left.
fn enter(td: &Td<'_>) -> bool {
    let tally = td.vm.vcpus()[0].tally();
    let (host, before) = (td.host(), tally.entries.get());
    assert_eq!(td.run(&host, 0, &Script::default()), Stop::Yield);
    assert_eq!(tally.entries.get(), before + 1);
    let left = host.left_work.take();
    assert!(left.len() <= 1);
    !left.is_empty()
}

/// Lets the guest halt.
fn halt(td: &Td<'_>) {
    let script = Script::new([Act::Call(call(HLT, [0; 4]))]);
    assert_eq!(td.run(&td.host(), 0, &script), Stop::Halted);
}

#[test]
fn a_guest_is_entered_after_a_few_parts_of_its_devices_work() {
    with_work(2 * PARTS + 1, |td, work| {
        for (done, is_left) in [
            (PARTS, true),
            (2 * PARTS, true),
            (2 * PARTS + 1, false),
            (2 * PARTS + 1, false),
        ] {
            assert_eq!((enter(td), work.done()), (is_left, done));
        }
    });
}

#[test]
fn a_guest_does_not_sleep_before_its_work_is_done() {
    with_work(2 * PARTS + 1, |td, work| {
        let halts = [Act::Call(call(HLT, [0; 4])); 3];
        let script = Script::new(halts);
        assert_eq!(td.run(&td.host(), 0, &script), Stop::Halted);
        assert_eq!((script.left(), work.done()), (0, 2 * PARTS + 1));
    });
}

#[test]
fn vcpus_leave_work_to_the_one_cpu_that_helps() {
    with_work(10, |td, work| {
        let host = td.host();
        let mut parts = 0;
        help_devices(host.waker(), &host, || {
            assert_eq!(work.done(), parts);
            parts += 1;
            assert!(!enter(td));
            // A guest has nothing to wait for.
            if parts == 1 {
                halt(td);
            }
            help_devices(host.waker(), &host, || unreachable!("one helps"));
            assert_eq!(work.done(), parts - 1, "they do nothing");
            true
        });
        assert_eq!((work.done(), parts), (10, 10));
        assert!(!td.vm.devices().pci().has_any_work());
        assert!(host.woken.take().is_empty(), "there is nothing to do");
    });
}

#[test]
fn a_cpu_that_leaves_summons_a_vcpu_to_the_rest() {
    with_work(10, |td, work| {
        let host = td.host();
        let mut parts = 0..4;
        help_devices(host.waker(), &host, || {
            if parts.start == 0 {
                halt(td);
            }
            parts.next().is_some()
        });
        assert_eq!(work.done(), 4);
        assert_eq!(host.woken.take(), [0]);
        assert!(enter(td));
        assert_eq!(work.done(), 4 + PARTS);
    });
}

#[test]
fn a_cpu_that_helps_makes_way_for_one_that_converts_memory() {
    with_work(10, |td, work| {
        let (tell, in_the_middle) = channel();
        let (done, go_on) = channel();
        *work.middle.lock().unwrap() = Some((tell, go_on));
        let vm = &td.vm;
        thread::scope(|scope| {
            scope.spawn(move || {
                in_the_middle.recv().unwrap();
                assert!(!vm.end_memory_at(MEMORY), "a device works");
                done.send(()).unwrap();
            });
            let host = td.host();
            help_devices(host.waker(), &host, || true);
        });
        assert_eq!(work.done(), 1);
        assert!(vm.is_converting() && vm.devices().pci().has_work());
        // It does not begin again before that is done.
        let host = td.host();
        help_devices(host.waker(), &host, || true);
        assert_eq!(work.done(), 1);
        assert!(vm.end_memory_at(MEMORY));
        help_devices(host.waker(), &host, || true);
        assert_eq!(work.done(), 10);
    });
}
