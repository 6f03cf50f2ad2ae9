//! `cargo xtask conform`: replays recordings of Intel's TDX module against the emulated one.

mod guest;
mod native;
mod number;
mod raw;
mod registers;
mod replay;
pub mod scenario;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use clap::Args;

use replay::{Difference, Mismatch, Outcome};
use scenario::Scenario;

/// The options of `conform`.
#[derive(Args)]
pub struct Conform {
    /// Scenario files (.jsonl or .jsonl.zst), or folders of them.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Print every mismatch of a scenario, with every field that differs.
    #[arg(long)]
    all: bool,
    /// Count the mismatches of each leaf, and report each scenario
    #[arg(long, short)]
    verbose: bool,
}

/// A scenario that was replayed, or the reason why it could not be.
struct Replayed {
    path: PathBuf,
    outcome: Result<(String, Outcome)>,
}

impl Conform {
    /// Replays everything and prints the differences.
    ///
    /// # Errors
    /// A file is malformed, or something differs.
    pub fn run(&self) -> Result<()> {
        let mut files = Vec::new();
        for path in &self.paths {
            collect(path, &mut files)?;
        }
        ensure!(
            !files.is_empty(),
            "there is no .jsonl or .jsonl.zst file in {}",
            self.paths
                .iter()
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>()
                .join(", ")
        );

        // A panic of the module is reported as a mismatch of the step.
        std::panic::set_hook(Box::new(|_| ()));
        let replayed = replay_all(&files);
        drop(std::panic::take_hook());
        let mut out = io::stdout().lock();
        let (mut scenarios, mut steps, mut mismatches, mut malformed) = (0, 0, 0, 0);
        let mut per_leaf = BTreeMap::<String, (u64, u64)>::new();
        for Replayed { outcome, .. } in replayed {
            match outcome {
                Err(error) => {
                    malformed += 1;
                    eprintln!("error: {error:#}");
                }
                Ok((name, outcome)) => {
                    scenarios += 1;
                    steps += outcome.steps;
                    mismatches += outcome.mismatches.len();
                    self.tell(&mut out, &name, &outcome)?;
                    for mismatch in &outcome.mismatches {
                        let count = per_leaf.entry(mismatch.leaf.clone()).or_default();
                        count.0 += 1;
                        count.1 += mismatch.differences.len() as u64;
                    }
                }
            }
        }
        if self.verbose {
            for (leaf, (steps, fields)) in &per_leaf {
                writeln!(out, "{leaf:<32} {steps:>7} steps, {fields:>7} fields")?;
            }
        }
        writeln!(
            out,
            "{scenarios} scenarios, {steps} steps, {mismatches} mismatches"
        )?;
        ensure!(malformed == 0, "{malformed} files could not be replayed");
        ensure!(
            mismatches == 0,
            "the emulated module differs from the recordings"
        );
        Ok(())
    }

    fn tell(&self, out: &mut impl Write, name: &str, outcome: &Outcome) -> io::Result<()> {
        if self.verbose && outcome.mismatches.is_empty() {
            writeln!(out, "{name}: {} steps, no mismatch", outcome.steps)?;
        }
        let told = if self.all { usize::MAX } else { 1 };
        for mismatch in outcome.mismatches.iter().take(told) {
            let Mismatch {
                step,
                line,
                leaf,
                differences,
            } = mismatch;
            for Difference {
                field,
                expected,
                got,
            } in differences.iter().take(told)
            {
                writeln!(
                    out,
                    "{name}: step {step} (line {line}), {leaf}, {field}: expected {expected}, got {got}"
                )?;
            }
        }
        if self.verbose && outcome.mismatches.len() > 1 {
            writeln!(
                out,
                "{name}: {} of {} steps differ",
                outcome.mismatches.len(),
                outcome.steps
            )?;
        }
        Ok(())
    }
}

/// Adds a file, or all scenario files of a folder and its subfolders, sorted.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let told = || format!("{} can't be read", path.display());
    if !path.metadata().with_context(told)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let mut entries = Vec::new();
    for entry in path.read_dir().with_context(told)? {
        entries.push(entry.with_context(told)?.path());
    }
    entries.sort();
    for entry in entries {
        let name = entry.file_name().unwrap_or_default().to_string_lossy();
        if entry.is_dir() {
            collect(&entry, files)?;
        } else if name.ends_with(".jsonl") || name.ends_with(".jsonl.zst") {
            files.push(entry);
        }
    }
    Ok(())
}

/// Replays files on all processors of this computer. The results are in the order of the files.
fn replay_all(files: &[PathBuf]) -> Vec<Replayed> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let workers = thread::available_parallelism().map_or(1, |count| count.get());
    thread::scope(|scope| {
        for _ in 0..workers.min(files.len()) {
            scope.spawn(|| {
                while let Some(path) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let replayed = replay_file(path);
                    if let Ok(mut results) = results.lock() {
                        results.push(replayed);
                    }
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_default();
    results.sort_by(|a, b| a.path.cmp(&b.path));
    results
}

fn replay_file(path: &Path) -> Replayed {
    let outcome = Scenario::load(path).map(|scenario| {
        let name = scenario.name.clone();
        (name, replay::replay(scenario))
    });
    Replayed {
        path: path.to_owned(),
        outcome,
    }
}

/// Formats a status.
fn status(value: u64) -> String {
    format!("{:?}", seam::abi::Status(value))
}

#[cfg(test)]
mod tests;
