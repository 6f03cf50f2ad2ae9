//! TDs that have physical functions: taken for each life, and given back before their memory is.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use devices::pci::{Identity, Interrupts, Physical, Shape};
use devices::{Message, Place, Trigger};
use host::functions::{Functions, Sink, Taken};
use host::sched::{FunctionCounts, ends};
use host::td::end::Way;
use host::td::error::Error;
use host::td::life::State;
use mm::shared::{Mirror, MirrorError, Page};
use seam::abi::Leaf;
use seam::abi::Status;
use seam::address::Gpa;
use vcpu::End;

use super::kit::Server;
use super::site::{Act, Site, call, on_site};

const IO: u64 = 0x1E;
const MAP_GPA: u64 = 0x1_0001;
const SHARED: u64 = 1 << 47;
const BLOCK: u64 = 2 << 20;
/// One TD with two functions.
const TD: &str = "[[td]]\nname = \"one\"\nmemory = \"16M\"\nvcpus = 1\n\
    [[td.pci]]\ndevice = \"0000:01:00.0\"\n[[td.pci]]\ndevice = \"8086:1521\"\n";

/// The functions of a machine, and their domain.
#[derive(Clone, Debug, Default)]
struct Machine(Arc<Mutex<Books>>);

#[derive(Default)]
struct Books {
    /// The TD and the devices of each life that has functions or has had some.
    taken: Vec<(String, Vec<String>)>,
    given: usize,
    /// The memory that devices reach: bytes by address.
    reached: BTreeMap<u64, u64>,
    sink: Option<Arc<dyn Sink>>,
    refuses_to_take: bool,
    refuses_to_stop: bool,
    problem: Option<String>,
    /// Runs when functions are given back.
    probe: Option<Box<dyn FnMut() + Send>>,
}

impl std::fmt::Debug for Books {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Books").finish_non_exhaustive()
    }
}

impl Machine {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap()
    }

    fn reached(&self) -> u64 {
        self.books().reached.values().sum()
    }

    /// Raises an interrupt of a function.
    fn interrupt(&self, site: &Site<'_>, function: usize, vector: u8) {
        let sink = self.books().sink.clone();
        let message = Message {
            trigger: Trigger::Fixed,
            vector,
            destination: 0,
            is_logical: false,
        };
        sink.unwrap().deliver(function, message, site.scheduler);
    }
}

impl Functions for Machine {
    fn take(&self, td: &str, devices: &[String]) -> Result<Box<dyn Taken>, String> {
        let mut books = self.books();
        if books.refuses_to_take {
            return Err("PCI function 0000:01:00.0 can't be reset".into());
        }
        assert_eq!(books.taken.len(), books.given, "they are taken once");
        assert!(books.reached.is_empty());
        books.taken.push((td.into(), devices.into()));
        Ok(Box::new(self.clone()))
    }
}

impl Taken for Machine {
    fn functions(&self) -> Vec<Arc<dyn Physical>> {
        (0..2).map(|_| Arc::new(Card::new()) as _).collect()
    }

    fn mirror(&self) -> Arc<dyn Mirror> {
        Arc::new(self.clone())
    }

    fn connect(&self, sink: Arc<dyn Sink>) {
        self.books().sink = Some(sink);
    }

    fn problem(&self) -> Option<String> {
        self.books().problem.clone()
    }

    fn give_back(&self) -> Result<(), String> {
        let probe = self.books().probe.take();
        if let Some(mut probe) = probe {
            probe();
        }
        let mut books = self.books();
        if books.refuses_to_stop {
            return Err("a VT-d unit does not answer".into());
        }
        books.given += 1;
        books.reached.clear();
        let sink = books.sink.take();
        drop(books);
        drop(sink);
        Ok(())
    }
}

impl Mirror for Machine {
    fn map(&self, gpa: Gpa, page: Page) -> Result<(), MirrorError> {
        let before = self.books().reached.insert(gpa.0, page.size.bytes());
        assert_eq!(before, None);
        Ok(())
    }

    fn unmap(&self, range: Range<u64>) -> Result<(), MirrorError> {
        self.books().reached.retain(|gpa, _| !range.contains(gpa));
        Ok(())
    }
}

/// A function without memory and interrupts.
#[derive(Debug)]
struct Card(Shape);

