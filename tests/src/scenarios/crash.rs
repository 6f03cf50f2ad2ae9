//! Scenarios about the report of a crash, which outlives the reset.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::stage::{ANSWER, LIFE};
use super::{Bench, Scenario};
use crate::console::Console;
use crate::qemu::{Debugger, Machine, Shape};

pub const ALL: &[Scenario] = &[
    Scenario::new("last-crash", last_crash),
    Scenario::new("last-crash-stalled", stalled),
    Scenario::new("last-crash-firmware-faults", firmware_faults),
];

/// Reboots after a crash, as a server does that nobody watches.
const CONFIG: &str = "[host]\non_crash = \"reboot\"\nlog_level = \"debug\"\n";
/// Time limit of a boot, for a busy computer.
const BOOT: Duration = Duration::from_secs(300);
/// The interval at which a file is looked at.
const LOOK: Duration = Duration::from_millis(100);

fn crashing(bench: &Bench, stub: bool) -> Result<Machine> {
    let mut machine = bench.machine_with_config(CONFIG)?;
    if !stub {
        machine.stub = None;
    }
    machine.monitor = true;
    machine.reboots = true;
    // Without symbols, a report is what was printed and no more.
    machine.symbols = None;
    Ok(machine)
}

/// A crash is shown after the reset as it was printed, from each of the three places that keep it; a second one takes its
/// place; dropped, it is gone after the next reset, too.
fn last_crash(bench: &mut Bench) -> Result<()> {
    let mut machine = crashing(bench, false)?;
    machine.shape = Shape {
        further: &[
            "-object",
            "memory-backend-ram,id=records,size=64K,share=on",
            "-device",
            "acpi-erst,memdev=records",
        ],
        ..Shape::USUAL
    };
    let mut console = bench.console(&machine)?;
    let none = console.succeed("crash show", ANSWER)?;
    ensure!(
        none["crash"] == Value::Null && none["crashes"] == 0,
        "{none}"
    );
    for count in 1..=2 {
        let printed = crash(&mut console)?;
        ensure!(printed.contains("crash: nmi=unknown"), "{printed}");
        ensure!(
            console.boot_log().contains("since the last \"crash drop\""),
            "the greeting does not tell of it: {}",
            console.boot_log()
        );
        let shown = console.succeed("crash show", ANSWER)?;
        ensure!(shown["crashes"] == count, "{shown}");
        let crash = &shown["crash"];
        ensure!(
            crash["kept_in"] == json!(["uefi-variables", "erst", "memory"]),
            "{shown}"
        );
        ensure!(crash["missing_bytes"] == 0, "{shown}");
        ensure!(
            crash["lines"] == json!(printed.lines().collect::<Vec<_>>()),
            "{shown}\nwas printed as\n{printed}"
        );
        let boot = console.succeed("boot", ANSWER)?;
        ensure!(boot["crashes"] == count, "{boot}");
    }
    let dropped = console.succeed("crash drop", ANSWER)?;
    ensure!(dropped["dropped"] == 2, "{dropped}");
    for _ in 0..2 {
        let gone = console.succeed("crash show", ANSWER)?;
        ensure!(
            gone["crash"] == Value::Null && gone["crashes"] == 0,
            "{gone}"
        );
        console.ask("reboot", ANSWER)?;
        console.again(BOOT)?;
    }
    Ok(())
}

/// A crash while nobody reads the console, which has stalled: the report on the port is cut, what is kept is complete.
fn stalled(bench: &mut Bench) -> Result<()> {
    let machine = crashing(bench, true)?;
    // The time for which the port stalls depends on the computer.
    for pause in [5, 20, 60].map(Duration::from_secs) {
        let mut console = bench.console(&machine)?;
        console.succeed("version", ANSWER)?;
        let guest = console.guest();
        let from = guest.transcript().len();
        let not_reading = guest.stop_reading();
        let mut writer = guest.writer();
        let script = "mem\r".repeat(300);
        let sent = std::thread::spawn(move || writer.write_all(script.as_bytes()));
        guest.pause(pause)?;
        guest.monitor("nmi")?;
        wait_for_variable(guest.directory())?;
        drop(not_reading);
        sent.join().expect("the writer does not panic")?;
        let shown = ask_until_answered(&mut console)?;
        let port = console.guest().transcript();
        let port = port.get(from..).context("the transcript has shrunk")?;
        let begin = port.find("crash: begin");
        if begin.is_some_and(|at| port[at..].contains("crash: end\n")) {
            // The port had room for all of it.
            continue;
        }
        let crash = &shown["crash"];
        ensure!(crash["missing_bytes"] == 0, "{shown}");
        let lines = crash["lines"].as_array().context("no lines")?;
        ensure!(
            lines
                .first()
                .is_some_and(|line| line == "crash: begin version=1")
                && lines.last().is_some_and(|line| line == "crash: end"),
            "{shown}"
        );
        return Ok(());
    }
    bail!("the port never stalled")
}

