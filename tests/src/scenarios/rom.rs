//! Scenarios with TDs on the emulated SEAM and the probe as their host: the guest's view, independent of the
//! hypervisor.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Bench, Scenario};
use crate::media::Media;
use crate::programs::Programs;
use crate::qemu::Machine;

pub const ALL: &[Scenario] = &[
    Scenario::new("rom-hello", |bench| guest(bench, "hello")),
    Scenario::new("rom-initial", |bench| guest(bench, "initial")),
    Scenario::new("rom-tdcall", |bench| guest(bench, "tdcall")),
    Scenario::new("rom-cpuid", |bench| guest(bench, "cpuid")),
    Scenario::new("rom-msrs", |bench| guest(bench, "msrs")),
    Scenario::new("rom-exits", |bench| guest(bench, "exits")),
    Scenario::new("rom-registers", |bench| guest(bench, "registers")),
    Scenario::new("rom-memory", |bench| guest(bench, "memory")),
    Scenario::by_name_only("rom-interrupts", |bench| guest(bench, "interrupts")),
    Scenario::by_name_only("rom-interrupts-none-lost", |bench| {
        let run = Run::new("count", "interrupts", 1, "2G");
        run.within(bench, 900)
    }),
    Scenario::by_name_only("rom-hammer", |bench| {
        let run = Run::new("hammer", "hammer", 3, "2G");
        run.within(bench, 1500)
    }),
];

/// Numbers of vCPUs with which every guest must pass, and the machine's memory. QEMU puts all but the first 2 GiB
/// above 4 GiB, and the firmware hands out the topmost memory first: in a machine of 5 GiB, a TD's pages have
/// addresses of more than 32 bits.
const MACHINES: [(u32, &str); 2] = [(1, "2G"), (4, "5G")];

/// Runs a guest that checks a table by itself.
fn guest(bench: &mut Bench, name: &str) -> Result<()> {
    MACHINES
        .into_iter()
        .try_for_each(|(vcpus, memory)| Run::new(name, "guest", vcpus, memory).within(bench, 400))
}

/// Runs a guest that checks a table by itself, on the larger machine alone.
pub(super) fn guest_once(bench: &mut Bench, name: &str) -> Result<()> {
    let [_, (vcpus, memory)] = MACHINES;
    Run::new(name, "guest", vcpus, memory).within(bench, 400)
}

/// A run of a guest while the probe follows an order.
struct Run<'a> {
    guest: &'a str,
    order: &'a str,
    vcpus: u32,
    memory: &'a str,
}

impl<'a> Run<'a> {
    fn new(guest: &'a str, order: &'a str, vcpus: u32, memory: &'a str) -> Self {
        Self {
            guest,
            order,
            vcpus,
            memory,
        }
    }

    /// Runs the guest, all of whose checks must pass within a number of seconds.
    fn within(&self, bench: &mut Bench, seconds: u64) -> Result<()> {
        let (name, vcpus) = (self.guest, self.vcpus);
        let said = self.output(bench, seconds)?;
        let failures: Vec<_> = said.lines().filter(|line| line.contains("FAIL ")).collect();
        ensure!(failures.is_empty(), "{}", failures.join("\n"));
        let tally = said
            .lines()
            .find(|line| line.starts_with(&format!("{name}: ")) && line.contains(" passed, "))
            .with_context(|| format!("the guest did not finish:\n{said}"))?;
        ensure!(
            tally.ends_with(" passed, 0 failed") && said.contains("\nhost: done\n"),
            "{said}"
        );
        bench.note(format!("{vcpus} vCPUs: {tally}"));
        for line in said.lines().filter(|line| line.starts_with("host: ")) {
            if line != "host: done" {
                bench.note(line);
            }
        }
        Ok(())
    }

    /// Runs the probe on a machine, and returns its output.
    fn output(&self, bench: &mut Bench, seconds: u64) -> Result<String> {
        // An idle processor spins, which slows down the others.
        let (cpus, sockets) = match self.order {
            "interrupts" => (2, 1),
            _ => (4, 2),
        };
        let image = bench.programs().guest(self.guest);
        let image =
            std::fs::read(&image).with_context(|| format!("can't read {}", image.display()))?;
        // The guests' tables differ by the module's update number.
        let module = bench.module();
        let update = module.rsplit('.').next().unwrap_or(&module);
        let orders = format!("{} {} {update}", self.order, self.vcpus);
        let media = Media::of_program(&bench.programs().probe())?
            .with_bytes("probe.txt", orders.as_bytes())
            .with_bytes("guest.fd", &image);
        let machine = Machine::new(bench.disk(&media)?, Some(bench.stub()))
            .with_cpus(cpus, sockets)
            .with_memory(self.memory);
        let mut guest = bench.start(&machine)?;
        guest.expect("\nprobe: start\n", Duration::from_secs(120))?;
        let said = guest.expect("probe: end\n", Duration::from_secs(seconds))?;
        guest.wait_for_end(Duration::from_secs(60))?;
        Ok(said)
    }
}

/// The measurements of one operation, in nanoseconds.
pub struct Figures {
    pub name: String,
    pub each: Vec<u128>,
}

impl Figures {
    /// Returns the median.
    #[must_use]
    pub fn median(&self) -> u128 {
        let mut sorted = self.each.clone();
        sorted.sort_unstable();
        sorted[sorted.len() / 2]
    }
}

/// Measures the cost of the emulation in CPU time of QEMU, so that a busy computer has little effect. Each operation
/// is measured at least once. The logs go to a directory in `home`.
///
/// # Errors
/// The probe can't be run, or its output is malformed.
pub fn measure(programs: &Programs, home: &Path) -> Result<Vec<Figures>> {
    let limit = Duration::from_secs(300);
    let mut bench = Bench::new("bench-stub", programs, home);
    let media = Media::of_program(&programs.probe())?.with_bytes("probe.txt", b"bench");
    let machine = Machine::new(bench.disk(&media)?, Some(bench.stub())).with_cpus(1, 1);
    let mut guest = bench.start(&machine)?;
    guest.expect("\nprobe: start\n", Duration::from_secs(120))?;
    let mut figures: Vec<Figures> = Vec::new();
    loop {
        let (end, said) = guest.expect_any(&["bench: begin ", "probe: end\n"], limit)?;
        ensure!(!said.contains("FAIL "), "{said}");
        if end == 1 {
            return Ok(figures);
        }
        let what = guest.expect("\n", limit)?;
        let before = guest.cpu_time()?;
        guest.expect("bench: done ", limit)?;
        let took = guest.cpu_time()? - before;
        let (name, times) = what.trim().split_once(' ').context("a name and a number")?;
        let figure = took.as_nanos() / times.parse::<u128>()?;
        match figures.iter_mut().find(|known| known.name == name) {
            Some(known) => known.each.push(figure),
            None => figures.push(Figures {
                name: name.to_owned(),
                each: vec![figure],
            }),
        }
    }
}
