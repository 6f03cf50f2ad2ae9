//! A guest that executes anything and dies of it, life after life, beside TDs that must not notice.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::stage::{ANSWER, LIFE, Named, Words, machine, nothing_is_left, output, used};
use super::{Bench, Scenario};
use crate::console::Console;

pub const ALL: &[Scenario] = &[
    Scenario::new("chaos", |bench| {
        chaos(bench, 2_000, Duration::from_secs(150))
    }),
    Scenario::by_name_only("chaos-long", |bench| {
        chaos(bench, 100_000, Duration::from_secs(40 * 60))
    }),
];

/// The guest's name, and those of the TDs beside it.
const CHAOS: &str = "chaos";
const BESIDE: [&str; 2] = ["smp", "other"];
/// Time limit for a life without output. The guest prints a line every few milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Interval between two looks at the guest.
const LOOK: Duration = Duration::from_millis(50);
/// Interval between two reads of the other TDs' consoles.
const LISTEN: Duration = Duration::from_secs(10);
/// Steps per crash of QEMU's own that the scenario tolerates, and crashes beyond that.
const STEPS_PER_CRASH: u64 = 1_000;
const SPARE_CRASHES: u64 = 6;

/// What came of it so far.
#[derive(Debug, Default)]
struct Tally {
    steps: u64,
    lives: u64,
    /// Lives that stood still, and those that ended, by what was said of them.
    hangs: u64,
    ends: BTreeMap<String, u64>,
    seed: String,
}

/// Goes on until the guest has made so many steps. That takes as long as `goal` at most on a computer that does nothing else; a
/// busy one may take three times as long.
fn chaos(bench: &mut Bench, steps: u64, goal: Duration) -> Result<()> {
    let tds = [
        Named::new("chaos", "16M", 1),
        Named::new("smp", "64M", 1),
        Named::new("smp", "64M", 1).called("other"),
    ];
    let machine = machine(bench, &tds)?;
    let mut tally = Tally::default();
    let begin = Instant::now();
    let mut given_up = Vec::new();
    loop {
        let mut console = bench.console(&machine)?;
        let Err(error) = live(&mut console, &mut tally, steps, begin + 3 * goal) else {
            break;
        };
        let seed = &tally.seed;
        let words = bench.emulator_words(&mut console)?;
        let tolerated = SPARE_CRASHES + tally.steps / STEPS_PER_CRASH;
        if words.is_empty() || given_up.len() as u64 >= tolerated {
            return Err(error.context(format!("in the life that began with `{seed}`")));
        }
        given_up.push(format!("QEMU itself gave up: {words} (`{seed}`)"));
    }
    let seconds = begin.elapsed().as_secs_f64();
    bench.note(format!(
        "{} steps in {} lives, {seconds:.0} s: {:.0} steps a second; {} lives stood still",
        tally.steps,
        tally.lives,
        tally.steps as f64 / seconds,
        tally.hangs
    ));
    for (end, count) in &tally.ends {
        bench.note(format!("{count:>5} {end}"));
    }
    for (check, count) in bench.unexplained()? {
        bench.note(format!("{count:>5} unexplained: {check}"));
    }
    bench.note(format!("QEMU itself gave up {} times", given_up.len()));
    given_up.into_iter().for_each(|words| bench.note(words));
    Ok(())
}

/// Lives on one machine, until there were enough steps.
fn live(console: &mut Console, tally: &mut Tally, steps: u64, deadline: Instant) -> Result<()> {
    let before = used(console)?;
    let mut beside = Vec::new();
    for name in BESIDE {
        console.succeed(&format!("td start {name}"), LIFE)?;
        let mut words = Words::of(name);
        words.wait(console, " ms counts ", LIFE)?;
        beside.push(words);
    }
    console.succeed("td start chaos", LIFE)?;
    let mut lives = Lives::default();
    let mut listened = Instant::now();
    while tally.steps < steps {
        ensure!(Instant::now() < deadline, "it takes too long: {tally:?}");
        lives.look(console, tally)?;
        if listened.elapsed() > LISTEN {
            listened = Instant::now();
            for words in &mut beside {
                words.read(console)?;
            }
        }
    }
    for words in &mut beside {
        words.read(console)?;
        let reports = words.text.matches(" ms counts ").count();
        let begin = Instant::now();
        while words.text.matches(" ms counts ").count() < reports + 2 {
            ensure!(begin.elapsed() < LIFE, "a TD beside it stands still");
            sleep(LOOK);
            words.read(console)?;
        }
    }
    nothing_is_left(console, &[CHAOS, BESIDE[0], BESIDE[1]], before)
}

