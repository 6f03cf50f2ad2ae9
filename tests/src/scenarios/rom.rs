//! Scenarios with TDs on the emulated SEAM and the probe as their host: the guest's view, independent of the
//! hypervisor.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Bench, Scenario};
use crate::media::Media;
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
