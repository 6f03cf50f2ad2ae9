//! Scenarios with TDs at the operator's console, on a machine that boots as with `cargo xtask run`.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::stage::{Words, output, until, used};
use super::{Bench, Scenario};
use crate::console::Console;
use crate::media::Media;
use crate::qemu::Machine;

pub const ALL: &[Scenario] = &[
    Scenario::new("td-hello", hello),
    Scenario::new("td-commands", commands),
    Scenario::new("td-hkids", hkids),
    Scenario::new("td-rounds", |bench| rounds(bench, 25)),
    Scenario::by_name_only("td-thousand-rounds", |bench| rounds(bench, 1000)),
    Scenario::new("seam-bench", seam_bench),
];

/// Time limit of a report.
const ANSWER: Duration = Duration::from_secs(20);
/// Time limit of building a TD, ending one, or a guest's output.
const WORK: Duration = Duration::from_secs(90);

/// Creates a machine whose TDs all start from *hello*, and its configuration.
fn machine(bench: &Bench, tds: &str) -> Result<Machine> {
    let home = bench.directory()?;
    let image = bench.programs().guest("hello");
    fs::copy(&image, home.join("hello.fd"))
        .with_context(|| format!("can't copy {}", image.display()))?;
    let config = home.join("seamark.toml");
    let tds = tds.replace("[[td]]\n", "[[td]]\nimage = \"hello\"\nmemory = \"16M\"\n");
    let text = format!("[[file]]\nname = \"hello\"\npath = \"hello.fd\"\n{tds}");
    fs::write(&config, text).context("the configuration")?;
    let media = Media::of_program(&bench.programs().seamark())?.with_config(&config)?;
    let mut machine = Machine::new(bench.disk(&media)?, Some(bench.stub()));
    machine.symbols = Some(bench.programs().symbols("seamark"));
    Ok(machine)
}

fn text<'a>(answer: &'a Value, key: &str) -> &'a str {
    answer[key].as_str().unwrap_or_default()
}

/// Checks that the guest's own TDREPORT, the host and the computation on this computer agree on its measurement.
pub(super) fn hello(bench: &mut Bench) -> Result<()> {
    let machine = machine(
        bench,
        "[[td]]\nname = \"hello\"\nvcpus = 2\nautostart = true\n",
    )?;
    let mut console = bench.console(&machine)?;
    let mut words = Words::of("hello");
    let checks = words.pass(&mut console, "hello", WORK)?;
    let said = &words.text;
    ensure!(checks == 3, "{said}");
    let shown = console.succeed("td show hello", ANSWER)?;
    ensure!(text(&shown, "state") == "runnable", "{shown}");
    ensure!(shown["hkid"].is_u64(), "{shown}");
    let pages = |size: &str| shown["pages"][size].as_u64().unwrap_or_default();
    ensure!(
        pages("private_2m") >= 7 && pages("private_4k") > 0,
        "{shown}"
    );
    let mrtd = text(&shown, "mrtd");
    ensure!(said.contains(&format!("MRTD {mrtd}")), "{mrtd}: {said}");
    let config = bench.directory()?.join("seamark.toml");
    let measured = bench.programs().measure(&config)?;
    let is_same = |line: &str| line.contains("MRTD") && line.ends_with(mrtd);
    ensure!(measured.lines().any(is_same), "{mrtd}: {measured}");
    bench.note(format!("MRTD {mrtd} three times"));
    nothing_illegal(&mut console)
}

/// The last output of *hello*.
const DONE: &str = "3 passed, 0 failed";

/// Runs every command of a TD's life on a running TD.
fn commands(bench: &mut Bench) -> Result<()> {
    let machine = machine(bench, "[[td]]\nname = \"one\"\nvcpus = 2\n")?;
    let mut console = bench.console(&machine)?;
    let before = ledger(&mut console)?;
    // Waits in the TD's present life.
    let done = |console: &mut Console| Words::of("one").wait(console, DONE, WORK);
    for (command, state) in [
        ("td create one", "paused"),
        ("td start one", "runnable"),
        ("td pause one", "paused"),
        ("td resume one", "runnable"),
    ] {
        let answer = console.succeed(command, WORK)?;
        ensure!(text(&answer, "state") == state, "{command}: {answer}");
    }
    done(&mut console)?;
    let shown = console.succeed("td show one", ANSWER)?;
    ensure!(
        shown["cpus"][0]["run_us"].as_u64() > Some(0)
            && shown["cpus"][0]["entries"].as_u64() > Some(0),
        "{shown}"
    );
    // The memory above 12 MiB is the guest's, which does not use it again.
    let shrunk = console.succeed("td shrink one 12M", WORK)?;
    ensure!(shrunk["taken"]["private_2m"] == 2, "{shrunk}");
    console.succeed("td reset one", WORK)?;
    done(&mut console)?;
    let all = output(&mut console, "one", 0, ANSWER)?;
    ensure!(
        all.from == 0 && all.began > 0 && all.text.matches(DONE).count() == 2,
        "what it said before the reset is gone: {all:?}"
    );

    let refused = console.ask("td regs one", ANSWER)?;
    ensure!(
        text(&refused, "error").contains("not a debug TD"),
        "{refused}"
    );

    let ended = console.succeed("td terminate one", WORK)?;
    ensure!(ended["already"] == false, "{ended}");
    until(&mut console, "td show one", |answer| {
        text(answer, "state") == "reclaimed"
    })?;
    console.succeed("td start one", WORK)?;
    done(&mut console)?;
    let ended = console.succeed("td destroy --dynamic one", WORK)?;
    ensure!(text(&ended, "state") == "reclaimed", "{ended}");
    ensure!(
        ended["work"]["leafs"]
            .to_string()
            .contains("TDH.MEM.PAGE.REMOVE"),
        "{ended}"
    );
    let (frames, hkids) = ledger(&mut console)?;
    ensure!(
        (&frames, &hkids) == (&before.0, &before.1),
        "{frames} {hkids}"
    );
    nothing_illegal(&mut console)
}

