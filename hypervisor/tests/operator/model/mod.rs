//! An operator who defines, changes, runs and forgets TDs, and puts and drops files, in random order and with random
//! arguments. A model says what each answer must be.

mod compare;
mod definitions;
mod lives;
mod transfers;

use std::collections::BTreeMap;
use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use base64::{Engine, engine::general_purpose::STANDARD};
use fastrand::Rng;
use host::td::Td;
use host::td::host::{GuestEnd, Listens, Runner};
use host::td::registry::Tds;
use serde_json::Value;
use sha2::{Digest, Sha256};
use vcpu::Wiring;

use super::files::{self, RigFiles};
use super::functions::Four;
use super::kit::{Server, Wired};
use super::operator::Operator;
use super::rig::{Rig, Setup};

const STEPS: u32 = 10_000;
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const FILES: [&str; 7] = ["f0", "f1", "f2", "f3", "f4", "f5", "image"];
const MEMORIES: [u64; 3] = [12, 14, 16];
const QUOTA: u64 = 256 << 20;

/// A runner whose guests listen to their power button or not.
#[derive(Default)]
struct Guests {
    listen: AtomicBool,
}

impl Runner for Guests {
    fn prepare(&self, _: &Td) -> Result<(), String> {
        Ok(())
    }

    fn wiring(&self, td: &Td, index: u16) -> Option<Wiring> {
        Wired.wiring(td, index)
    }

    fn start(&self, _: &Arc<Td>) {}

    fn end(&self, _: &Td) {}

    fn shrunk(&self, _: &Td) -> bool {
        true
    }

    fn guest_end(&self, _: &Td) -> Option<GuestEnd> {
        None
    }

    fn work_waits(&self) {}

    fn press_power_button(&self, _: &Td) -> Listens {
        match self.listen.load(SeqCst) {
            true => Listens::Yes,
            false => Listens::No,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Definition {
    image: String,
    memory: u64,
    vcpus: u64,
    shares: u64,
    cap: Option<u64>,
    /// The PCI functions, by their addresses.
    pci: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Created,
    Paused,
    Runnable,
    Terminating,
    Teardown,
    Reclaimed,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Paused => "paused",
            Self::Runnable => "runnable",
            Self::Terminating => "terminating",
            Self::Teardown => "teardown",
            Self::Reclaimed => "reclaimed",
        }
    }

    const fn lives(self) -> bool {
        !matches!(self, Self::Created | Self::Reclaimed)
    }
}

#[derive(Clone, Debug)]
struct ModelTd {
    id: u64,
    defined: Definition,
    /// The definition from which the current life was built.
    built: Definition,
    state: State,
    /// A request to shut down: its limit is over or an hour away, and the TD is terminated then or not.
    asked: Option<(bool, bool)>,
    is_overdue: bool,
}

#[derive(Clone, Debug)]
struct Upload {
    content: Vec<u8>,
    written: usize,
}

#[derive(Default)]
struct Model {
    tds: BTreeMap<&'static str, ModelTd>,
    /// The files that were put: their content.
    files: BTreeMap<&'static str, Vec<u8>>,
    uploads: BTreeMap<&'static str, Upload>,
    next_id: u64,
}

/// The expected answer: its code if it is an error, and the values of fields if it is none.
type Expected = Result<Vec<(&'static str, Value)>, &'static str>;

struct World<'a, 'h> {
    random: Rng,
    model: Model,
    operator: Operator<'a, 'h, Rig>,
    tds: &'a Tds<'h, Rig>,
    guests: &'a Guests,
    server: &'a Server,
}

fn field(name: &'static str, value: impl Into<Value>) -> (&'static str, Value) {
    (name, value.into())
}

impl Model {
    fn has_file(&self, name: &str) -> bool {
        name == "image" || self.files.contains_key(name)
    }

    /// Returns whether a TD can be built from a file.
    fn is_image(&self, name: &str, image: &[u8]) -> bool {
        name == "image" || self.files.get(name).is_some_and(|content| content == image)
    }

    fn begin_life(&mut self, name: &str, state: State) {
        let td = self.tds.get_mut(name).unwrap();
        td.built = td.defined.clone();
        td.state = state;
        td.asked = None;
        td.is_overdue = false;
    }

    /// Does the work that the machine does when it has time.
    fn work(&mut self) {
        for td in self.tds.values_mut() {
            if let Some((true, force)) = td.asked {
                td.asked = None;
                td.is_overdue = true;
                if force && td.state == State::Runnable {
                    td.state = State::Terminating;
                }
            }
            if matches!(td.state, State::Terminating | State::Teardown) {
                td.state = State::Reclaimed;
            }
        }
    }
}

impl World<'_, '_> {
    fn any<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.usize(..of.len())]
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.u32(..100) < percent
    }

