//! Scenarios about the console's serial port: its reader, its interrupt, its place; and the watchdog that its loop
//! feeds.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Bench, Scenario};
use crate::console::Console;
use crate::qemu::{Debugger, Guest, Machine, Shape};

pub const ALL: &[Scenario] = &[
    Scenario::new("console-reader-pauses", reader_pauses),
    Scenario::new("console-other-irq", other_irq),
    Scenario::new("console-on-com2", on_com2),
    Scenario::new("console-by-spcr", by_spcr),
    Scenario::new("watchdog", watchdog),
    Scenario::by_name_only("watchdog-by-wdat", watchdog_by_wdat),
];

/// Time limit of an answer, for a busy computer.
const LIMIT: Duration = Duration::from_secs(240);

/// Time limit of an answer that may be lost.
const AGAIN: Duration = Duration::from_secs(30);

/// A script sends 1,000 requests at once while nobody reads the replies. Every reply arrives, or is counted as lost.
fn reader_pauses(bench: &mut Bench) -> Result<()> {
    const REQUESTS: usize = 1000;
    let machine = bench.machine()?;
    let mut console = bench.console(&machine)?;
    console.succeed("version", LIMIT)?;
    let length = console.enter("mem", LIMIT)?.text.len();
    let guest = console.guest();
    let from = guest.transcript().len();
    let pause = guest.stop_reading();
    let mut writer = guest.writer();
    let script = "mem\r".repeat(REQUESTS);
    let sent = std::thread::spawn(move || writer.write_all(script.as_bytes()));
    // The console counts a second without progress as a stall, and then loses what its ring of 512 KiB does not hold.
    guest.pause(Duration::from_secs(20))?;
    drop(pause);
    sent.join().expect("the writer does not panic")?;
    // A reply that comes before the port has taken anything again may be lost, too.
    let answered = |guest: &mut Guest| {
        guest.send(b"version\r")?;
        guest.expect("{\"cmd\":\"version\"", AGAIN)?;
        guest.expect("\n", LIMIT)
    };
    let mut tries = 0;
    while let Err(error) = answered(guest) {
        tries += 1;
        ensure!(tries < 10, "the console is dead: {error}");
    }
    let text = guest.transcript();
    let text = text.get(from..).context("the transcript has shrunk")?;
    let (mut replies, mut arrived, mut lost, mut torn) = (0, 0, 0, 0);
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(mark) = line.strip_prefix('[') {
            let number = mark.strip_suffix(" bytes of output lost]");
            lost += number
                .and_then(|number| number.parse::<usize>().ok())
                .with_context(|| format!("{line} is no mark"))?;
            continue;
        }
        match serde_json::from_str::<Value>(line) {
            Ok(reply) if reply["cmd"] == "mem" => {
                (replies, arrived) = (replies + 1, arrived + line.len() + 2)
            }
            Ok(_) => {}
            Err(_) => torn += line.len(),
        }
    }
    bench.note(format!("{replies} replies arrived, {lost} bytes were lost"));
    // Replies differ by a few digits.
    let expected = REQUESTS * (length + 2);
    let found = arrived + torn + lost;
    ensure!(
        found.abs_diff(expected) <= expected / 50,
        "of {expected} bytes, {arrived} arrived, {torn} are in pieces, and {lost} are marked as lost"
    );
    ensure!(torn == 0 || lost != 0, "replies are torn without a mark");
    console.succeed("cpus", LIMIT)?;
    Ok(())
}

/// The port's interrupt is not the one that a PC's first port has: the console is polled, and takes a script.
fn other_irq(bench: &mut Bench) -> Result<()> {
    let console = boot_with(bench, "isa-serial,index=0,irq=5,chardev=serial")?;
    let polled = "the console is polled: its interrupt does not come";
    ensure!(
        console.boot_log().contains(polled),
        "{}",
        console.boot_log()
    );
    take_script(console)
}

/// The only serial port is the second one.
fn on_com2(bench: &mut Bench) -> Result<()> {
    let console = boot_with(bench, "isa-serial,index=1,chardev=serial")?;
    let log = console.boot_log();
    ensure!(log.contains("the console is COM2 (I/O port 0x2f8"), "{log}");
    ensure!(!log.contains("the console is polled"), "{log}");
    take_script(console)
}

/// The machine has two ports, and the firmware's table names the second one.
fn by_spcr(bench: &mut Bench) -> Result<()> {
    let mut body = vec![0; 44];
    // A GAS: I/O space, 8 bits, byte accesses.
    body[4..8].copy_from_slice(&[1, 8, 0, 1]);
    body[8..10].copy_from_slice(&0x2F8u16.to_le_bytes());
    // ISA interrupt 3, 115,200 baud.
    body[16..18].copy_from_slice(&[1, 3]);
    body[22] = 7;
    let mut machine = bench.machine()?;
    let mut further = vec![
        "-chardev",
        "null,id=none",
        "-device",
        "isa-serial,index=0,chardev=none",
    ];
    further.extend(acpi_table(bench, "SPCR", &body)?);
    machine.shape = Shape {
        serial: "isa-serial,index=1,chardev=serial",
        further: further.leak(),
        ..Shape::USUAL
    };
    let console = bench.console(&machine)?;
    let log = console.boot_log();
    let expected = "the console is COM2 (I/O port 0x2f8, 115200 baud, as the firmware's SPCR says)";
    ensure!(log.contains(expected), "{log}");
    take_script(console)
}