/// Checks that the first TD without an HKID is refused with a reason, and starts after another has ended.
fn hkids(bench: &mut Bench) -> Result<()> {
    let count = {
        let machine = machine(bench, "")?;
        let mut console = bench.console(&machine)?;
        let hkids = console.succeed("hkids", ANSWER)?;
        hkids["free"].as_u64().context("how many HKIDs are free")?
    };
    let tds: String = (0..=count)
        .map(|number| format!("[[td]]\nname = \"td{number}\"\n"))
        .collect();
    let machine = machine(bench, &tds)?;
    let mut console = bench.console(&machine)?;
    for number in 0..count {
        console.succeed(&format!("td create td{number}"), WORK)?;
    }
    let start = format!("td start td{count}");
    let refused = console.ask(&start, WORK)?;
    ensure!(
        text(&refused, "error").contains("no HKID is left for another TD"),
        "{refused}"
    );
    console.succeed("td destroy td0", WORK)?;
    console.succeed(&start, WORK)?;
    bench.note(format!("{count} TDs at once, and one more"));
    nothing_illegal(&mut console)
}

/// Runs TDs one after the other: frames, heap and HKIDs must be as before.
pub(super) fn rounds(bench: &mut Bench, count: u32) -> Result<()> {
    let machine = machine(bench, "[[td]]\nname = \"one\"\nvcpus = 2\n")?;
    let mut console = bench.console(&machine)?;
    let start = Instant::now();
    // The console remembers 64 lines: when all of them are of this kind, it stores nothing more.
    const WARM_UP: u32 = 25;
    // The report of the last life is a few bytes longer or shorter, depending on whether its calls met others. The heap
    // must be as it was after one of these further rounds; memory that leaks in each round never comes back to that.
    const MORE: u32 = 20;
    let round = |console: &mut Console| -> Result<()> {
        for command in ["td create one", "td start one", "td destroy one"] {
            console.succeed(command, WORK)?;
        }
        Ok(())
    };
    for _ in 0..WARM_UP {
        round(&mut console)?;
    }
    let before = (ledger(&mut console)?, heap(&mut console)?);
    for _ in 0..count {
        round(&mut console)?;
    }
    let each = start.elapsed() / (WARM_UP + count);
    let mut after = (ledger(&mut console)?, heap(&mut console)?);
    for _ in 0..MORE {
        ensure!(after.0 == before.0, "{before:?}, {after:?}");
        if after.1 == before.1 {
            break;
        }
        round(&mut console)?;
        after = (ledger(&mut console)?, heap(&mut console)?);
    }
    ensure!(after == before, "{before:?}, {after:?}");
    bench.note(format!("{count} rounds, {} ms each", each.as_millis()));
    nothing_illegal(&mut console)
}

/// Checks that the cycles of every leaf of a TD's life are measured.
fn seam_bench(bench: &mut Bench) -> Result<()> {
    let machine = machine(bench, "")?;
    let mut console = bench.console(&machine)?;
    let before = ledger(&mut console)?;
    let answer = console.succeed("seam bench", WORK)?;
    ensure!(answer["problem"].is_null(), "{answer}");
    let times = answer["leafs"].as_array().context("the leafs")?;
    let leafs = times.len();
    ensure!(leafs > 33, "{answer}");
    // Leafs that need a guest; only this machine runs a guest's code.
    for leaf in ["TDH.VP.ENTER", "TDH.MEM.PAGE.PROMOTE"] {
        let time = times.iter().find(|time| time["leaf"] == leaf);
        let time = time.with_context(|| format!("{leaf} is not among {answer}"))?;
        bench.note(format!("{leaf}: {} ticks (median)", time["median"]));
    }
    ensure!(ledger(&mut console)? == before, "something is missing");
    bench.note(format!("{leafs} leafs, {} rounds", answer["rounds"]));
    nothing_illegal(&mut console)
}

/// Returns the bytes that the hypervisor uses besides its heap, and the HKIDs.
fn ledger(console: &mut Console) -> Result<(String, String)> {
    let memory = used(console)?;
    let hkids = console.succeed("hkids", ANSWER)?;
    Ok((format!("{memory:?}"), hkids.to_string()))
}

fn heap(console: &mut Console) -> Result<u64> {
    let memory = console.succeed("mem", ANSWER)?;
    memory["heap"]["used_bytes"].as_u64().context("the heap")
}

/// Checks that no illegal SEAMCALL was made.
fn nothing_illegal(console: &mut Console) -> Result<()> {
    let stats = console.succeed("stats", ANSWER)?;
    ensure!(
        stats["total"]["illegal"] == 0 && stats["faults"] == 0 && stats["lost_pages"] == 0,
        "{stats}"
    );
    Ok(())
}
