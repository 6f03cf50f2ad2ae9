//! Scenarios with Debian's unmodified kernel in TDs: normal use, and failures.

mod ends;
mod faults;
pub mod foreign;
mod net;
pub mod shell;
mod sockets;
mod virtio;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use self::shell::{PROMPT, Shell};
use super::{Bench, Scenario};
use crate::console::Console;

pub const ALL: &[Scenario] = &[
    Scenario::by_name_only("linux-boot", boot).with_linux(),
    Scenario::by_name_only("linux-two", two).with_linux(),
    Scenario::by_name_only("linux-terminate", ends::terminate).with_linux(),
    Scenario::by_name_only("linux-faults", faults::faults).with_linux(),
    Scenario::new("linux-virtio", virtio::virtio).with_linux(),
    Scenario::new("linux-net", net::net).with_linux(),
    Scenario::by_name_only("linux-net-ends", net::ends).with_linux(),
    Scenario::new("linux-sockets", sockets::sockets).with_linux(),
];

/// Linux's message for a breakpoint of its own that was gone already. QEMU 7.2 reads code before it watches the page,
/// so code that another CPU patches in between stays unchanged in the translation. Fixed in QEMU 8.1 (commit
/// deba78709ae8).
pub(super) const STALE: &str = "Oops: int3";
/// Number of times that Linux is started again after that.
pub(super) const TRIES: usize = 5;

/// Time limit from `td start` to the shell.
const BOOT: Duration = Duration::from_secs(90);
/// Time limit of commands at a shell or at the console: far more than needed, for a busy computer.
pub const COMMAND: Duration = Duration::from_secs(120);

/// Returns a configuration with these TDs, and the files that they need.
pub fn config(tds: &[String]) -> String {
    let files = ["vmlinuz", "initrd"]
        .map(|name| format!("[[file]]\nname = \"{name}\"\npath = \"{name}\"\n"));
    files.concat() + &tds.concat()
}

/// Returns the configuration of a TD with Linux.
pub fn td(name: &str, vcpus: u32, memory: &str, more: &str) -> String {
    format!(
        "[[td]]\nname = \"{name}\"\nkernel = \"vmlinuz\"\ninitrd = \"initrd\"\ncmdline = \"console=ttyS0 {more}\"\n\
         memory = \"{memory}\"\nvcpus = {vcpus}\n"
    )
}

/// Starts a TD. Returns the times at which it had printed each of the texts. If QEMU loses the TD, another one is
/// started.
pub fn start(
    bench: &mut Bench,
    console: &mut Console,
    name: &str,
    said: &[&str],
) -> Result<Vec<Duration>> {
    for _ in 0..TRIES {
        if let Some(times) = try_start(console, name, said)? {
            return Ok(times);
        }
        bench.note(format!(
            "TD {name} executed code that was patched already; started again"
        ));
        console.succeed(&format!("td destroy {name}"), COMMAND)?;
    }
    bail!("QEMU has lost TD {name} {TRIES} times")
}

fn try_start(console: &mut Console, name: &str, said: &[&str]) -> Result<Option<Vec<Duration>>> {
    let started = Instant::now();
    console.succeed(&format!("td start {name}"), COMMAND)?;
    let mut shell = Shell::open(console, name)?;
    let mut times = Vec::new();
    for said in said {
        if !shell.wait_while_booting(said, 2 * BOOT)? {
            shell.leave()?;
            return Ok(None);
        }
        times.push(started.elapsed());
    }
    shell.leave()?;
    Ok(Some(times))
}

fn console(bench: &mut Bench, tds: &[String]) -> Result<Console> {
    let machine = bench.machine_with_linux(&config(tds))?;
    bench.console(&machine)
}