/// Writes the body of an ACPI table. Returns QEMU's arguments that add the table.
fn acpi_table(bench: &Bench, signature: &str, body: &[u8]) -> Result<[&'static str; 2]> {
    let path = bench.directory()?.join(format!("{signature}.bin"));
    std::fs::write(&path, body)?;
    let path = path.display().to_string().replace(',', ",,");
    let table = format!("sig={signature},rev=1,oem_id=SEAMRK,oem_table_id=SEAMRK01,data={path}");
    Ok(["-acpitable", table.leak()])
}

fn boot_with(bench: &mut Bench, serial: &'static str) -> Result<Console> {
    let mut machine = bench.machine()?;
    machine.shape = Shape {
        serial,
        ..Shape::USUAL
    };
    bench.console(&machine)
}

/// Sends a script of 200 lines at once, and counts the answers.
fn take_script(mut console: Console) -> Result<()> {
    console.succeed("version", LIMIT)?;
    let guest = console.guest();
    guest.send("version\r".repeat(200).as_bytes())?;
    for _ in 0..200 {
        guest.expect("{\"cmd\":\"version\",\"ok\":true", LIMIT)?;
    }
    guest.expect("\n", LIMIT)?;
    Ok(())
}

/// Seconds of the watchdog in the scenarios below.
const SECONDS: u64 = 20;

/// The watchdog leaves a machine alone that works, and resets one whose first CPU hangs.
fn watchdog(bench: &mut Bench) -> Result<()> {
    let mut console = boot_watched(bench, &[], "the watchdog is the chipset's (TCO), of 21 s")?;
    // Longer than the watchdog's time.
    let fed = Instant::now();
    while fed.elapsed() < Duration::from_secs(SECONDS * 3 / 2) {
        console.succeed("version", LIMIT)?;
        console.guest().pause(Duration::from_secs(1))?;
    }
    hang(bench, console)
}

/// The same timer as an ACPI table describes it.
fn watchdog_by_wdat(bench: &mut Bench) -> Result<()> {
    /// QEMU's TCO registers.
    const TCO: u16 = 0x660;
    // Action, instruction, register, value, mask: reset, set the count, run, stop.
    let entries: [(u8, u8, u16, u32, u32); 4] = [
        (1, 2, 0, 1, 0x3FF),
        (6, 0x83, 0x12, 0, 0x3FF),
        (9, 0x82, 8, 0, 0x800),
        (11, 0x82, 8, 0x800, 0x800),
    ];
    let mut body = vec![0; 32];
    body[0] = 32;
    // A count is two runs of 0.6 s; 4 to 1023 counts; enabled.
    body[12..16].copy_from_slice(&1200u32.to_le_bytes());
    body[16..20].copy_from_slice(&1023u32.to_le_bytes());
    body[20] = 4;
    body[24] = 1;
    body[28] = entries.len() as u8 + 1;
    // Allow the reset: GCS in memory, bit 5 (NO_REBOOT) clear.
    body.extend([17, 0x82, 0, 0, 0, 32, 0, 3]);
    body.extend(0xFED1_F410u64.to_le_bytes());
    body.extend(0u32.to_le_bytes());
    body.extend(0x20u32.to_le_bytes());
    for (action, instruction, register, value, mask) in entries {
        body.extend([action, instruction, 0, 0, 1, 16, 0, 2]);
        body.extend(u64::from(TCO + register).to_le_bytes());
        body.extend(value.to_le_bytes());
        body.extend(mask.to_le_bytes());
    }
    let table = acpi_table(bench, "WDAT", &body)?;
    let expected = "the watchdog is the ACPI tables' (WDAT), of 21 s";
    let console = boot_watched(bench, &table, expected)?;
    hang(bench, console)
}

/// Boots a machine without a stub, whose chipset's timer can reset it, and checks the line about the watchdog.
fn boot_watched(bench: &mut Bench, further: &[&'static str], expected: &str) -> Result<Console> {
    let config = format!("[host]\nwatchdog = \"{SECONDS}s\"\n");
    let mut machine: Machine = bench.machine_with_config(&config)?;
    machine.stub = None;
    // QEMU 7.2's strap that keeps the timer from resetting the machine is set by default.
    let strap = ["-global", "ICH9-LPC.noreboot=off"];
    machine.shape.further = [&strap, further].concat().leak();
    machine.debugger = Some(socket(bench)?);
    let console = bench.console(&machine)?;
    let log = console.boot_log();
    ensure!(log.contains(expected), "{log}");
    Ok(console)
}

fn socket(bench: &Bench) -> Result<PathBuf> {
    Ok(bench.directory()?.join("gdb.sock"))
}

/// Makes the first CPU hang, and waits for the reset, which ends the machine.
fn hang(bench: &mut Bench, mut console: Console) -> Result<()> {
    let hung = Instant::now();
    Debugger::attach(&socket(bench)?)?.hang_first_cpu()?;
    console.guest().wait_for_end(LIMIT)?;
    bench.note(format!(
        "reset {} s after the hang",
        hung.elapsed().as_secs()
    ));
    Ok(())
}
