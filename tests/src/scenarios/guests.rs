//! Scenarios with the project's own guests as TDs: all of their checks must pass, next to other TDs, and no resources
//! may be left.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vcpu::ghci::Branch;

use super::smp::{Bystander, Counts};
use super::stage::{
    ANSWER, CHECKS, LIFE, NOTHING, Named, Words, machine, nothing_illegal, nothing_is_left, output,
    show, type_to, used, wait_for_problem, wait_for_state,
};
use super::{Bench, Scenario};
use crate::media::Media;

pub const ALL: &[Scenario] = &[
    Scenario::new("guest-calls", calls),
    Scenario::new("guest-clock", clock),
    Scenario::new("guest-memory", memory),
    Scenario::new("firmware-mailbox", mailbox),
    Scenario::new("guests-side-by-side", side_by_side),
    Scenario::new("guest-shares", super::shares::shares),
    Scenario::new("guest-ends", ends),
    Scenario::new("debug-td", debug),
    Scenario::new("hostile-guest", |bench| hostile(bench, 10_000)),
    Scenario::by_name_only("hostile-million", |bench| hostile(bench, MILLION)),
    Scenario::new("virtio-hostile", |bench| virtio_hostile(bench, 50_000)),
    Scenario::by_name_only("virtio-million", |bench| virtio_hostile(bench, MILLION)),
    Scenario::new("large-pages", large_pages),
];

const MILLION: u64 = 1_000_000;

/// Runs each request to the host, and each instruction that it serves.
fn calls(bench: &mut Bench) -> Result<()> {
    let tds = [Named::new("calls", "64M", 2), Named::new("hello", "64M", 4)];
    let machine = machine(bench, &tds)?;
    let mut console = bench.console(&machine)?;
    let before = used(&mut console)?;
    for guest in ["calls", "hello"] {
        console.succeed(&format!("td start {guest}"), LIFE)?;
        let mut words = Words::of(guest);
        let checks = words.pass(&mut console, guest, CHECKS)?;
        bench.note(format!("{guest}: {checks} checks"));
    }
    nothing_is_left(&mut console, &["calls", "hello"], before)
}

/// Frequencies of the time-stamp counter that are no multiples of 25 MHz, the unit in which a TD's is configured.
const ODD_CLOCKS: [&str; 2] = ["2596170000", "1999987000"];

/// Checks timers, sleep and time in TDs on machines with such frequencies, and after a long time, because the error of
/// a clock grows with a TD's age.
fn clock(bench: &mut Bench) -> Result<()> {
    for hz in ODD_CLOCKS {
        let tds = [
            Named::new("smp", "64M", 4).with("autostart = true"),
            Named::new("calls", "64M", 2),
        ];
        let machine = machine(bench, &tds)?.with_stub_option("tsc_hz", hz);
        let mut console = bench.console(&machine)?;
        console.succeed("td start calls", LIFE)?;
        let calls = Words::of("calls").pass(&mut console, "calls", CHECKS)?;
        let mut smp = Words::of("smp");
        Counts::by_now(&mut smp, &mut console)?;
        type_to(&mut console, "smp", "q")?;
        let smp = smp.pass(&mut console, "smp", CHECKS)?;
        bench.note(format!("{hz} Hz: {} checks", calls + smp));
        nothing_illegal(&mut console)?;
    }
    Ok(())
}

/// Runs a kernel that sends vCPUs back to the firmware, and wakes them again.
fn mailbox(bench: &mut Bench) -> Result<()> {
    const NAME: &str = "test-kernel";
    let config = format!(
        "[[file]]\nname = \"{NAME}\"\npath = \"{NAME}\"\n\n\
         [[td]]\nname = \"{NAME}\"\nkernel = \"{NAME}\"\nmemory = \"64M\"\nvcpus = 4\n"
    );
    let media = Media::of_program(&bench.programs().seamark())?
        .with_config_text(&config)
        .with_file(NAME, &bench.programs().test_kernel())?;
    let machine = bench.machine_with(&media)?;
    let mut console = bench.console(&machine)?;
    let before = used(&mut console)?;
    console.succeed(&format!("td start {NAME}"), LIFE)?;
    let checks = Words::of(NAME).pass(&mut console, NAME, CHECKS)?;
    bench.note(format!("{checks} checks"));
    nothing_is_left(&mut console, &[NAME], before)
}

