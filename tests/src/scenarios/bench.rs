//! The environment of scenarios: machines with the programs under test, and their measurements.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use stub_options::Options;

use crate::console::Console;
use crate::media::Media;
use crate::programs::Programs;
use crate::qemu::{Boot, Event, Guest, Machine, Stub, Trouble, Vtd, Wire};
use crate::scenarios::Outcome;

/// A configuration that changes nothing.
const PLAIN_CONFIG: &str = "[host]\n";

/// The name of the hypervisor on the TFTP server.
const NETWORK_PROGRAM: &str = "seamark.efi";

/// The environment of one scenario.
pub struct Bench {
    programs: Programs,
    directory: PathBuf,
    runs: Vec<PathBuf>,
    notes: Vec<String>,
    provoked: Vec<String>,
    follows_run: bool,
}

impl Bench {
    /// Creates the environment of a scenario, which has a directory of its own in `home`.
    pub(super) fn new(scenario: &str, programs: &Programs, home: &Path) -> Self {
        Self {
            programs: programs.clone(),
            directory: home.join(scenario),
            runs: Vec::new(),
            notes: Vec::new(),
            provoked: Vec::new(),
            follows_run: false,
        }
    }

    /// Removes the files of an earlier run.
    pub(super) fn clear(&self) -> Result<()> {
        if self.directory.exists() {
            std::fs::remove_dir_all(&self.directory)
                .with_context(|| format!("can't empty {}", self.directory.display()))?;
        }
        Ok(())
    }

    /// Lets the stub emulate this release of Intel's module from now on.
    pub(in crate::scenarios) fn choose_module(&mut self, release: &str) {
        let mut options = self.programs.stub_options().to_vec();
        options.retain(|(key, _)| key != "module");
        options.push(("module".to_owned(), release.to_owned()));
        self.programs = self.programs.clone().with_stub_options(&options);
    }

    /// Returns the release of Intel's module that the stub emulates.
    pub(in crate::scenarios) fn module(&self) -> String {
        let options = self.programs.stub_options();
        let chosen = options.iter().rfind(|(key, _)| key == "module");
        let usual = || Options::default().module.to_string();
        chosen.map_or_else(usual, |(_, release)| release.clone())
    }

    /// Returns the programs under test.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Returns the scenario's own directory.
    pub fn directory(&self) -> Result<&Path> {
        std::fs::create_dir_all(&self.directory)
            .with_context(|| format!("can't create {}", self.directory.display()))?;
        Ok(&self.directory)
    }

    /// Creates a machine with the stub that boots the hypervisor from a disk, with a configuration that changes
    /// nothing.
    pub fn machine(&self) -> Result<Machine> {
        self.machine_with_config(PLAIN_CONFIG)
    }

    /// Creates a machine with another configuration, valid or not.
    pub fn machine_with_config(&self, config: &str) -> Result<Machine> {
        let media = Media::of_program(&self.programs.seamark())?.with_config_text(config);
        self.machine_with(&media)
    }

    /// Creates a machine with other files on its disk.
    pub fn machine_with(&self, media: &Media) -> Result<Machine> {
        Ok(self.with_symbols(Machine::new(self.disk(media)?, Some(self.stub()))))
    }

    /// Creates a machine with Debian's kernel and a system for it next to the configuration.
    pub fn machine_with_linux(&self, config: &str) -> Result<Machine> {
        self.machine_with(&self.linux_media(config)?)
    }

    /// Creates a machine with Debian's kernel and another system.
    pub fn machine_with_system(&self, config: &str, initrd: &Path) -> Result<Machine> {
        self.machine_with(&self.media_with_system(config, initrd)?)
    }

    /// Returns the disk's content with Debian's kernel: the kernel and the system are `vmlinuz` and `initrd`.
    pub fn linux_media(&self, config: &str) -> Result<Media> {
        self.media_with_system(config, &self.programs.linux().initrd())
    }

    fn media_with_system(&self, config: &str, initrd: &Path) -> Result<Media> {
        Media::of_program(&self.programs.seamark())?
            .with_config_text(config)
            .with_file("vmlinuz", &self.programs.linux().kernel())?
            .with_file("initrd", initrd)
    }

    /// Creates a machine that boots over the network.
    pub fn network_machine(&self) -> Result<Machine> {
        let media = Media::of_program(&self.programs.seamark())?.with_config_text(PLAIN_CONFIG);
        self.network_machine_with(&media)
    }

