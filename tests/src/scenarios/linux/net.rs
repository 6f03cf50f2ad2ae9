//! TDs with Debian's kernel in one network: they ping and copy; one pretends to be another; one ends in the middle.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::shell::{PROMPT, Shell};
use super::{Bench, COMMAND, config, sound, start};
use crate::console::Console;
use crate::scenarios::stage::{LIFE, nothing_is_left, used};

/// MiB that one TD copies from the other.
const MIB: u32 = 4;
/// Features of a card, in VIRTIO 1.2, section 5.1.3: GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6, MRG_RXBUF, MQ.
const OFFLOADS: [usize; 6] = [7, 8, 11, 12, 15, 22];
/// Number of times that TDs end in the middle of a stream, and with `--soak`.
const ENDS: u32 = 5;
const SOAK_ENDS: u32 = 50;
/// Number of vCPUs of the first TD, and of its card's queues: a pair for each, and the control queue.
const VCPUS: u64 = 2;
const QUEUES: u64 = 2 * VCPUS + 1;
/// An address that no TD has.
const FOREIGN: &str = "02:00:00:00:00:99";

/// The network and its TDs, each with an address of its own.
fn network() -> String {
    let td = |name: &str, vcpus: u64, mac: &str| {
        format!(
            "[[td]]\nname = \"{name}\"\nvcpus = {vcpus}\nkernel = \"vmlinuz\"\ninitrd = \"initrd\"\ncmdline = \"console=hvc0 quiet\"\n\
             memory = \"192M\"\nconsole = \"virtio\"\n[[td.net]]\nnetwork = \"lan\"\n{mac}"
        )
    };
    config(&[
        "[[network]]\nname = \"lan\"\n".into(),
        td("one", VCPUS, ""),
        td("two", 1, "mac = \"02:00:00:00:00:02\"\n"),
    ])
}

/// Two TDs ping each other and copy a file. The switch counts the same frames at both, and drops what has a foreign
/// source. One TD ends in the middle of a stream; nothing is left of either.
pub fn net(bench: &mut Bench) -> Result<()> {
    let machine = bench.machine_with_linux(&network())?.with_memory("1G");
    let mut console = bench.console(&machine)?;
    let before = used(&mut console)?;
    for name in ["one", "two"] {
        let times = start(bench, &mut console, name, &[PROMPT])?;
        bench.note(format!(
            "{name}: shell after {:.1} s",
            times[0].as_secs_f64()
        ));
        join(&mut console, name)?;
    }
    ping(&mut console)?;
    offloads(&mut console)?;
    copy(bench, &mut console)?;
    frames_are_equal(&mut console)?;
    pretend(&mut console)?;
    end_in_the_middle(&mut console)?;
    sound(&mut console)?;
    nothing_is_left(&mut console, &["one", "two"], before)
}

/// TDs end in the middle of a stream again and again, the sender and the receiver in turn: nothing is left of them.
pub fn ends(bench: &mut Bench) -> Result<()> {
    let machine = bench.machine_with_linux(&network())?.with_memory("1G");
    let mut console = bench.console(&machine)?;
    let before = used(&mut console)?;
    let count = if bench.programs().soaks() {
        SOAK_ENDS
    } else {
        ENDS
    };
    for round in 0..count {
        for name in ["one", "two"] {
            start(bench, &mut console, name, &[PROMPT])?;
            join(&mut console, name)?;
        }
        stream(&mut console).with_context(|| format!("round {round}"))?;
        let order = if round % 2 == 0 {
            ["two", "one"]
        } else {
            ["one", "two"]
        };
        nothing_is_left(&mut console, &order, before).with_context(|| format!("round {round}"))?;
    }
    bench.note(format!("ended {count} times in the middle of a stream"));
    sound(&mut console)
}

/// Runs commands in a TD. Returns what the last one said.
fn run(console: &mut Console, name: &str, commands: &[&str]) -> Result<String> {
    let mut shell = Shell::reopen(console, name)?;
    let mut said = String::new();
    for command in commands {
        said = shell.run(command, COMMAND)?;
    }
    shell.leave()?;
    Ok(said)
}

/// Returns a TD's address in the network.
fn address(name: &str) -> &'static str {
    if name == "one" {
        "10.0.0.1"
    } else {
        "10.0.0.2"
    }
}

/// Gives a TD's card an address.
fn join(console: &mut Console, name: &str) -> Result<()> {
    let up = format!("ifconfig eth0 {} netmask 255.255.255.0 up", address(name));
    let said = run(console, name, &["dmesg -n 1", &up])?;
    ensure!(said.is_empty(), "{name}: {said}");
    Ok(())
}

fn ping(console: &mut Console) -> Result<()> {
    let ping = format!("ping -c 3 {}", address("two"));
    let said = run(console, "one", &[&ping])?;
    ensure!(said.contains(" 0% packet loss"), "{said}");
    Ok(())
}