/// Accepts, shares and takes back memory, in a TD that gets #VE for memory it has not accepted, and in one that does
/// not.
pub(super) fn memory(bench: &mut Bench) -> Result<()> {
    let tds = [
        Named::new("mem", "256M", 4),
        Named::new("mem", "128M", 2)
            .called("told")
            .with("sept_ve_disable = false"),
    ];
    let machine = machine(bench, &tds)?;
    let mut console = bench.console(&machine)?;
    let before = used(&mut console)?;
    for name in ["mem", "told"] {
        console.succeed(&format!("td start {name}"), LIFE)?;
    }
    for name in ["mem", "told"] {
        let checks = Words::of(name).pass(&mut console, "mem", CHECKS)?;
        bench.note(format!("{name}: {checks} checks"));
    }
    nothing_is_left(&mut console, &["mem", "told"], before)
}

/// Runs *hello* and *smp* on all CPUs of both packages, until *smp* is told to end.
pub(super) fn side_by_side(bench: &mut Bench) -> Result<()> {
    let tds = [
        Named::new("hello", "64M", 1).with("autostart = true"),
        Named::new("smp", "64M", 4).with("autostart = true"),
    ];
    let machine = machine(bench, &tds)?;
    let mut console = bench.console(&machine)?;
    let mut hello = Words::of("hello");
    hello.pass(&mut console, "hello", CHECKS)?;
    let mut smp = Words::of("smp");
    let first = Counts::by_now(&mut smp, &mut console)?;
    let already = smp.text.matches(" ms counts ").count();
    // Waits for three more reports.
    while smp.text.matches(" ms counts ").count() < already + 3 {
        smp.wait(&mut console, " ms counts ", CHECKS)?;
        sleep(Duration::from_secs(1));
    }
    let later = Counts::by_now(&mut smp, &mut console)?;
    for vcpu in 0..4 {
        ensure!(
            later.counts[vcpu] > first.counts[vcpu] && later.interrupts[vcpu] > 0,
            "vCPU {vcpu} does not get on: {first:?}, then {later:?}"
        );
    }
    type_to(&mut console, "smp", "q")?;
    let checks = smp.pass(&mut console, "smp", CHECKS)?;
    bench.note(format!("smp: {checks} checks"));
    wait_for_state(&mut console, "smp", "reclaimed", LIFE)?;
    console.succeed("td destroy hello", LIFE)?;
    nothing_illegal(&mut console)
}

/// Ends guests in every way in which a guest can end itself: only that TD ends, with the reason, and the one next to
/// it continues.
fn ends(bench: &mut Bench) -> Result<()> {
    // The parameter, other configuration, and the expected problem.
    const BAD: [(u64, &str, &str); 6] = [
        (3, "", "it reported fatal error 0x3: hostile to the end"),
        (4, "", "triple fault on vCPU 0"),
        (5, "", "it has no memory at"),
        (6, "", "it has no memory at"),
        (7, "", "it accessed shared memory as private at"),
        (8, "", "it accessed memory that it had not accepted at"),
    ];
    let named = |wish: u64| Named::new("hostile", "64M", 2).wishing(&[wish, 1, wish]);
    let names: Vec<_> = (0..=8).map(|wish| format!("end{wish}")).collect();
    let mut tds: Vec<_> = (1..=8)
        .map(|wish| named(wish).called(&names[wish as usize]))
        .collect();
    tds.push(Named::new("fatal", "64M", 1));
    tds.push(Named::new("smp", "64M", 2));
    let machine = machine(bench, &tds)?;
    let mut console = bench.console(&machine)?;
    let before = used(&mut console)?;
    let mut smp = Bystander::start(&mut console)?;
    for (wish, _, said) in BAD {
        let name = &names[wish as usize];
        console.succeed(&format!("td start {name}"), LIFE)?;
        let problem = wait_for_problem(&mut console, name, CHECKS)?;
        ensure!(problem.contains(said), "TD {name}: {problem}");
        let mut words = Words::of(name);
        words.read(&mut console)?;
        ensure!(
            words.text.contains(&format!("\r\n[{said}")),
            "its console does not say it:\n{}",
            words.text
        );
        console.succeed(&format!("td destroy {name}"), LIFE)?;
    }
    console.succeed("td start fatal", LIFE)?;
    let problem = wait_for_problem(&mut console, "fatal", CHECKS)?;
    ensure!(
        problem.contains("fatal error 0x5ea: no use in going on, said the guest"),
        "TD fatal: {problem}"
    );
    // After power-off the TD is taken down; after a reset it exists again, to request the next one.
    console.succeed("td start end1", LIFE)?;
    wait_for_state(&mut console, "end1", "reclaimed", CHECKS)?;
    console.succeed("td start end2", LIFE)?;
    let begin = Instant::now();
    while output(&mut console, "end2", NOTHING, ANSWER)?.began == 0 {
        ensure!(begin.elapsed() < CHECKS, "TD end2 is not built anew");
        sleep(Duration::from_millis(300));
    }
    let mut again = Words::of("end2");
    again.wait(&mut console, "hostile: end 2", CHECKS)?;
    let all = output(&mut console, "end2", 0, ANSWER)?.text;
    ensure!(
        all.contains("\r\n[it asked for a reset]\r\n\r\n[started anew]\r\n"),
        "its console does not tell of its reset:\n{all}"
    );
    console.succeed("td destroy end2", LIFE)?;
    smp.goes_on(&mut console)?;
    bench.note(format!("{} ways to end", BAD.len() + 3));
    nothing_is_left(&mut console, &["end2", "fatal", "smp"], before)
}

