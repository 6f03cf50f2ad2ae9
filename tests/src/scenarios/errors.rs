//! Scenarios with hardware errors: machine checks and NMIs that QEMU's monitor injects, and a machine check in a TD.

use anyhow::{Context, Result, ensure};

use super::stage::{self, ANSWER, CHECKS, LIFE, Named, Words, until};
use super::{Bench, Scenario};
use crate::console::Console;

pub const ALL: &[Scenario] = &[
    Scenario::new("machine-check", machine_check),
    Scenario::new("machine-check-report", machine_check_report),
    Scenario::new("td-machine-check", td_machine_check),
    Scenario::new("foreign-nmi", foreign_nmi),
];

/// VAL, EN, MISCV, ADDRV; one corrected error; a memory controller.
const CORRECTED: &str = "0x9c00004000000090";
/// VAL, UC, EN, MISCV, ADDRV, S; memory scrubbing.
const SCRUBBED: &str = "0xbd000000000000c1";
/// VAL, UC, EN, MISCV, ADDRV, PCC; a load of poisoned data.
const CORRUPT: &str = "0xbe00000000000134";
/// MISC of a physical address that is exact to a line.
const LINE: &str = "0x86";
/// RIPV and MCIP.
const RUNNING: &str = "5";

/// Plain QEMU: a corrected error is counted, a scrubbed page goes into quarantine, and a corrupt CPU is the end.
fn machine_check(bench: &mut Bench) -> Result<()> {
    let mut machine = bench.machine()?;
    machine.stub = None;
    machine.monitor = true;
    let mut console = bench.console(&machine)?;
    let before = console.succeed("mca", ANSWER)?;
    ensure!(before["cpus"][0]["corrected"] == 0, "{before}");
    inject(&mut console, 0, CORRECTED, "0", 0x1234_5000)?;
    let counted = console.succeed("mca", ANSWER)?;
    ensure!(counted["cpus"][0]["corrected"] == 1, "{counted}");
    let last = &counted["last"][0];
    ensure!(
        last["address"] == "0x12345000" && last["verdict"] == "corrected",
        "{counted}"
    );

    // The second half of the memory is free: no TDX module needs it.
    inject(&mut console, 0, SCRUBBED, RUNNING, 0x5000_0000)?;
    let survived = console.succeed("mca", ANSWER)?;
    ensure!(
        survived["cpus"][0]["machine_checks"] == 1 && survived["cpus"][0]["uncorrected"] == 1,
        "{survived}"
    );
    let quarantined = until(&mut console, "mem", |mem| {
        mem["ledger"]["quarantined_bytes"] == 4096
    })?;
    ensure!(quarantined["ledger"]["balanced"] == true, "{quarantined}");

    inject(&mut console, 0, CORRUPT, RUNNING, 0x5000_0000)?;
    let record = crash(&mut console)?;
    has(
        &record,
        &[
            "cause=machine-check",
            "crash: vector=18 name=#MC ",
            "crash: reason=the CPU's state may be corrupt (PCC)",
            "crash: mc_cpu=0 mcg_status=0x5",
            "crash: mc_cpu=0 mc_bank=1 status=0xbe00000000000134 addr=0x50000000 misc=0x86 verdict=fatal",
        ],
    )
}

/// The report of a fatal machine check has the banks of every CPU, not only of the one that received it.
fn machine_check_report(bench: &mut Bench) -> Result<()> {
    let mut machine = bench.machine()?;
    machine.monitor = true;
    let mut console = bench.console(&machine)?;
    // Nothing signals this one, so it stays in its bank.
    inject(&mut console, 1, CORRECTED, "0", 0x1234_5000)?;
    inject(&mut console, 2, CORRUPT, RUNNING, 0x5000_0000)?;
    let record = crash(&mut console)?;
    has(
        &record,
        &[
            "crash: cpu=2 ",
            "crash: mc_cpu=0 mcg_status=0x0",
            "crash: mc_cpu=1 mc_bank=1 status=0x9c00004000000090 addr=0x12345000",
            "crash: mc_cpu=2 mcg_status=0x5",
            "crash: mc_cpu=2 mc_bank=1 status=0xbe00000000000134",
            "crash: mc_cpu=3 mcg_status=0x0",
        ],
    )
}

