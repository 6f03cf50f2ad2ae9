//! Two TDs with Debian in one network, and a third TD that bridges it to a network card of the machine.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::pair::{MACS, Pair};
use super::{COMMAND, hub, is_well, server};
use crate::console::Console;
use crate::programs::Debian;
use crate::qemu::{Device, Forward, Machine};
use crate::scenarios::Bench;
use crate::scenarios::linux::shell::{PROMPT, Shell};
use crate::scenarios::linux::{self, td};
use crate::scenarios::stage::{self, ANSWER, LIFE};
use crate::ssh::Ssh;

/// The TD that has the machine's card.
const UPLINK: &str = "uplink";
/// The TDs with Debian.
const DEBIANS: [&str; 2] = ["one", "two"];
/// The user network's address of this computer.
const COMPUTER: &str = "10.0.2.2";

/// The bridge in the uplink. Its cards are the machine's and the network's, in whatever order.
const BRIDGE: [&str; 4] = [
    "dmesg -n 1",
    "for module in llc stp bridge; do xzcat /lib/$module.ko.xz >/tmp/$module.ko; insmod /tmp/$module.ko; done",
    "brctl addbr br0; for card in eth0 eth1 br0; do ifconfig $card up; done",
    "for card in eth0 eth1; do brctl addif br0 $card; done",
];

/// Two TDs with Debian get addresses through the uplink, ping, log in and copy; the first one reaches the outside. One is
/// terminated while it receives, and the other one goes on. Two plain machines measure the same throughput.
pub fn lan(bench: &mut Bench) -> Result<()> {
    let forwards = [Forward::from_port(0)?, Forward::from_port(0)?];
    let machine = machine(bench, forwards.map(|forward| forward.port))?;
    let mut console = bench.console(&machine)?;
    // The host keeps its tables for the functions' buses and registers once it has made them.
    for name in [UPLINK].iter().chain(&DEBIANS) {
        for command in ["td start", "td destroy"] {
            console.succeed(&format!("{command} {name}"), LIFE)?;
        }
    }
    let before = stage::used(&mut console)?;
    linux::start(bench, &mut console, UPLINK, &[PROMPT])?;
    bridge(&mut console)?;
    let [one, two] = forwards.map(|forward| super::ssh(bench, forward));
    let pair = Pair([one?, two?]);
    for (name, ssh) in DEBIANS.iter().zip(&pair.0) {
        server::start(bench, &mut console, name, ssh)?;
    }
    let [one, _] = &pair.0;
    is_well(one)?;
    reaches_this_computer(one)?;
    pair.join()?;
    pair.ping()?;
    pair.ssh(&bench.programs().debian().key())?;
    pair.copy(bench)?;
    let works = Work::of_all(&mut console)?;
    let throughput = pair.throughput(|| console.guest().cpu_time())?;
    bench.note(format!("TD to TD: {throughput}"));
    for ((name, now), before) in DEBIANS.iter().zip(Work::of_all(&mut console)?).zip(works) {
        bench.note(format!("meanwhile {name}: {}", now.since(&before)));
    }
    note_exit(bench, &mut console, &pair)?;
    note_cards(bench, &mut console)?;
    ends_in_the_middle(&mut console, &pair).context("the end in the middle")?;
    stage::nothing_is_left(&mut console, &["one", UPLINK], before)?;
    drop(console);
    let plain = hub::throughput(bench).context("plain machines")?;
    bench.note(format!("machine to machine, without Seamark: {plain}"));
    bench.note(format!(
        "ratio: {:.3}, and {:.3} by CPU time",
        throughput.per_second / plain.per_second,
        throughput.per_cpu_second / plain.per_cpu_second
    ));
    Ok(())
}

/// Notes the time of an exit, which is most of what a frame costs here.
fn note_exit(bench: &mut Bench, console: &mut Console, pair: &Pair) -> Result<()> {
    let before = Work::of(console, "one")?.entries;
    let seconds = pair.exits()?;
    let exits = Work::of(console, "one")?.entries - before;
    bench.note(format!(
        "{exits} exits of TD one took {seconds:.2} s: {:.0} us each",
        seconds * 1e6 / exits as f64
    ));
    Ok(())
}

/// Creates the machine: a drive for each Debian, and the uplink's card.
fn machine(bench: &Bench, ports: [u16; 2]) -> Result<Machine> {
    let debian = bench.programs().debian();
    let td_of = |(at, (name, mac)): (usize, (&str, &str))| {
        // One vCPU: QEMU's race on patched code needs two.
        format!(
            "[[td]]\nname = \"{name}\"\nkernel = \"debian\"\ncmdline = \"{}\"\nmemory = \"768M\"\nvcpus = 1\n\
             [[td.pci]]\ndevice = \"0000:0{}:00.0\"\n[[td.net]]\nnetwork = \"lan\"\nmac = \"{mac}\"\n",
            Debian::COMMAND_LINE,
            at + 1
        )
    };
    let host = "[host]\ncpu_timeout_ms = 60000\n[[file]]\nname = \"debian\"\npath = \"debian\"\n\
                [[network]]\nname = \"lan\"\n";
    let uplink = td(UPLINK, 1, "192M", "quiet")
        + "[[td.pci]]\ndevice = \"0000:03:00.0\"\n[[td.net]]\nnetwork = \"lan\"\nport = \"trunk\"\n";
    let debians = DEBIANS.into_iter().zip(MACS).enumerate().map(td_of);
    let tables: Vec<_> = [host.to_owned(), uplink]
        .into_iter()
        .chain(debians)
        .collect();
    let media = bench
        .linux_media(&linux::config(&tables))?
        .with_file("debian", &debian.kernel())?;
    let machine = bench.machine_with(&media)?.with_iommu().with_memory("4G");
    Ok(machine
        .with_device(Device::Snapshot(debian.disk()))
        .with_device(Device::Snapshot(debian.disk()))
        .with_device(Device::NetWithGuests(ports.to_vec())))
}