/// Boots to a shell within the time limit, with all vCPUs, and checks what Linux detects; then reboots and powers off
/// from inside.
pub(super) fn boot(bench: &mut Bench) -> Result<()> {
    let alone = td("alone", 1, "256M", "");
    let linux = [td("linux", 4, "512M", "")];
    let mut console = console(bench, &[alone, linux[0].clone()])?;
    measure(bench, &mut console, "alone")?;
    console.succeed("td destroy alone", COMMAND)?;
    measure(bench, &mut console, "linux")?;
    let shown = console.succeed("td show linux", COMMAND)?;

    let mut shell = Shell::reopen(&mut console, "linux")?;
    let dmesg = shell.run("dmesg | grep -i tdx", COMMAND)?;
    ensure!(dmesg.contains("tdx: Guest detected"), "{dmesg}");
    let encryption = shell.run("dmesg | grep -i 'memory encryption'", COMMAND)?;
    ensure!(
        encryption.contains("Memory Encryption Features active: Intel TDX"),
        "{encryption}"
    );
    // Linux checks the tables again once it has parsed them, and it writes to a MADT whose wakeup structure is of version 0.
    let complaints = shell.run("dmesg | grep -E 'ACPI.*(Warning|Error|BUG)'", COMMAND)?;
    ensure!(complaints.trim().is_empty(), "{complaints}");
    ensure!(
        shell.run("nproc", COMMAND)?.trim() == "4",
        "not 4 processors"
    );
    let report = shell.run("tdreport", COMMAND)?;
    shell.leave()?;

    let mrtd = shown["mrtd"].as_str().context("an MRTD")?;
    ensure!(report.contains(&format!("MRTD   {mrtd}")), "{report}");
    for line in predicted(bench, &linux)? {
        ensure!(report.contains(&line), "no {line:?} in\n{report}");
    }

    let mut tries = 1..TRIES;
    while !reboots(&mut console, "linux")? {
        ensure!(
            tries.next().is_some(),
            "QEMU has lost the TD that was built again {TRIES} times"
        );
        bench.note("TD linux executed code that was patched already; started again");
        console.succeed("td destroy linux", COMMAND)?;
        start(bench, &mut console, "linux", &[PROMPT])?;
    }
    let mut shell = Shell::reopen(&mut console, "linux")?;
    ensure!(
        shell.run("nproc", COMMAND)?.trim() == "4",
        "not 4 processors after reboot"
    );
    shell.type_line("poweroff")?;
    shell.leave()?;
    wait_for_state(&mut console, "linux", "reclaimed")?;
    sound(&mut console)
}

/// Makes a TD reboot from inside. Returns `false` if QEMU has lost it.
fn reboots(console: &mut Console, name: &str) -> Result<bool> {
    // The last message of the previous life is followed by the messages of the next.
    const SAID: [&str; 4] = [
        "[it asked for a reset]",
        "[started anew]",
        "Linux version",
        PROMPT,
    ];
    let mut shell = Shell::reopen(console, name)?;
    shell.type_line("reboot")?;
    let mut is_there = true;
    for said in SAID {
        is_there = is_there && shell.wait_while_booting(said, BOOT)?;
    }
    shell.leave()?;
    Ok(is_there)
}

/// Returns the lines of `cargo xtask measure` for the only TD of a configuration.
fn predicted(bench: &Bench, tds: &[String]) -> Result<Vec<String>> {
    let directory = bench.directory()?.join("config");
    fs::create_dir_all(&directory)?;
    let linux = bench.programs().linux();
    fs::copy(linux.kernel(), directory.join("vmlinuz"))?;
    fs::copy(linux.initrd(), directory.join("initrd"))?;
    let file = directory.join("seamark.toml");
    fs::write(&file, config(tds))?;
    let lines = bench.programs().measure(&file)?;
    let lines: Vec<_> = lines
        .lines()
        .filter_map(|line| line.split_once("  "))
        .map(|(_name, line)| line.to_owned())
        .collect();
    ensure!(lines.len() == 5, "MRTD and four RTMRs: {lines:?}");
    Ok(lines)
}