impl Card {
    fn new() -> Self {
        Self(Shape {
            identity: Identity {
                vendor: 0x8086,
                device: 0x1521,
                class: 0x02_0000,
                revision: 1,
                subsystem: 0,
            },
            memory: Vec::new(),
            interrupts: Interrupts::None,
            capabilities: Vec::new(),
            has_reset: false,
        })
    }
}

impl Physical for Card {
    fn shape(&self) -> &Shape {
        &self.0
    }

    fn read(&self, _: u16, _: u8) -> u32 {
        0
    }

    fn write(&self, _: u16, _: u8, _: u32) {}

    fn load(&self, _: usize, _: Place) -> u64 {
        0
    }

    fn store(&self, _: usize, _: Place, _: u64) {}

    fn set_master(&self, _: bool) {}

    fn set_interrupts(&self, _: bool) {}

    fn direct(&self, _: u16, _: Option<Message>) -> bool {
        true
    }

    fn reset(&self) {}

    fn is_away(&self) -> bool {
        false
    }
}

fn with_machine(text: &str, test: impl FnOnce(&Site<'_>, &Machine)) -> (Server, Machine) {
    let server = Server::new("");
    let machine = Machine::default();
    server.rig.set_functions(machine.clone());
    on_site(&server, text, |site| test(site, &machine));
    (server, machine)
}

fn write_port(port: u64, size: u64, value: u64) -> Act {
    Act::Call(call(IO, [size, 1, port, value]))
}

fn share(gpa: u64, bytes: u64) -> Act {
    Act::Call(call(MAP_GPA, [SHARED | gpa, bytes, 0, 0]))
}

#[test]
fn functions_reach_what_the_td_shares_until_they_are_given_back() {
    let (server, machine) = with_machine(TD, |site, machine| {
        site.tds.start(1).unwrap();
        let devices = ["0000:01:00.0", "8086:1521"].map(String::from);
        let expected = [("one".into(), devices.into())];
        assert_eq!(machine.books().taken, expected);
        site.play(&[share(0, BLOCK)]);
        assert_eq!(machine.reached(), BLOCK);
        site.play(&[Act::Call(call(MAP_GPA, [0, BLOCK, 0, 0]))]);
        assert_eq!(machine.reached(), 0);
        site.play(&[share(BLOCK, BLOCK)]);
        // The memory is there until no device reaches it.
        let guest = site.scheduler.guest(1).unwrap();
        let probe = move || assert_eq!(guest.vm().shared().holding().pages, [0, 1]);
        machine.books().probe = Some(Box::new(probe));
        site.tds.destroy(1, Way::Terminate).unwrap();
        assert_eq!(machine.books().given, 1);
        assert_eq!(machine.reached(), 0);
        assert!(machine.books().probe.is_none());
        let shared = site.scheduler.guest(1).unwrap();
        assert_eq!(shared.vm().shared().holding().pages, [0, 0]);
    });
    server.assert_spotless();
    assert_eq!(machine.books().given, 1);
}

#[test]
fn functions_that_cannot_be_had_are_the_reason_why_a_td_is_not_built() {
    let (server, machine) = with_machine(TD, |site, machine| {
        machine.books().refuses_to_take = true;
        let refused = site.tds.start(1).unwrap_err();
        let why = "PCI function 0000:01:00.0 can't be reset";
        assert_eq!(refused, Error::Runner(why.into()));
        assert_eq!(machine.books().given, 0);
        machine.books().refuses_to_take = false;
        site.tds.start(1).unwrap();
    });
    server.assert_spotless();
    assert_eq!(machine.books().given, 1);
    // A machine that gives none.
    let server = Server::new("");
    on_site(&server, TD, |site| {
        let refused = site.tds.start(1).unwrap_err().to_string();
        assert!(refused.contains("on this machine"), "{refused}");
    });
    server.assert_spotless();
}

#[test]
fn a_build_that_fails_gives_its_functions_back() {
    let (server, machine) = with_machine(TD, |site, machine| {
        let fault = Status(0xC000_0100_0000_0000);
        for leaf in [Leaf::VpCreate, Leaf::VpInit, Leaf::MrFinalize] {
            site.rig.refuse(leaf, 1..=1, fault);
            site.tds.start(1).unwrap_err();
            let books = machine.books();
            assert_eq!(books.taken.len(), books.given, "{leaf:?}");
            assert!(books.sink.is_none());
        }
    });
    server.rig.audit();
    assert_eq!(server.rig.out(), (0, 0));
    assert_eq!(machine.books().given, 3);
}

#[test]
fn memory_of_functions_that_do_not_stop_goes_to_quarantine() {
    let (server, machine) = with_machine(TD, |site, machine| {
        site.tds.start(1).unwrap();
        site.play(&[share(0, BLOCK + 0x3000)]);
        machine.books().refuses_to_stop = true;
        let td = site.tds.get(1).unwrap();
        site.tds.destroy(1, Way::Terminate).unwrap();
        assert_eq!(machine.reached(), BLOCK + 0x3000, "they may go on");
        let problem = td.notes().problem;
        let why = "a VT-d unit does not answer; its shared memory is in quarantine";
        assert_eq!(problem.as_deref(), Some(why));
        assert_eq!(site.tds.state(1), State::Reclaimed);
    });
    // The ledger's sums are checked here.
    assert_eq!(server.rig.out(), (0, BLOCK + 0x3000));
    server.rig.audit();
    assert_eq!(machine.books().given, 0);
}

#[test]
fn a_td_that_begins_anew_takes_its_functions_again() {
    let (server, machine) = with_machine(TD, |site, machine| {
        site.tds.start(1).unwrap();
        site.play(&[share(0, BLOCK), write_port(0xCF9, 1, 6)]);
        assert!(ends::serve(site.scheduler, &site.tds));
        assert_eq!(site.tds.state(1), State::Runnable);
        let books = machine.books();
        assert_eq!((books.taken.len(), books.given), (2, 1));
        assert!(books.reached.is_empty(), "the new life shares nothing yet");
    });
    server.assert_spotless();
    assert_eq!(machine.books().given, 2);
}

#[test]
fn a_serious_error_of_a_function_ends_its_td() {
    let (server, _) = with_machine(TD, |site, machine| {
        site.tds.start(1).unwrap();
        site.play(&[]);
        assert!(!ends::serve(site.scheduler, &site.tds));
        let why = "PCI function 0000:01:00.0: a malformed packet";
        machine.books().problem = Some(why.into());
        // It is looked at now and then.
        site.rig.pass(100_000_000);
        assert!(ends::serve(site.scheduler, &site.tds));
        let guest = site.scheduler.guest(1).unwrap();
        assert_eq!(guest.vm().end(), Some(&End::Device(why.into())));
        assert_eq!(site.scheduler.problem(1).as_deref(), Some(why));
        assert_eq!(site.tds.state(1), State::Paused, "it is kept as it is");
    });
    server.assert_spotless();
}

#[test]
fn interrupts_reach_the_vcpus_and_are_counted_until_the_end() {
    let (server, machine) = with_machine(TD, |site, machine| {
        site.tds.start(1).unwrap();
        for (function, vector) in [(0, 0x41), (1, 0x42), (1, 0x43), (7, 0x44)] {
            machine.interrupt(site, function, vector);
        }
        let guest = site.scheduler.guest(1).unwrap();
        let pending = guest.vm().vcpus()[0].descriptor().pending();
        assert_eq!(pending[1], 0xF << 1, "of vectors 0x40 to 0x7F");
        // A configuration access by ports.
        let read = Act::Call(call(IO, [4, 0, 0xCFC, 0]));
        let script = site.play(&[write_port(0xCF8, 4, 0x8000_1000), read]);
        assert_eq!(script.answers()[1].regs().r11, 0x1521_8086);
        let expected = [(0, 1), (1, 2)].map(|(config, interrupts)| FunctionCounts {
            config,
            interrupts,
            ..FunctionCounts::default()
        });
        assert_eq!(site.scheduler.function_counts(1), expected);
        let sink = Arc::downgrade(machine.books().sink.as_ref().unwrap());
        site.tds.destroy(1, Way::Terminate).unwrap();
        assert!(sink.upgrade().is_none(), "nothing refers to the guest");
        assert_eq!(site.scheduler.function_counts(1), expected);
        assert_eq!(site.scheduler.function_counts(9), []);
    });
    server.assert_spotless();
    assert_eq!(machine.books().given, 1);
}