/// The firmware's code that sets variables faults: in a command it is an error, and the machine goes on; in a crash it is
/// the end of the report, which other places keep.
fn firmware_faults(bench: &mut Bench) -> Result<()> {
    /// UD2.
    const INVALID: [u8; 2] = [0x0F, 0x0B];
    const DIRECT_MAP: u64 = 0xFFFF_8000_0000_0000;
    let mut machine = crashing(bench, false)?;
    // Below `target` the path of a socket may be too long.
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("gdb");
    machine.debugger = Some(socket.clone());
    let mut console = bench.console(&machine)?;
    let spoil = |console: &mut Console| -> Result<()> {
        let log = console.succeed("dmesg debug", ANSWER)?;
        let records = log["records"].as_array().context("no records")?;
        let message = records
            .iter()
            .filter_map(|record| record["message"].as_str());
        let at = message
            .filter_map(|message| message.strip_prefix("the firmware's SetVariable is at 0x"))
            .next_back()
            .context("the log does not tell where SetVariable is")?;
        let pa = u64::from_str_radix(at, 16)?;
        Debugger::attach(&socket)?.write(DIRECT_MAP + pa, &INVALID)
    };
    crash(&mut console)?;
    spoil(&mut console)?;
    let refused = console.ask("crash drop", ANSWER)?;
    ensure!(
        refused["ok"] == false && refused.to_string().contains("its code faulted"),
        "{refused}"
    );
    for (count, places) in [
        (1, json!(["uefi-variables", "memory"])),
        // The variables still have the first one.
        (2, json!(["memory"])),
        (3, json!(["memory"])),
    ] {
        let shown = console.succeed("crash show", ANSWER)?;
        ensure!(
            shown["crashes"] == count && shown["crash"]["kept_in"] == places,
            "{shown}"
        );
        ensure!(shown["crash"]["missing_bytes"] == 0, "{shown}");
        if count == 2 {
            spoil(&mut console)?;
        }
        if count < 3 {
            crash(&mut console)?;
        }
    }
    Ok(())
}

/// Provokes a crash, and waits for the prompt after it. Returns the report as it was printed.
fn crash(console: &mut Console) -> Result<String> {
    let guest = console.guest();
    guest.monitor("nmi")?;
    let report = guest.expect_crash(LIFE)?;
    console.again(BOOT)?;
    Ok(report)
}

/// Waits until the firmware's variables, a file on this computer, have the report's first part.
fn wait_for_variable(directory: &Path) -> Result<()> {
    let name: Vec<u8> = "SeamarkCrash00"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let path = directory.join("vars.fd");
    let begin = Instant::now();
    while begin.elapsed() < LIFE {
        let vars = std::fs::read(&path)?;
        if vars.windows(name.len()).any(|window| window == name) {
            return Ok(());
        }
        sleep(LOOK);
    }
    bail!("no variable was written")
}

/// Asks for the last crash until the machine answers that boots meanwhile, with output of the last run on the line.
fn ask_until_answered(console: &mut Console) -> Result<Value> {
    const REPLY: &str = "\"cmd\":\"crash show\"";
    let begin = Instant::now();
    while begin.elapsed() < BOOT {
        let guest = console.guest();
        guest.send(b"\x03json on\rcrash show\r")?;
        let answered = guest.expect_any(&[REPLY, "crash: end\n"], ANSWER);
        if let Ok((0, _)) = answered {
            let rest = guest.expect("\n", ANSWER)?;
            let (_, rest) = rest.split_once(',').context("an object")?;
            let reply: Value = serde_json::from_str(&format!("{{{rest}"))?;
            if reply["crashes"] == 1 {
                return Ok(reply);
            }
        }
    }
    bail!("the machine does not come back")
}