    /// Takes one step: a line, and what the model says about its answer.
    fn step(&mut self) {
        let (line, expected) = match self.random.u32(..100) {
            0..=9 => self.define(),
            10..=15 => self.undefine(),
            16..=24 => self.set(),
            25..=27 => self.attach_or_detach(),
            28..=37 => self.start_or_create(),
            38..=45 => self.pause_or_resume(),
            46..=51 => self.end(),
            52..=53 => self.reset(),
            54..=60 => self.shut_down(),
            61..=68 => self.begin(),
            69..=78 => self.put(),
            79..=84 => self.complete(),
            85..=90 => self.drop_file(),
            91..=93 => self.garbage(),
            _ => {
                while self.tds.work() {}
                self.model.work();
                return;
            }
        };
        let answer = self.operator.ask(&line);
        match expected {
            Ok(fields) => {
                assert_eq!(answer["ok"], true, "{line}: {answer}");
                for (name, value) in fields {
                    assert_eq!(answer[name], value, "{name} of {line}: {answer}");
                }
            }
            Err(code) => {
                assert_eq!(answer["ok"], false, "{line}: {answer}");
                assert_eq!(answer["code"], code, "{line}: {answer}");
                let said = answer["error"].as_str().unwrap();
                assert!(!said.is_empty() && !said.contains('\n'), "{line}: {answer}");
            }
        }
    }

    fn garbage(&mut self) -> (String, Expected) {
        let (line, code) = self.any(&[
            ("td define", "missing-argument"),
            ("td define \"", "invalid-argument"),
            ("td undefine", "missing-argument"),
            ("td undefine 0", "no-such-td"),
            ("td undefine 4294967296", "no-such-td"),
            ("td set a", "missing-argument"),
            ("td attach nobody 1:0.0", "no-such-td"),
            ("td attach a", "missing-argument"),
            ("td shutdown nobody 1", "no-such-td"),
            ("td shutdown a 99999999999999999999", "invalid-argument"),
            ("file begin ../x 5", "invalid-argument"),
            ("file begin x", "missing-argument"),
            ("file begin x 18446744073709551615", "no-resources"),
            ("file end f0 12", "invalid-argument"),
            ("file drop nothing", "no-such-file"),
            ("file show nothing", "no-such-file"),
            ("file put x 0 QUJD", "no-such-file"),
        ]);
        (line.into(), Err(code))
    }
}

#[test]
fn ten_thousand_steps_are_answered_as_the_model_says_and_nothing_leaks() {
    let seed = env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or(0x5EA_3A2C);
    // One CPU: thousands of TDs are built and torn down, and CPUs that wait for each other take the time.
    let server = Server::of(&Setup {
        packages: [0].into(),
        ..Setup::default()
    });
    let memory = RigFiles(server.rig.clone());
    let guests = Guests::default();
    let tds = files::host(&server, &memory, &guests);
    let mut world = World {
        random: Rng::with_seed(seed),
        model: Model::default(),
        operator: Operator::new(&tds).with_pci(&Four),
        tds: &tds,
        guests: &guests,
        server: &server,
    };
    println!("SEED={seed} repeats this run");
    for step in 0..STEPS {
        world.step();
        if step % 10 == 0 {
            world.compare();
        }
    }
    for name in world.model.tds.clone().into_keys() {
        world.operator.succeed(&format!("td destroy {name}"));
        world.operator.succeed(&format!("td undefine {name}"));
    }
    let names = world.model.files.clone().into_keys();
    for name in names.chain(world.model.uploads.clone().into_keys()) {
        world.operator.succeed(&format!("file drop {name}"));
    }
    drop(world);
    drop(tds);
    server.assert_spotless();
}
