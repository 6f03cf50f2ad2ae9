//! `cargo xtask conform`: replays recordings of Intel's TDX module against the emulated one.

mod guest;
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
    outcome: Result<(String, Vec<String>, Outcome)>,
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
        for Replayed { path, outcome } in replayed {
            match outcome {
                Err(error) => {
                    malformed += 1;
                    eprintln!("error: {error:#}");
                }
                Ok((name, unknown, outcome)) => {
                    for key in unknown {
                        eprintln!("warning: {}: the key `{key}` is not known", path.display());
                    }
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
        let unknown = scenario.unknown.iter().cloned().collect();
        (name, unknown, replay::replay(scenario))
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
mod tests {
    use super::*;

    /// Replays the recordings of the project whose names `wanted` accepts.
    fn replay(wanted: impl Fn(&str) -> bool) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors");
        let mut files = Vec::new();
        collect(&folder, &mut files).unwrap();
        files.retain(|file| {
            file.file_name()
                .is_some_and(|name| wanted(&name.to_string_lossy()))
        });
        assert!(files.len() > 70, "{} recordings", files.len());
        let mut told = Vec::new();
        for Replayed { path, outcome } in replay_all(&files) {
            let (name, unknown, outcome) = outcome.unwrap();
            assert!(unknown.is_empty(), "{}: {unknown:?}", path.display());
            assert!(outcome.steps > 5, "{name}: {} steps", outcome.steps);
            let mut say = Vec::new();
            Conform {
                paths: Vec::new(),
                all: false,
                verbose: false,
            }
            .tell(&mut say, &name, &outcome)
            .unwrap();
            told.append(&mut say);
        }
        assert!(told.is_empty(), "{}", String::from_utf8_lossy(&told));
    }

    #[test]
    fn the_host_is_answered_as_intels_module_answers() {
        replay(|name| !name.starts_with("g_"));
    }

    #[test]
    fn guests_see_what_they_see_of_intels_module() {
        replay(|name| name.starts_with("g_") && name.ends_with(".jsonl.zst"));
    }

    #[test]
    fn a_difference_is_found_and_told() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors");
        let mut scenario = Scenario::load(&folder.join("c_sys_busy.jsonl.zst")).unwrap();
        scenario.config.lp_to_package = vec![0; scenario.config.lp_to_package.len()];
        let outcome = replay::replay(scenario);
        let mut say = Vec::new();
        let terse = Conform {
            paths: Vec::new(),
            all: false,
            verbose: false,
        };
        terse.tell(&mut say, "one package", &outcome).unwrap();
        let say = String::from_utf8(say).unwrap();
        assert!(
            say.starts_with("one package: step ") && say.lines().count() == 1,
            "{say}"
        );
        assert!(
            say.contains("expected 0x") && say.contains("got 0x"),
            "{say}"
        );
    }
}
