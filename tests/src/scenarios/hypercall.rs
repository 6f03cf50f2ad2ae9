//! Scenarios that end TDs: by hypercall, of themselves and others, and by the operator at any moment.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::stage::{ANSWER, LIFE, Named, Words, machine, nothing_is_left, used, wait_for_state};
use super::{Bench, Scenario};

pub const ALL: &[Scenario] = &[
    Scenario::new("terminate-by-hypercall", terminate),
    Scenario::new("terminate-stress", stress),
];

/// Time limit of a guest's checks on a busy computer.
const CHECKS: Duration = Duration::from_secs(180);

/// A guest without `control` may end only itself; one with it ends all running TDs, and itself.
fn terminate(bench: &mut Bench) -> Result<()> {
    let tds = [
        Named::new("spin", "64M", 2).called("first"),
        Named::new("spin", "64M", 4).called("second"),
        Named::new("control", "64M", 1).called("plain"),
        Named::new("control", "64M", 2)
            .called("boss")
            .with("control = true"),
    ];
    let machine = machine(bench, &tds)?;
    let mut console = bench.console(&machine)?;
    let before = used(&mut console)?;
    for name in ["first", "second", "plain"] {
        console.succeed(&format!("td start {name}"), LIFE)?;
    }
    Words::of("plain").wait(&mut console, "control: 4 passed, 0 failed", CHECKS)?;
    wait_for_state(&mut console, "plain", "reclaimed", LIFE)?;
    wait_for_state(&mut console, "first", "runnable", LIFE)?;
    console.succeed("td start boss", LIFE)?;
    let mut words = Words::of("boss");
    words.wait(&mut console, "control: 6 passed, 0 failed", CHECKS)?;
    for name in ["first", "second", "boss"] {
        wait_for_state(&mut console, name, "reclaimed", LIFE)?;
    }
    let ended = words.text.lines().find(|line| line.starts_with("ended"));
    bench.note(ended.unwrap_or_default());
    nothing_is_left(&mut console, &["first", "second", "plain", "boss"], before)
}

/// The TDs of the stress test, and the commands that end them.
const NAMES: [&str; 3] = ["mem", "smp", "spin"];
const WAYS: [&str; 3] = ["td terminate", "td destroy", "td destroy --dynamic"];
/// Number of rounds of the stress test.
const ROUNDS: u64 = 12;
/// Milliseconds by which each round is longer than the one before, and the maximum length of a round.
const LONGER: u64 = 217;
const LONGEST: u64 = 1500;

/// Ends TDs while they start their vCPUs, accept and share memory, or spin, each time at another moment and in another
/// way, while the memory of earlier ones is still being reclaimed.
fn stress(bench: &mut Bench) -> Result<()> {
    let tds = NAMES.map(|guest| Named::new(guest, "96M", 4));
    let machine = machine(bench, &tds)?;
    let mut console = bench.console(&machine)?;
    let before = used(&mut console)?;
    for round in 0..ROUNDS {
        for name in NAMES {
            console.succeed(&format!("td start {name}"), LIFE)?;
        }
        sleep(Duration::from_millis(round * LONGER % LONGEST));
        if round % 3 == 0 {
            console.ask("td shrink spin 32M", LIFE)?;
        }
        if round % 4 == 1 {
            console.ask("td pause smp", ANSWER)?;
        }
        for (at, name) in NAMES.into_iter().enumerate() {
            let way = WAYS[(at + round as usize) % WAYS.len()];
            console.succeed(&format!("{way} {name}"), LIFE)?;
        }
        for name in NAMES {
            wait_for_state(&mut console, name, "reclaimed", LIFE)?;
        }
    }
    bench.note(format!("{ROUNDS} rounds of 3 TDs"));
    nothing_is_left(&mut console, &NAMES, before)
}