/// A machine check in a TD ends that TD. The machine and another TD go on, and the TD can be started again.
fn td_machine_check(bench: &mut Bench) -> Result<()> {
    /// An entry of the first TD. The second is not started yet.
    const HOOK: &str = "machine-check TDH.VP.ENTER call 5";
    let hello = || Named::new("hello", "64M", 1);
    let tds = [hello().called("struck"), hello().called("other")];
    let machine = stage::machine(bench, &tds)?.with_stub_option("hooks", HOOK);
    let mut console = bench.console(&machine)?;
    console.succeed("td start struck", LIFE)?;
    let ended = until(&mut console, "td show struck", |td| td["state"] == "paused")?;
    let problem = ended["problem"].as_str().unwrap_or_default();
    ensure!(problem.starts_with("machine check in the TD"), "{problem}");
    let mca = console.succeed("mca", ANSWER)?;
    let cpus = mca["cpus"].as_array().map_or(&[][..], Vec::as_slice);
    let checks: u64 = cpus
        .iter()
        .filter_map(|cpu| cpu["machine_checks"].as_u64())
        .sum();
    ensure!(checks == 1, "{mca}");
    console.succeed("td start other", LIFE)?;
    Words::of("other").pass(&mut console, "hello", CHECKS)?;
    // The TD that was struck starts again.
    console.succeed("td destroy struck", LIFE)?;
    console.succeed("td start struck", LIFE)?;
    Words::of("struck").pass(&mut console, "hello", CHECKS)?;
    stage::nothing_illegal(&mut console)
}

/// A foreign NMI is counted, or is the end, as the operator chooses.
fn foreign_nmi(bench: &mut Bench) -> Result<()> {
    let mut machine = bench.machine_with_config("[host]\nnmi = \"log\"\n")?;
    machine.stub = None;
    machine.monitor = true;
    let mut console = bench.console(&machine)?;
    console.guest().monitor("nmi")?;
    let counted = until(&mut console, "mca", |mca| {
        let nmis = mca["nmis"].as_array().map_or(&[][..], Vec::as_slice);
        let unknown = nmis.iter().find(|nmis| nmis["source"] == "unknown");
        unknown.is_some_and(|unknown| unknown["count"] == 1)
    })?;
    ensure!(counted["last"] == serde_json::json!([]), "{counted}");
    drop(console);

    let mut machine = bench.machine_with_config("")?;
    machine.stub = None;
    machine.monitor = true;
    let mut console = bench.console(&machine)?;
    console.guest().monitor("nmi")?;
    let record = crash(&mut console)?;
    has(
        &record,
        &[
            "cause=nmi",
            "crash: vector=2 name=NMI ",
            "crash: nmi=unknown",
            "crash: mc_cpu=0 mcg_status=0x0",
        ],
    )
}

/// Injects an error into bank 1 of a CPU.
fn inject(console: &mut Console, cpu: u32, status: &str, global: &str, address: u64) -> Result<()> {
    let command = format!("mce {cpu} 1 {status} {global} {address:#x} {LINE}");
    console.guest().monitor(&command).map(drop)
}

/// Waits for the end of a crash record, and returns it.
fn crash(console: &mut Console) -> Result<String> {
    let waited = console.guest().expect("no such text", LIFE);
    ensure!(waited.is_err(), "the machine went on");
    console.guest().crash_record().context("no crash record")
}

fn has(record: &str, lines: &[&str]) -> Result<()> {
    let missing = lines.iter().find(|line| !record.contains(**line));
    ensure!(missing.is_none(), "{missing:?} is not in\n{record}");
    Ok(())
}