/// Copies a file by HTTP.
fn copy(bench: &mut Bench, console: &mut Console) -> Result<()> {
    let make = format!("dd if=/dev/urandom of=/tmp/file bs=1M count={MIB} 2>/dev/null");
    let sum = run(
        console,
        "two",
        &["httpd -h /tmp", &make, "sha256sum </tmp/file"],
    )?;
    let get = format!(
        "time wget -q -O - http://{}/file | sha256sum",
        address("two")
    );
    let got = run(console, "one", &[&get])?;
    let time = got
        .lines()
        .find(|line| line.starts_with("real"))
        .unwrap_or_default();
    ensure!(
        sum.len() >= 64 && got.contains(sum.trim()),
        "the file is {sum}, the copy is {got}"
    );
    let sender = card(console, "two")?;
    let [bytes, frames] = ["sent_bytes", "sent_frames"].map(|count| sender[count].as_u64());
    let (bytes, frames) = (bytes.unwrap_or(0), frames.unwrap_or(0));
    bench.note(format!(
        "{MIB} MiB by HTTP: {time}, {} bytes a frame",
        bytes / frames.max(1)
    ));
    Ok(())
}

/// Checks that Linux leaves segmentation to its card, and takes frames whole, in several buffers.
fn offloads(console: &mut Console) -> Result<()> {
    let said = run(console, "one", &["cat /sys/class/net/eth0/device/features"])?;
    // A digit for each bit, the lowest first.
    let bits = said.trim().as_bytes();
    for bit in OFFLOADS {
        ensure!(bits.get(bit) == Some(&b'1'), "no feature {bit}: {said}");
    }
    Ok(())
}

/// Returns the report of the card of a TD.
fn card(console: &mut Console, td: &str) -> Result<Value> {
    let shown = console.succeed("net show lan", COMMAND)?;
    let cards = shown["cards"].as_array();
    let found = cards.into_iter().flatten().find(|card| card["td"] == td);
    Ok(found
        .with_context(|| format!("{td} has no card: {shown}"))?
        .clone())
}

/// Checks that each card received what the other one sent.
fn frames_are_equal(console: &mut Console) -> Result<()> {
    const TRIES: u32 = 10;
    let mut shown = String::new();
    // A frame may be on its way while the counts are read.
    for _ in 0..TRIES {
        let [one, two] = ["one", "two"].map(|td| card(console, td));
        let (one, two) = (one?, two?);
        // At least the pings. The number of acknowledgements depends on the receiver's speed.
        let same = |sent: &Value, received: &Value| {
            sent["sent_frames"] == received["received_frames"]
                && sent["sent_bytes"] == received["received_bytes"]
                && sent["sent_frames"].as_u64() >= Some(3)
        };
        if same(&one, &two) && same(&two, &one) {
            let devices = console.succeed("td show one", COMMAND)?;
            let devices = devices["devices"].as_array().cloned().unwrap_or_default();
            let is_card = |device: &&Value| device["kind"] == "network card";
            let device = devices.iter().find(is_card).context("no card")?;
            ensure!(
                device["to_guest_bytes"] == one["received_bytes"] && device["queues"] == QUEUES,
                "{device} {one}"
            );
            return Ok(());
        }
        shown = format!("{one} {two}");
    }
    anyhow::bail!("the counts differ: {shown}")
}

/// Lets a TD send from an address that is not its own.
fn pretend(console: &mut Console) -> Result<()> {
    let before = card(console, "two")?;
    let change = format!("ifconfig eth0 down; ifconfig eth0 hw ether {FOREIGN}; ifconfig eth0 up");
    let ping = format!("ping -c 2 -W 1 {}", address("two"));
    let said = run(console, "one", &[&change, &ping])?;
    ensure!(said.contains("100% packet loss"), "{said}");
    let own = card(console, "one")?;
    let back = format!(
        "ifconfig eth0 down; ifconfig eth0 hw ether {}; ifconfig eth0 up",
        own["mac"].as_str().unwrap_or_default()
    );
    let after = card(console, "two")?;
    ensure!(own["spoofed"].as_u64() > Some(0), "{own}");
    ensure!(
        after["received_frames"] == before["received_frames"],
        "{before} {after}"
    );
    run(console, "one", &[&back]).map(drop)
}

/// Lets one TD receive from the other without an end, until much has gone through.
fn stream(console: &mut Console) -> Result<()> {
    const MUCH: u64 = 4 << 20;
    run(
        console,
        "two",
        &["(nc -l -p 9 </dev/zero >/dev/null 2>&1 &)"],
    )?;
    // A client whose input ends would end the connection.
    let connect = format!("(sleep 10000 | nc {} 9 >/dev/null 2>&1 &)", address("two"));
    run(console, "one", &[&connect])?;
    let bytes = |card: &Value| card["received_bytes"].as_u64().unwrap_or(0);
    let before = bytes(&card(console, "one")?);
    crate::scenarios::stage::until(console, "net show lan", |shown| {
        let cards = shown["cards"].as_array();
        let one = cards.into_iter().flatten().find(|card| card["td"] == "one");
        one.is_some_and(|one| bytes(one) > before + MUCH)
    })
    .map(drop)
}

/// Ends the sender of a stream. The other one goes on.
fn end_in_the_middle(console: &mut Console) -> Result<()> {
    stream(console)?;
    console.succeed("td destroy two", LIFE)?;
    let said = run(console, "one", &["echo still here"])?;
    ensure!(said.trim() == "still here", "{said}");
    let shown = console.succeed("net show lan", COMMAND)?;
    ensure!(
        shown["cards"].as_array().map(Vec::len) == Some(1),
        "{shown}"
    );
    Ok(())
}
