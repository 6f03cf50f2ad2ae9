//! A guest that executes anything and dies of it, life after life, beside TDs that must not notice.

mod emulator;

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use self::emulator::Death;

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
/// Number of steps per death of QEMU that the scenario tolerates, and of deaths beyond that.
const STEPS_PER_DEATH: u64 = 1_000;
const SPARE_DEATHS: u64 = 6;
/// Time limit, as a multiple of the time that the steps take on a computer that does nothing else.
const BUSY: u32 = 12;

/// The lives so far.
#[derive(Debug, Default)]
struct Tally {
    steps: u64,
    /// Steps that the present life has reported.
    steps_of_life: u64,
    lives: u64,
    /// Number of lives that stood still, and of those that ended, by reason.
    hangs: u64,
    ends: BTreeMap<String, u64>,
    /// The seed of the present life, as the guest has printed it; empty before that.
    seed: String,
}

impl Tally {
    /// Returns the seed of the present life.
    fn seed_number(&self) -> Option<u64> {
        let (_, digits) = self.seed.split_once("0x")?;
        u64::from_str_radix(digits, 16).ok()
    }

    fn begin_life(&mut self) {
        self.seed.clear();
        self.steps_of_life = 0;
    }

    /// Returns whether a life has ended or stood still.
    fn is_over(&self) -> bool {
        self.hangs > 0 || !self.ends.is_empty()
    }
}

/// Continues until the guest has made `steps` steps, which takes at most `goal` on a computer that does nothing else.
fn chaos(bench: &mut Bench, steps: u64, goal: Duration) -> Result<()> {
    let tds = [
        Named::new("chaos", "16M", 1),
        Named::new("smp", "64M", 1),
        Named::new("smp", "64M", 1).called("other"),
    ];
    let mut tally = Tally::default();
    let begin = Instant::now();
    let mut deaths = Vec::new();
    loop {
        // The repetition of a life has used another medium meanwhile.
        let machine = machine(bench, &tds)?;
        let mut console = bench.console(&machine)?;
        let Err(error) = live(&mut console, &mut tally, steps, begin + BUSY * goal) else {
            break;
        };
        let death = Death::of(&mut console)?;
        drop(console);
        let evidence = match &death {
            Some(death) => death.evidence(bench, &tally)?,
            None => None,
        };
        let tolerated = SPARE_DEATHS + tally.steps / STEPS_PER_DEATH;
        let Some(evidence) = evidence.filter(|_| (deaths.len() as u64) < tolerated) else {
            let seed = &tally.seed;
            return Err(error.context(format!(
                "in the life that began with `{seed}`, after {} excused deaths of QEMU ({death:?})",
                deaths.len()
            )));
        };
        deaths.push(format!("QEMU died: {evidence} (`{}`)", tally.seed));
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
    bench.note(format!("QEMU died {} times", deaths.len()));
    deaths.into_iter().for_each(|death| bench.note(death));
    Ok(())
}

/// Runs lives on one machine until there were enough steps. No check of the TDs beside the guest may fail.
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
                words.no_check_failed()?;
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
        words.no_check_failed()?;
    }
    nothing_is_left(console, &[CHAOS, BESIDE[0], BESIDE[1]], before)
}

/// The lives of the guest on one machine.
#[derive(Default)]
struct Lives {
    /// The next byte of its console, and the line that is not complete.
    next: u64,
    line: String,
    /// The time of the last output.
    heard: Option<Instant>,
}

impl Lives {
    /// Reads new output, and starts the next life if one has ended.
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
            Self::hear(&line, tally);
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
                tally.begin_life();
                let command = if state == "paused" { "reset" } else { "start" };
                self.begin(console, command)?;
            }
            None if self.heard.is_some_and(|at| at.elapsed() > PATIENCE) => {
                tally.hangs += 1;
                tally.begin_life();
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

    fn hear(line: &str, tally: &mut Tally) {
        let Some(said) = line.strip_prefix("chaos: ") else {
            return;
        };
        if said.starts_with("seed ") {
            tally.lives += 1;
            said.clone_into(&mut tally.seed);
        } else if let Some(steps) = said.strip_suffix(" steps") {
            let before = tally.steps_of_life;
            let steps = steps.parse().unwrap_or(before).max(before);
            tally.steps += steps - before;
            tally.steps_of_life = steps;
        }
    }
}

/// Returns the reason of an end without its numbers.
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
