//! An operator who defines, changes, runs and forgets TDs, and puts and drops files, in random order and with random
//! arguments. A model says what each answer must be.

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
    /// What the current life was built from.
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

/// What an answer must be: its code if it is an error, and the values of fields if it is none.
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

    /// What the machine does when it has time.
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
            16..=27 => self.set(),
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

    fn define(&mut self) -> (String, Expected) {
        let name = self.any(&NAMES);
        let definition = Definition {
            image: self.any(&FILES).into(),
            memory: self.any(&MEMORIES),
            vcpus: self.random.u64(1..3),
            shares: 100,
            cap: self.chance(30).then_some(50),
        };
        let mut text = format!(
            "name = \"{name}\"\nimage = \"{}\"\nmemory = \"{}M\"\nvcpus = {}\n",
            definition.image, definition.memory, definition.vcpus
        );
        if let Some(cap) = definition.cap {
            text += &format!("cap = {cap}\n");
        }
        let mistake = self.chance(15);
        if mistake {
            text += self.any(&[
                "colour = 1\n",
                "shares = 0\n",
                "this is no TOML\n",
                "[host]\n",
                "max_4k = \"3M\"\n",
                "kernel = \"nowhere\"\n",
                "vcpus = 2\n",
            ]);
        }
        let line = format!("td define {}", serde_json::to_string(&text).unwrap());
        if mistake || !self.model.has_file(&definition.image) {
            return (line, Err("invalid-definition"));
        }
        if self.model.tds.contains_key(name) {
            return (line, Err("exists"));
        }
        self.model.next_id += 1;
        let id = self.model.next_id;
        let td = ModelTd {
            id,
            built: definition.clone(),
            defined: definition,
            state: State::Created,
            asked: None,
            is_overdue: false,
        };
        self.model.tds.insert(name, td);
        (line, Ok(vec![field("id", id), field("state", "created")]))
    }

    /// Returns a name, by its number sometimes, and the TD if there is one.
    fn td(&mut self) -> (&'static str, String, Option<ModelTd>) {
        let name = self.any(&NAMES);
        let td = self.model.tds.get(name).cloned();
        let word = match &td {
            Some(td) if self.chance(20) => td.id.to_string(),
            _ => name.to_owned(),
        };
        (name, word, td)
    }

    fn undefine(&mut self) -> (String, Expected) {
        let (name, word, td) = self.td();
        let expected = match td {
            None => Err("no-such-td"),
            Some(td) if td.state.lives() => Err("wrong-state"),
            Some(td) => {
                self.model.tds.remove(name);
                Ok(vec![field("id", td.id), field("name", name)])
            }
        };
        (format!("td undefine {word}"), expected)
    }

    fn set(&mut self) -> (String, Expected) {
        let (name, word, td) = self.td();
        let file = self.any(&FILES);
        let (key, value) = self.any(&[
            ("shares", "200"),
            ("shares", "0"),
            ("cap", "70"),
            ("cap", "default"),
            ("memory", "14M"),
            ("memory", "\"16M\""),
            ("memory", "3M"),
            ("memory", "default"),
            ("vcpus", "2"),
            ("vcpus", "default"),
            ("vcpus", "two"),
            ("image", ""),
            ("image", ""),
            ("image", "default"),
            ("initrd", "image"),
            ("name", "z"),
            ("colour", "1"),
        ]);
        let value = if value.is_empty() { file } else { value };
        let line = format!("td set {word} {key} {value}");
        if td.is_none() {
            return (line, Err("no-such-td"));
        }
        let has_file = self.model.has_file(file);
        let td = self.model.tds.get_mut(name).unwrap();
        let defined = &mut td.defined;
        let applies_now = match (key, value) {
            ("shares", "200") => {
                defined.shares = 200;
                true
            }
            ("cap", value) => {
                defined.cap = value.parse().ok();
                true
            }
            ("memory", "14M" | "\"16M\"") => {
                defined.memory = if value == "14M" { 14 } else { 16 };
                false
            }
            ("vcpus", "2" | "default") => {
                defined.vcpus = if value == "2" { 2 } else { 1 };
                false
            }
            ("image", name) if name != "default" && has_file => {
                defined.image = name.into();
                false
            }
            _ => return (line, Err("invalid-definition")),
        };
        let applies_now = applies_now || !td.state.lives();
        (
            line,
            Ok(vec![field("applies_now", applies_now), field("key", key)]),
        )
    }

    fn start_or_create(&mut self) -> (String, Expected) {
        let (name, word, td) = self.td();
        let start = self.chance(70);
        let line = format!("td {} {word}", if start { "start" } else { "create" });
        let Some(td) = td else {
            return (line, Err("no-such-td"));
        };
        let next = if start {
            State::Runnable
        } else {
            State::Paused
        };
        let expected = match td.state {
            State::Created | State::Reclaimed => {
                if !self.model.is_image(&td.defined.image, &self.server.image) {
                    return (line, Err("unsupported"));
                }
                self.model.begin_life(name, next);
                Ok(vec![field("state", next.name()), field("id", td.id)])
            }
            State::Paused if start => {
                self.model.tds.get_mut(name).unwrap().state = State::Runnable;
                Ok(vec![field("state", "runnable")])
            }
            _ => Err("wrong-state"),
        };
        (line, expected)
    }

    fn pause_or_resume(&mut self) -> (String, Expected) {
        let (name, word, td) = self.td();
        let (verb, from, to) = match self.chance(50) {
            true => ("pause", State::Runnable, State::Paused),
            false => ("resume", State::Paused, State::Runnable),
        };
        let expected = match td {
            None => Err("no-such-td"),
            Some(td) if td.state == from => {
                self.model.tds.get_mut(name).unwrap().state = to;
                Ok(vec![field("state", to.name())])
            }
            Some(_) => Err("wrong-state"),
        };
        (format!("td {verb} {word}"), expected)
    }

    fn end(&mut self) -> (String, Expected) {
        let (name, word, td) = self.td();
        let (verb, to) = self.any(&[
            ("terminate", State::Teardown),
            ("destroy", State::Reclaimed),
            ("destroy --dynamic", State::Reclaimed),
            ("retry", State::Reclaimed),
        ]);
        let line = format!("td {verb} {word}");
        let Some(td) = td else {
            return (line, Err("no-such-td"));
        };
        let expected = match td.state {
            // What is left of a teardown is done at once.
            State::Teardown if verb == "retry" => {
                self.model.tds.get_mut(name).unwrap().state = to;
                Ok(vec![field("already", false), field("state", to.name())])
            }
            _ if verb == "retry" => Err("wrong-state"),
            State::Created | State::Reclaimed => Ok(vec![
                field("already", true),
                field("state", td.state.name()),
            ]),
            state => {
                self.model.tds.get_mut(name).unwrap().state = to;
                // A request that waits for the end has done something, whoever began it.
                let already = state == State::Teardown && to == State::Teardown;
                Ok(vec![field("already", already), field("state", to.name())])
            }
        };
        (line, expected)
    }

    fn reset(&mut self) -> (String, Expected) {
        let (name, word, td) = self.td();
        let line = format!("td reset {word}");
        let Some(td) = td else {
            return (line, Err("no-such-td"));
        };
        let next = match td.state {
            State::Runnable => State::Runnable,
            _ => State::Paused,
        };
        if self.model.is_image(&td.defined.image, &self.server.image) {
            self.model.begin_life(name, next);
            return (line, Ok(vec![field("state", next.name())]));
        }
        // The old life is over, and the new one does not begin.
        let td = self.model.tds.get_mut(name).unwrap();
        if td.state.lives() {
            td.state = State::Reclaimed;
        }
        (line, Err("unsupported"))
    }

    fn shut_down(&mut self) -> (String, Expected) {
        let (name, word, td) = self.td();
        let (now, force, listens) = (self.chance(60), self.chance(50), self.chance(50));
        self.guests.listen.store(listens, SeqCst);
        let seconds = if now { "0" } else { "3600" };
        let line = format!(
            "td shutdown {word} {seconds}{}",
            if force { " --force" } else { "" }
        );
        let Some(td) = td else {
            return (line, Err("no-such-td"));
        };
        if td.state != State::Runnable {
            return (line, Err("wrong-state"));
        }
        let td = self.model.tds.get_mut(name).unwrap();
        td.asked = Some((now, force));
        td.is_overdue = false;
        (
            line,
            Ok(vec![field("listens", listens), field("state", "runnable")]),
        )
    }

    fn begin(&mut self) -> (String, Expected) {
        let name = self.any(&FILES);
        let content: Vec<u8> = match self.chance(50) {
            true => self.server.image.clone(),
            false => (0..self.random.usize(1..20_000))
                .map(|i| (i / 3) as u8)
                .collect(),
        };
        let size = match self.random.u32(..20) {
            0 => 0,
            1 => QUOTA + 1,
            _ => content.len() as u64,
        };
        let line = format!("file begin {name} {size}");
        if size == 0 {
            return (line, Err("invalid-argument"));
        }
        if self.model.has_file(name) {
            return (line, Err("exists"));
        }
        // It begins anew, whatever comes of it.
        self.model.uploads.remove(name);
        if self.model.uploads.len() >= 4 || size > QUOTA {
            return (line, Err("no-resources"));
        }
        let upload = Upload {
            content,
            written: 0,
        };
        self.model.uploads.insert(name, upload);
        (
            line,
            Ok(vec![field("bytes", size), field("arrived_bytes", 0)]),
        )
    }

    fn put(&mut self) -> (String, Expected) {
        let name = self.any(&FILES);
        let chunk = self.random.usize(1..12_000);
        let wrong = self.random.u32(..20);
        let Some(upload) = self.model.uploads.get_mut(name) else {
            return (format!("file put {name} 0 QUJD"), Err("no-such-file"));
        };
        let offset = upload.written;
        let end = (offset + chunk).min(upload.content.len());
        let mut data = upload.content[offset..end].to_vec();
        let (offset, expected) = match wrong {
            0 => (offset + 1, Err("wrong-content")),
            1 => {
                data = vec![0; upload.content.len() - offset + 1];
                (offset, Err("wrong-content"))
            }
            _ => {
                upload.written = end;
                (offset, Ok(vec![field("arrived_bytes", end)]))
            }
        };
        let mut data = STANDARD.encode(data);
        if wrong == 2 {
            upload.written = offset;
            data.insert(0, '%');
            return (
                format!("file put {name} {offset} {data}"),
                Err("invalid-argument"),
            );
        }
        if data.is_empty() {
            return (format!("file put {name} {offset}"), Err("missing-argument"));
        }
        (format!("file put {name} {offset} {data}"), expected)
    }

    fn complete(&mut self) -> (String, Expected) {
        let name = self.any(&FILES);
        let wrong = self.chance(10);
        let Some(upload) = self.model.uploads.get(name) else {
            return (
                format!("file end {name} {}", "0".repeat(64)),
                Err("no-such-file"),
            );
        };
        let mut digest = Sha256::digest(&upload.content);
        if wrong {
            digest[7] ^= 1;
        }
        let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let line = format!("file end {name} {digits}");
        if upload.written < upload.content.len() {
            return (line, Err("wrong-content"));
        }
        let upload = self.model.uploads.remove(name).unwrap();
        if wrong {
            return (line, Err("wrong-content"));
        }
        let bytes = upload.content.len();
        self.model.files.insert(name, upload.content);
        (line, Ok(vec![field("bytes", bytes)]))
    }

    fn drop_file(&mut self) -> (String, Expected) {
        let name = self.any(&FILES);
        let line = format!("file drop {name}");
        if self.model.uploads.remove(name).is_some() {
            return (line, Ok(vec![field("name", name)]));
        }
        if !self.model.has_file(name) {
            return (line, Err("no-such-file"));
        }
        let mut tds = self.model.tds.values();
        let is_used =
            tds.any(|td| td.defined.image == name || td.state.lives() && td.built.image == name);
        if is_used || name == "image" {
            return (line, Err("wrong-state"));
        }
        self.model.files.remove(name);
        (line, Ok(vec![field("name", name)]))
    }

    fn garbage(&mut self) -> (String, Expected) {
        let (line, code) = self.any(&[
            ("td define", "missing-argument"),
            ("td define \"", "invalid-argument"),
            ("td undefine", "missing-argument"),
            ("td undefine 0", "no-such-td"),
            ("td undefine 4294967296", "no-such-td"),
            ("td set a", "missing-argument"),
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

    /// Compares what the host shows with the model.
    fn compare(&mut self) {
        let list = self.operator.succeed("td list");
        let mut tds: Vec<_> = self.model.tds.iter().collect();
        tds.sort_by_key(|(_, td)| td.id);
        let shown = list["tds"].as_array().unwrap();
        assert_eq!(shown.len(), tds.len(), "{list}");
        for ((name, td), shown) in tds.iter().zip(shown) {
            let in_force = if td.state.lives() {
                &td.built
            } else {
                &td.defined
            };
            assert_eq!(shown["id"], td.id, "{list}");
            assert_eq!(shown["name"], **name, "{list}");
            assert_eq!(shown["state"], td.state.name(), "{list}");
            assert_eq!(shown["vcpus"], in_force.vcpus, "{list}");
            assert_eq!(shown["memory_bytes"], in_force.memory << 20, "{list}");
        }
        for (name, td) in self.model.tds.clone() {
            self.compare_one(name, &td);
        }
        let list = self.operator.succeed("file list");
        let mut files: Vec<_> = self
            .model
            .files
            .iter()
            .map(|(name, content)| (*name, content.len(), None))
            .collect();
        let uploads = self.model.uploads.iter();
        files.extend(
            uploads.map(|(name, upload)| (*name, upload.content.len(), Some(upload.written))),
        );
        files.push(("image", self.server.image.len(), None));
        files.sort_unstable();
        let shown = list["files"].as_array().unwrap();
        assert_eq!(shown.len(), files.len(), "{list}");
        for ((name, bytes, written), shown) in files.iter().zip(shown) {
            assert_eq!(shown["name"], *name, "{list}");
            assert_eq!(shown["bytes"], *bytes, "{list}");
            assert_eq!(shown["arrived_bytes"], Value::from(*written), "{list}");
            assert_eq!(
                shown["from"],
                if *name == "image" { "boot" } else { "put" },
                "{list}"
            );
        }
        self.compare_configuration();
        self.compare_memory(&files);
    }

    fn compare_one(&mut self, name: &str, td: &ModelTd) {
        let shown = self.operator.succeed(&format!("td show {name}"));
        assert_eq!(shown["shares"], td.defined.shares, "{shown}");
        assert_eq!(shown["cap"], Value::from(td.defined.cap), "{shown}");
        let mut pending = Vec::new();
        if td.state.lives() {
            let (new, old) = (&td.defined, &td.built);
            let keys = [
                ("image", new.image != old.image),
                ("memory", new.memory != old.memory),
                ("vcpus", new.vcpus != old.vcpus),
            ];
            pending.extend(keys.into_iter().filter(|key| key.1).map(|key| key.0));
        }
        assert_eq!(shown["pending"], Value::from(pending), "{shown}");
        let said = shown["shutdown"].as_str().unwrap_or_default();
        match (td.state, td.asked, td.is_overdue) {
            (State::Runnable, Some((_, force)), _) => {
                assert!(said.starts_with("asked for; the guest has "), "{shown}");
                assert_eq!(said.ends_with(", then it is terminated"), force, "{shown}");
            }
            (State::Runnable, None, true) => {
                assert_eq!(said, "asked for; the guest did not follow within 0 s");
            }
            _ => assert_eq!(said, "", "{shown}"),
        }
    }

    /// Checks that the configuration that is shown would define the same TDs.
    fn compare_configuration(&mut self) {
        let shown = self.operator.succeed("config show");
        let toml = shown["toml"].as_str().unwrap();
        // The image was loaded at boot, by a [[file]] that this host does not have.
        let toml = format!("{toml}[[file]]\nname = \"image\"\npath = \"image\"\n");
        let config = config::parse(toml.as_bytes()).unwrap();
        assert_eq!(config.td.len(), self.model.tds.len());
        for td in &config.td {
            let known = &self.model.tds[&*td.name].defined;
            let shown = Definition {
                image: td.image.clone().unwrap(),
                memory: td.memory >> 20,
                vcpus: td.vcpus.into(),
                shares: td.shares.into(),
                cap: td.cap.map(u64::from),
            };
            assert_eq!(shown, *known, "{toml}");
        }
        assert_eq!(config.file.len(), self.model.files.len() + 1, "{toml}");
    }

    /// Checks that only files have memory when no TD has any.
    fn compare_memory(&self, files: &[(&str, usize, Option<usize>)]) {
        if self.model.tds.values().any(|td| td.state.lives()) {
            return;
        }
        let put = files.iter().filter(|file| file.0 != "image");
        let bytes: u64 = put.map(|file| (file.1 as u64).next_multiple_of(4096)).sum();
        assert_eq!(self.server.rig.out(), (bytes, 0));
        assert_eq!(self.server.hkids(), (0, 0));
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
        operator: Operator::new(&tds),
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