/// Starts a TD alone, and records the cost of its boot. The shell must come in time.
fn measure(bench: &mut Bench, console: &mut Console, name: &str) -> Result<()> {
    let before = Counts::read(console)?;
    let times = start(bench, console, name, &["Linux version", PROMPT])?;
    let after = Counts::read(console)?;
    let [to_first, to_shell] = times[..] else {
        bail!("{times:?}");
    };
    let exits = after.exits.iter().filter_map(|(what, count)| {
        let count = count - before.exits.get(what).unwrap_or(&0);
        (count > 0).then(|| format!("{count} {what}"))
    });
    bench.note(format!(
        "{name}: first kernel message after {:.1} s, shell after {:.1} s; {} SEAMCALLs; {}",
        to_first.as_secs_f32(),
        to_shell.as_secs_f32(),
        after.calls - before.calls,
        exits.collect::<Vec<_>>().join(", ")
    ));
    ensure!(to_shell <= BOOT, "the shell was there after {to_shell:?}");
    Ok(())
}

/// Counts at one moment.
struct Counts {
    calls: u64,
    exits: BTreeMap<String, u64>,
}

impl Counts {
    fn read(console: &mut Console) -> Result<Self> {
        let stats = console.succeed("stats", COMMAND)?;
        let exits = stats["exits"].as_array().into_iter().flatten();
        let exits = exits
            .filter_map(|exit| Some((exit["what"].as_str()?.to_owned(), exit["count"].as_u64()?)));
        Ok(Self {
            calls: stats["total"]["calls"].as_u64().context("SEAMCALLs")?,
            exits: exits.collect(),
        })
    }

    /// Returns the number of exits; none are listed before the first. The other counts say what these were, some of them
    /// more than once.
    fn entries(&self) -> u64 {
        self.exits.get("TDH.VP.ENTER").copied().unwrap_or(0)
    }
}

/// Runs two TDs side by side: one is busy on all of its vCPUs, and the other answers.
fn two(bench: &mut Bench) -> Result<()> {
    let tds = [td("one", 2, "256M", ""), td("two", 2, "256M", "")];
    let mut console = console(bench, &tds)?;
    for name in ["one", "two"] {
        start(bench, &mut console, name, &[PROMPT])?;
    }
    let mut shell = Shell::reopen(&mut console, "one")?;
    shell.run("for i in 1 2; do (while :; do :; done) & done", COMMAND)?;
    shell.leave()?;
    let mut shell = Shell::reopen(&mut console, "two")?;
    let started = Instant::now();
    let said = shell.run(
        "dd if=/dev/urandom bs=1M count=4 2>/dev/null | sha256sum | wc -c",
        COMMAND,
    )?;
    ensure!(said.trim() == "68", "{said}");
    bench.note(format!(
        "beside a busy TD: {:.1} s for a digest of 4 MiB",
        started.elapsed().as_secs_f32()
    ));
    shell.leave()?;
    for name in ["one", "two"] {
        console.succeed(&format!("td destroy {name}"), COMMAND)?;
    }
    sound(&mut console)
}

fn wait_for_state(console: &mut Console, name: &str, state: &str) -> Result<()> {
    let command = format!("td show {name}");
    wait(console, &command, |shown| {
        (shown["state"] == state).then_some(())
    })
}

/// Repeats a command until the answer is found.
fn wait<T>(console: &mut Console, command: &str, found: impl Fn(&Value) -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + COMMAND;
    loop {
        let shown = console.succeed(command, COMMAND)?;
        if let Some(found) = found(&shown) {
            return Ok(found);
        }
        ensure!(
            Instant::now() < deadline,
            "it did not come to that: {shown}"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Checks that no illegal SEAMCALL was made, and that no page or HKID was lost.
fn sound(console: &mut Console) -> Result<()> {
    let stats = console.succeed("stats", COMMAND)?;
    ensure!(
        stats["total"]["illegal"] == 0 && stats["lost_pages"] == 0 && stats["lost_hkids"] == 0,
        "{stats}"
    );
    Ok(())
}

/// Returns the bytes of memory that are free, or that only the hypervisor's heap has taken: it keeps some after a TD has
/// gone.
fn free_bytes(console: &mut Console) -> Result<u64> {
    let memory = console.succeed("mem", COMMAND)?;
    ensure!(memory["ledger"]["balanced"] == true, "{memory}");
    let free = memory["ledger"]["free_bytes"].as_u64();
    let heap = memory["heap"]["total_bytes"].as_u64();
    Ok(free.context("free bytes")? + heap.context("the heap's bytes")?)
}