/// Checks that a debug TD shows its registers and memory, and that a production TD refuses.
fn debug(bench: &mut Bench) -> Result<()> {
    let tds = [
        Named::new("hello", "64M", 1)
            .called("open")
            .with("debug = true"),
        Named::new("hello", "64M", 1).called("closed"),
    ];
    let machine = machine(bench, &tds)?;
    let mut console = bench.console(&machine)?;
    let before = used(&mut console)?;
    for name in ["open", "closed"] {
        console.succeed(&format!("td start {name}"), LIFE)?;
        Words::of(name).pass(&mut console, "hello", CHECKS)?;
    }
    console.succeed("td pause open", ANSWER)?;
    let regs = console.succeed("td regs open", ANSWER)?;
    let registers = regs["registers"].as_array().context("no registers")?;
    let value = |name: &str| {
        let register = registers.iter().find(|r| r["name"] == name);
        register
            .and_then(|r| r["value"].as_str())
            .unwrap_or_default()
    };
    // The guest halts in 64-bit mode, within the program, below the image's end.
    ensure!(value("RIP").starts_with("0xffc"), "{regs}");
    ensure!(value("R11") == "0xc", "it asks to halt: {regs}");
    let dump = console.succeed("td dump open 0xfffff000 4096", ANSWER)?;
    let bytes = dump["bytes"].as_str().unwrap_or_default();
    ensure!(bytes.len() == 8192, "{dump}");
    ensure!(
        bytes.contains("54445646"),
        "the image's TDVF signature is not there: {dump}"
    );
    for command in ["td regs closed", "td dump closed 0xfffff000"] {
        let refused = console.ask(command, ANSWER)?;
        let error = refused["error"].as_str().unwrap_or_default();
        ensure!(
            error.contains("it is not a debug TD"),
            "`{command}`: {refused}"
        );
    }
    console.succeed("td resume open", ANSWER)?;
    nothing_is_left(&mut console, &["open", "closed"], before)
}

/// Makes hostile calls on two vCPUs while another TD runs. A million of them should take two minutes. A busy computer
/// makes them slower, so a longer time is reported, and only a tenth that takes much longer fails.
pub(super) fn hostile(bench: &mut Bench, calls: u64) -> Result<()> {
    const GOAL: Duration = Duration::from_secs(120);
    const ENOUGH: u64 = 1000;
    let tds = [
        Named::new("hostile", "128M", 2).uefi().wishing(&[0, calls]),
        Named::new("smp", "64M", 1),
    ];
    let machine = machine(bench, &tds)?;
    let mut console = bench.console(&machine)?;
    let before = used(&mut console)?;
    let mut smp = Bystander::start(&mut console)?;
    console.succeed("td start hostile", LIFE)?;
    let mut hostile = Words::of("hostile");
    hostile.wait(&mut console, "hostile: seed ", CHECKS)?;
    let begin = Instant::now();
    // The TD's console is full of the output that its calls to the serial port cause.
    while !hostile.text.contains(" refused by the module\r\n") {
        let lines = hostile.text.matches("hostile: ").count();
        hostile.wait_for(&mut console, CHECKS, |text| {
            text.matches("hostile: ").count() > lines
        })?;
        smp.read(&mut console)?;
    }
    let took = begin.elapsed();
    smp.goes_on(&mut console)?;
    let seed = hostile
        .text
        .lines()
        .find(|line| line.starts_with("hostile: seed "));
    bench.note(seed.unwrap_or_default().to_owned());
    let goal = GOAL.mul_f64(calls as f64 / MILLION as f64);
    bench.note(format!(
        "{calls} calls in {:.1} s; they are to take {:.1} s",
        took.as_secs_f64(),
        goal.as_secs_f64()
    ));
    let stats = console.succeed("stats", ANSWER)?;
    let exits = stats["exits"].as_array().context("no exits")?;
    for exit in exits {
        bench.note(format!("{:>9} {}", exit["count"], exit["what"]));
    }
    let seldom: Vec<_> = Branch::ALL
        .iter()
        .filter(|branch| !branch.ends())
        .filter(|branch| {
            let exit = exits.iter().find(|exit| exit["what"] == branch.name());
            exit.and_then(|exit| exit["count"].as_u64()).unwrap_or(0) < ENOUGH
        })
        .map(|branch| branch.name())
        .collect();
    if calls >= MILLION {
        bench.note(format!("less often than {ENOUGH} times: {seldom:?}"));
        // A TD can't exhaust the host's memory, and nobody makes quotes here. The host's own test has both.
        let elsewhere =
            [Branch::MapFailed, Branch::QuoteTaken, Branch::QuoteBusy].map(Branch::name);
        ensure!(
            seldom.iter().all(|name| elsewhere.contains(name)),
            "less often than {ENOUGH} times: {seldom:?}"
        );
    }
    hostile.wait(&mut console, "hostile: end ", CHECKS)?;
    ensure!(!hostile.text.contains("FAIL "), "{}", hostile.text);
    nothing_is_left(&mut console, &["hostile", "smp"], before)
}

