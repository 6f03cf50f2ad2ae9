//! Two plain machines with Debian on a link between their network cards, without Seamark: the throughput with which that
//! between TDs is compared.

use anyhow::{Context, Result};

use super::pair::{MACS, Pair, Throughput};
use super::plain::BOOT;
use super::{COMMAND, LOGIN};
use crate::programs::Debian;
use crate::qemu::{Boot, Device, Forward, Guest, Link, Machine};
use crate::scenarios::Bench;

/// Measures the throughput between the two machines. Each has one CPU and as much memory as a TD of the test.
pub fn throughput(bench: &mut Bench) -> Result<Throughput> {
    let forwards = [Forward::to_isolated()?, Forward::to_isolated()?];
    let debian = bench.programs().debian();
    let boot = Boot::Linux {
        kernel: debian.kernel(),
        command_line: format!("{} no_timer_check", Debian::COMMAND_LINE),
    };
    let socket = bench.directory()?.join("link");
    let mut guests = Vec::new();
    for (at, forward) in forwards.into_iter().enumerate() {
        let link = Link {
            socket: socket.clone(),
            is_first: at == 0,
            mac: MACS[at],
        };
        let machine = Machine::new(boot.clone(), None)
            .without_iommu()
            .with_cpus(1, 1)
            .with_memory("768M")
            .with_device(Device::Snapshot(debian.disk()))
            .with_device(Device::NetWithSsh(forward))
            .with_device(Device::Link(link));
        let mut guest = bench.start(&machine)?;
        // One after the other: the first one has created the socket by then.
        guest.expect(LOGIN, BOOT).context("a plain machine")?;
        guests.push(guest);
    }
    let [one, two] = forwards.map(|forward| super::ssh(bench, forward));
    let pair = Pair([one?, two?]);
    for ssh in &pair.0 {
        ssh.wait(COMMAND)?;
    }
    pair.join()?;
    pair.ping()?;
    pair.throughput(|| guests.iter().map(Guest::cpu_time).sum())
}
