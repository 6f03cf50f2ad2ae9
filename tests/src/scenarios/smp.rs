//! The progress of the guest *smp*, which shows that a TD continues next to others.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::stage::{CHECKS, LIFE, Words};
use crate::console::Console;

/// The TD *smp*, which must not notice what another TD does.
pub struct Bystander {
    words: Words,
    first: Counts,
}

impl Bystander {
    /// Starts it, and reads its first report.
    pub fn start(console: &mut Console) -> Result<Self> {
        console.succeed("td start smp", LIFE)?;
        let mut words = Words::of("smp");
        let first = Counts::by_now(&mut words, console)?;
        Ok(Self { words, first })
    }

    /// Reads its new output, of which the host keeps the last part alone.
    pub fn read(&mut self, console: &mut Console) -> Result<()> {
        self.words.read(console)
    }

    /// Waits until every vCPU has progressed since the first report.
    pub fn goes_on(&mut self, console: &mut Console) -> Result<()> {
        self.first.wait_for_more(&mut self.words, console)
    }
}

/// A report line of *smp*.
#[derive(Debug)]
pub struct Counts {
    /// The count of each vCPU.
    pub counts: Vec<u64>,
    /// The number of interrupts of each vCPU.
    pub interrupts: Vec<u64>,
}

impl Counts {
    /// Returns the last report that *smp* has made by now, or its first.
    pub fn by_now(smp: &mut Words, console: &mut Console) -> Result<Self> {
        smp.read(console)?;
        // The line is complete when the next text, or the line's end, follows.
        while Self::last(&smp.text).is_err() {
            smp.wait(console, " interrupts ", CHECKS)?;
            sleep(Duration::from_millis(300));
            smp.read(console)?;
        }
        Self::last(&smp.text)
    }

    /// Waits until *smp* reports that every vCPU has progressed since this report.
    fn wait_for_more(&self, smp: &mut Words, console: &mut Console) -> Result<()> {
        let begin = Instant::now();
        loop {
            let later = Self::by_now(smp, console)?;
            if later.counts.iter().zip(&self.counts).all(|(l, f)| l > f) {
                return Ok(());
            }
            ensure!(
                begin.elapsed() < CHECKS,
                "the TD beside it does not get on: {self:?}, then {later:?}"
            );
            sleep(Duration::from_millis(300));
        }
    }

    /// Returns the last complete line of `text` that is a report.
    fn last(text: &str) -> Result<Self> {
        let lines = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        let numbers = |list: &str| -> Option<Vec<u64>> {
            list.trim().split(',').map(|n| n.parse().ok()).collect()
        };
        lines
            .rev()
            .find_map(|line| {
                let (_, rest) = line.strip_prefix("smp: ")?.split_once(" counts ")?;
                let (counts, interrupts) = rest.split_once(" interrupts ")?;
                Some(Self {
                    counts: numbers(counts)?,
                    interrupts: numbers(interrupts)?,
                })
            })
            .with_context(|| format!("no report in\n{text}"))
    }
}