    /// Creates a machine that boots over the network, with other files on the server.
    pub fn network_machine_with(&self, media: &Media) -> Result<Machine> {
        let directory = self.directory()?.join("tftp");
        media.write_directory(&directory, NETWORK_PROGRAM)?;
        let boot = Boot::Network {
            directory,
            program: NETWORK_PROGRAM.to_owned(),
        };
        Ok(self.with_symbols(Machine::new(boot, Some(self.stub()))))
    }

    /// Creates a machine without the stub that boots over a link, with one CPU.
    pub fn linked_machine(&self, wire: Wire) -> Machine {
        self.with_symbols(Machine::new(Boot::Link(wire), None))
            .with_cpus(1, 1)
            .with_memory("1G")
    }

    fn with_symbols(&self, mut machine: Machine) -> Machine {
        machine.symbols = Some(self.programs.symbols("seamark"));
        machine
    }

    /// Creates a disk with `media` on it.
    pub fn disk(&self, media: &Media) -> Result<Boot> {
        let image = self.directory()?.join("disk.img");
        media.write_disk(&image)?;
        Ok(Boot::Disk(image))
    }

    /// Returns the stub with the options that apply to all tests.
    pub fn stub(&self) -> Stub {
        Stub {
            rom: self.programs.rom(),
            options: self.programs.stub_options().to_vec(),
        }
    }

    /// Starts a machine.
    pub fn start(&mut self, machine: &Machine) -> Result<Guest> {
        let directory = self.directory()?.join(format!("run{}", self.runs.len()));
        self.runs.push(directory.clone());
        let mut machine = machine.clone();
        if machine.vtd == Vtd::AsRun {
            self.follows_run = true;
            machine.vtd = self.programs.vtd();
        }
        Guest::start(&machine, &directory, None)
    }

    /// Starts a machine and waits for its prompt.
    pub fn console(&mut self, machine: &Machine) -> Result<Console> {
        let guest = self.start(machine)?;
        Console::wait(guest, boot_limit(machine))
    }

    /// Records a figure that is shown with the result.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Declares that the stub must report `count` violations of this class by the end of the scenario.
    pub fn provoke(&mut self, class: &str, count: usize) {
        self.provoked
            .extend(vec![format!("violation {class}"); count]);
        self.provoked.sort();
    }

    /// Declares that the stub must report trouble of this kind, once, by the end of the scenario.
    pub fn provoke_trouble(&mut self, kind: Trouble) {
        self.provoked.push(kind.name().to_owned());
        self.provoked.sort();
    }

    pub(super) fn provoked(&self) -> &[String] {
        &self.provoked
    }

    pub(super) fn into_outcome(self) -> Outcome {
        Outcome {
            notes: self.notes,
            follows_run: self.follows_run,
        }
    }

    /// Returns the events in TDs that the stub could not explain, with their number.
    pub(super) fn unexplained(&self) -> Result<BTreeMap<String, usize>> {
        let mut found = BTreeMap::new();
        for event in self.events()? {
            let what = match event.kind() {
                "td_unexplained" => event.text("check"),
                "td_entry_failed" => "an entry that fails",
                _ => continue,
            };
            *found.entry(what.to_owned()).or_default() += 1;
        }
        Ok(found)
    }

    /// Returns everything that the stub complained about in this scenario, sorted.
    pub(super) fn complaints(&self) -> Result<Vec<String>> {
        let mut all: Vec<_> = self.events()?.iter().filter_map(complaint).collect();
        all.sort();
        Ok(all)
    }

    /// Returns the stub's events in all runs.
    fn events(&self) -> Result<Vec<Event>> {
        let mut all = Vec::new();
        for run in &self.runs {
            let path = run.join("debug.log");
            let log =
                std::fs::read(&path).with_context(|| format!("can't read {}", path.display()))?;
            all.extend(crate::qemu::events(&log));
        }
        Ok(all)
    }
}

/// Returns the time limit from power-on to the prompt: far more than needed, for a busy computer.
fn boot_limit(machine: &Machine) -> Duration {
    Duration::from_secs(60 + 8 * u64::from(machine.cpus))
}

/// Returns the class of a violation, or the name of another event that reports an error.
fn complaint(event: &Event) -> Option<String> {
    if event.kind() == "violation" {
        return Some(format!("violation {}", event.text("class")));
    }
    Trouble::of(event).map(|kind| kind.name().to_owned())
}