/// A guest turns on its virtio devices while another TD runs. Nothing but its own devices stops, and a reset is enough for
/// them to work again.
fn virtio_hostile(bench: &mut Bench, operations: u64) -> Result<()> {
    const DEVICES: &str = "console = \"virtio\"\nvsock = { cid = 3, services = [\"quote\"] }\n\
        [[td.disk]]\nfile = \"queues\"\noverlay = \"4M\"\n[[td.disk]]\nfile = \"queues\"\n\
        [[td.net]]\nnetwork = \"lan\"\n[[network]]\nname = \"lan\"";
    let tds = [
        Named::new("queues", "64M", 1)
            .wishing(&[0, operations])
            .with(DEVICES),
        Named::new("smp", "64M", 1),
    ];
    let machine = machine(bench, &tds)?;
    let mut console = bench.console(&machine)?;
    let before = used(&mut console)?;
    let mut smp = Bystander::start(&mut console)?;
    console.succeed("td start queues", LIFE)?;
    let start = Instant::now();
    // The console is full of what the guest lets its console device write.
    let mut queues = Words::with_gaps("queues");
    while !queues.text.contains(" operations made, ") {
        let so_far = queues.text.len();
        queues.wait_for(&mut console, CHECKS, |text| text.len() > so_far)?;
        smp.read(&mut console)?;
    }
    let rate = operations as f64 / start.elapsed().as_secs_f64();
    let made = queues.text.rfind("queues: seed ").unwrap_or(0);
    let made = queues.text[made..].lines().next().unwrap_or_default();
    bench.note(format!("{made}; {rate:.0} operations a second"));
    queues.pass(&mut console, "queues", CHECKS)?;
    smp.goes_on(&mut console)?;
    nothing_is_left(&mut console, &["queues", "smp"], before)
}

/// Checks that a TD of 1 GiB that has used all of it has hardly any of it in small pages. Memory that was shared and
/// taken back becomes part of a large page again.
fn large_pages(bench: &mut Bench) -> Result<()> {
    let tds = [Named::new("mem", "1G", 4)];
    let mut machine = machine(bench, &tds)?;
    "3G".clone_into(&mut machine.memory);
    let mut console = bench.console(&machine)?;
    let before = used(&mut console)?;
    console.succeed("td start mem", LIFE)?;
    Words::of("mem").pass(&mut console, "mem", CHECKS)?;
    let mut report = show(&mut console, "mem")?;
    let start = Instant::now();
    while report["made_whole"] == 0 && start.elapsed() < CHECKS {
        sleep(Duration::from_millis(300));
        report = show(&mut console, "mem")?;
    }
    ensure!(
        report["made_whole"] != 0,
        "no page was promoted within {} s: {report}",
        CHECKS.as_secs()
    );
    let pages = |key: &str| report["pages"][key].as_u64().unwrap_or_default();
    let (small, large) = (pages("private_4k") * 4, pages("private_2m") * 2048);
    bench.note(format!(
        "{} MiB in pages of 2 MiB, {} KiB in pages of 4 KiB: {:.2} %",
        large >> 10,
        small,
        small as f64 * 100.0 / (small + large) as f64
    ));
    ensure!(small + large >= 1 << 20, "{} KiB in all", small + large);
    ensure!(
        small * 50 <= small + large,
        "{small} KiB are in small pages"
    );
    nothing_is_left(&mut console, &["mem"], before)
}