/// Lets the uplink bridge its two cards.
fn bridge(console: &mut Console) -> Result<()> {
    let mut shell = Shell::reopen(console, UPLINK)?;
    for command in BRIDGE {
        let said = shell.run(command, COMMAND)?;
        ensure!(said.trim().is_empty(), "{command}: {said}");
    }
    let ports = shell.run(
        "ls -m /sys/class/net/br0/brif; ls /sys/class/net/br0/brif | wc -l",
        COMMAND,
    )?;
    shell.leave()?;
    ensure!(ports.trim_end().ends_with('2'), "not two ports: {ports}");
    Ok(())
}

/// Checks that a server of this computer, which is outside of the machine, hears from a guest.
fn reaches_this_computer(ssh: &Ssh) -> Result<()> {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = server.local_addr()?.port();
    let word = format!("{:016x}", fastrand::u64(..));
    ssh.run(&format!("echo {word} >/dev/tcp/{COMPUTER}/{port}"), COMMAND)
        .context("it does not reach the outside")?;
    // The guest's connection was accepted before its command has ended.
    server.set_nonblocking(true)?;
    let (mut guest, _) = server.accept().context("nobody has connected")?;
    guest.set_nonblocking(false)?;
    guest.set_read_timeout(Some(COMMAND))?;
    let mut said = String::new();
    guest.read_to_string(&mut said)?;
    ensure!(said.trim() == word, "{said:?} came, not {word}");
    Ok(())
}

/// Returns the cards in the network.
fn cards(console: &mut Console) -> Result<Vec<Value>> {
    let shown = console.succeed("net show lan", ANSWER)?;
    Ok(shown["cards"].as_array().context("no cards")?.clone())
}

/// Records what the cards dropped for want of a buffer. No TD has sent what it may not.
fn note_cards(bench: &mut Bench, console: &mut Console) -> Result<()> {
    let cards = cards(console)?;
    for card in &cards {
        ensure!(card["spoofed"] == 0 && card["malformed"] == 0, "{card}");
    }
    let dropped = |card: &Value| {
        let td = card["td"].as_str().unwrap_or_default();
        format!(
            "{td} {} of {}",
            card["no_buffer"],
            number(&card["received_frames"]) + number(&card["no_buffer"])
        )
    };
    let dropped: Vec<_> = cards.iter().map(dropped).collect();
    bench.note(format!(
        "frames dropped for want of a buffer: {}",
        dropped.join(", ")
    ));
    Ok(())
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// The work of a TD and its card so far.
struct Work {
    sent: u64,
    received: u64,
    notifications: u64,
    interrupts: u64,
    entries: u64,
}

impl Work {
    fn of_all(console: &mut Console) -> Result<[Self; 2]> {
        let [one, two] = DEBIANS.map(|name| Self::of(console, name));
        Ok([one?, two?])
    }

    fn of(console: &mut Console, name: &str) -> Result<Self> {
        let cards = cards(console)?;
        let card = cards.iter().find(|card| card["td"] == name);
        let card = card.with_context(|| format!("{name} has no card"))?;
        let shown = stage::show(console, name)?;
        let devices = shown["devices"].as_array().into_iter().flatten();
        let mut devices = devices.filter(|device| device["kind"] == "network card");
        let device = devices.next().with_context(|| format!("{shown}"))?;
        Ok(Self {
            sent: number(&card["sent_frames"]),
            received: number(&card["received_frames"]),
            notifications: number(&device["notifications"]),
            interrupts: number(&device["interrupts"]),
            entries: number(&shown["cpus"][0]["entries"]),
        })
    }

    fn since(&self, before: &Self) -> String {
        format!(
            "{} frames sent by {} notifications, {} received by {} interrupts, {} entries of its vCPU",
            self.sent - before.sent,
            self.notifications - before.notifications,
            self.received - before.received,
            self.interrupts - before.interrupts,
            self.entries - before.entries
        )
    }
}

/// Terminates the receiver of a stream. The sender goes on, and the uplink too.
fn ends_in_the_middle(console: &mut Console, pair: &Pair) -> Result<()> {
    const MUCH: u64 = 4 << 20;
    let [one, _] = &pair.0;
    let mut stream = pair.stream()?;
    let received = |cards: &Value| {
        let cards = cards["cards"].as_array().into_iter().flatten();
        let mut two = cards.filter(|card| card["td"] == DEBIANS[1]);
        two.next().and_then(|card| card["received_bytes"].as_u64())
    };
    let shown = console.succeed("net show lan", ANSWER)?;
    let before = received(&shown).with_context(|| format!("no card: {shown}"))?;
    stage::until(console, "net show lan", |shown| {
        received(shown) > Some(before + MUCH)
    })?;
    ensure!(stream.goes_on()?, "it does not send any more");
    console.succeed(&format!("td destroy {}", DEBIANS[1]), LIFE)?;
    drop(stream);
    is_well(one)?;
    reaches_this_computer(one)?;
    let left = cards(console)?;
    ensure!(left.len() == 2, "{left:?}");
    stage::nothing_illegal(console)
}