/// The guest, from its first life on one machine on.
#[derive(Default)]
struct Lives {
    /// The next byte of its console, and the line that is not complete.
    next: u64,
    line: String,
    /// Steps that the present life has told of, and when it last said something.
    told: u64,
    heard: Option<Instant>,
}

impl Lives {
    /// Listens, and starts the next life where one has ended.
    fn look(&mut self, console: &mut Console, tally: &mut Tally) -> Result<()> {
        let tds = console.succeed("td list", ANSWER)?;
        let tds = tds["tds"].as_array().context("no TDs")?;
        let report = tds.iter().find(|td| td["name"] == CHAOS);
        let report = report.with_context(|| format!("no {CHAOS} in {tds:?}"))?;
        let answer = output(console, CHAOS, self.next, ANSWER)?;
        if answer.next != self.next {
            self.heard = Some(Instant::now());
        }
        self.next = answer.next;
        self.line += &answer.text;
        while let Some((line, rest)) = self.line.split_once('\n') {
            let (line, rest) = (line.trim().to_owned(), rest.to_owned());
            self.line = rest;
            self.hear(&line, tally);
        }
        let state = report["state"].as_str().unwrap_or_default();
        let ended = match (report["problem"].as_str(), state) {
            (Some(problem), "paused") => Some(kind(problem)),
            (_, "reclaimed") => Some("it switched itself off".to_owned()),
            _ => None,
        };
        match ended {
            Some(end) => {
                *tally.ends.entry(end).or_default() += 1;
                let command = if state == "paused" { "reset" } else { "start" };
                self.begin(console, command)?;
            }
            None if self.heard.is_some_and(|at| at.elapsed() > PATIENCE) => {
                tally.hangs += 1;
                self.begin(console, "reset")?;
            }
            None => sleep(LOOK),
        }
        Ok(())
    }

    /// Starts the next life. A TD that was paused is so after a reset.
    fn begin(&mut self, console: &mut Console, command: &str) -> Result<()> {
        let answer = console.succeed(&format!("td {command} {CHAOS}"), LIFE)?;
        if answer["state"] == "paused" {
            console.succeed(&format!("td resume {CHAOS}"), LIFE)?;
        }
        self.heard = Some(Instant::now());
        Ok(())
    }

    fn hear(&mut self, line: &str, tally: &mut Tally) {
        let Some(said) = line.strip_prefix("chaos: ") else {
            return;
        };
        if said.starts_with("seed ") {
            tally.lives += 1;
            said.clone_into(&mut tally.seed);
            self.told = 0;
        } else if let Some(steps) = said.strip_suffix(" steps") {
            let steps = steps.parse().unwrap_or(self.told).max(self.told);
            tally.steps += steps - self.told;
            self.told = steps;
        }
    }
}

/// What is said of an end, without the numbers.
fn kind(problem: &str) -> String {
    let words = problem.split_whitespace().map(|word| {
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            "N"
        } else {
            word
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

impl Bench {
    /// If QEMU has ended by a signal of its own making: which, and what it said. A machine that switches itself off or resets
    /// itself is none of that.
    fn emulator_words(&self, console: &mut Console) -> Result<String> {
        const SOON: Duration = Duration::from_secs(2);
        let Ok(status) = console.guest().wait_for_end(SOON) else {
            return Ok(String::new());
        };
        let run = self.last_run().context("no machine was started")?;
        let log = fs::read_to_string(run.join("qemu.log")).context("QEMU's messages")?;
        let said = log.lines().next().unwrap_or("nothing");
        Ok(match status.signal() {
            Some(signal) => format!("signal {signal}, it said: {said}"),
            None => String::new(),
        })
    }
}
