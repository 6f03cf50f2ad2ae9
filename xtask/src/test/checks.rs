//! The checks on this computer, which run before any machine is started.

use std::env;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Error, Result, ensure};

use super::layers;
use super::tally::Tally;
use crate::{bench, build, workspace};

/// The runs that include a check without naming it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Every run, including a quick one.
    Quick,
    /// Every run except a quick one.
    Always,
    /// No run: the check is slow.
    ByName,
}

/// One check.
pub struct Check {
    /// The name on the command line.
    pub name: &'static str,
    /// The runs that include the check.
    pub when: When,
    /// Runs the check and counts the results.
    pub run: fn(&mut Tally),
}

/// Every check, in the order in which they run.
pub const ALL: &[Check] = &[
    Check {
        name: "fmt",
        when: When::Quick,
        run: |tally| count("fmt", format(), tally),
    },
    Check {
        name: "layers",
        when: When::Quick,
        run: |tally| count("layers", layers::check(), tally),
    },
    Check {
        name: "clippy",
        when: When::Quick,
        run: |tally| count("clippy", clippy(), tally),
    },
    Check {
        name: "doc",
        when: When::Always,
        run: |tally| count("doc", documentation(), tally),
    },
    Check {
        name: "host",
        when: When::Quick,
        run: host,
    },
    Check {
        name: "races",
        when: When::Always,
        run: races,
    },
    Check {
        name: "conform",
        when: When::Always,
        run: conform,
    },
    Check {
        name: "rom-profile",
        when: When::Always,
        run: |tally| {
            as_the_rom(
                &["-p", "stub-module", "--test", "model", "--test", "msrs"],
                tally,
            )
        },
    },
    Check {
        name: "rom-profile-all",
        when: When::ByName,
        run: rom_profile_all,
    },
    Check {
        name: "sim",
        when: When::Always,
        run: |tally| count("sim", simulation(), tally),
    },
    Check {
        name: "exits",
        when: When::Always,
        run: |tally| count("exits", exits(), tally),
    },
];

fn count(name: &str, outcome: Result<()>, tally: &mut Tally) {
    match outcome {
        Ok(()) => tally.passed(1),
        Err(error) => tally.failed(name, &error),
    }
}

fn format() -> Result<()> {
    let status = cargo(&["fmt", "--all", "--check"]).status()?;
    ensure!(status.success(), "run `cargo fmt --all`");
    Ok(())
}

fn clippy() -> Result<()> {
    let workspace = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    let status = cargo(&workspace).status()?;
    ensure!(status.success(), "clippy has something to say");
    build::lint()
}

fn documentation() -> Result<()> {
    let status = cargo(&["doc", "--workspace", "--no-deps", "--quiet"])
        .env("RUSTDOCFLAGS", "-D warnings")
        .status()?;
    ensure!(
        status.success(),
        "rustdoc has something to say about the documentation"
    );
    Ok(())
}

/// Runs `cargo test`; its tests are counted one by one.
fn host(tally: &mut Tally) {
    let tests = ["test", "--workspace", "--no-fail-fast"];
    let tested = crate::host::require(&crate::host::FSCK);
    match tested.and_then(|()| run_tests(cargo(&tests), tally)) {
        Ok(()) => {}
        Err(error) => tally.failed("host", &error),
    }
}

/// Runs the tests in which a scheduler chooses the order of the threads' steps. They are built with other locks.
fn races(tally: &mut Tally) {
    for package in ["mm", "virtio", "host"] {
        let tests = [
            "test",
            "-p",
            package,
            "--features",
            "shuttle",
            "--test",
            "races",
        ];
        if let Err(error) = run_tests(cargo(&tests), tally) {
            tally.failed("races", &error);
        }
    }
}

/// Runs the tests of the ROM's and the hypervisor's crates, compiled as these programs are ([`build::as_bare`]).
fn as_the_rom(tests: &[&str], tally: &mut Tally) {
    let mut cargo = build::as_bare("test");
    cargo.arg("--no-fail-fast").args(tests);
    if let Err(error) = run_tests(cargo, tally) {
        tally.failed("rom-profile", &error);
    }
}

/// Runs all of them, and the recordings.
fn rom_profile_all(tally: &mut Tally) {
    let packages = ["stub-module", "stub-rom", "seam", "mm", "vcpu"];
    let tests: Vec<_> = packages.iter().flat_map(|name| ["-p", name]).collect();
    as_the_rom(&[&tests[..], &["--lib", "--tests"]].concat(), tally);
    let status = build::as_bare("run")
        .args(["-p", "xtask", "--", "conform"])
        .arg(workspace::root().join("tests/vectors"))
        .status();
    let outcome = status.map_err(Error::from).and_then(|status| {
        ensure!(status.success(), "the emulated module differs");
        Ok(())
    });
    count("rom-profile-all", outcome, tally);
}

/// Runs cargo's tests, passes on their output except for passing tests, and counts.
fn run_tests(mut command: Command, tally: &mut Tally) -> Result<()> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("can't start cargo")?;
    let output = child.stdout.take().context("cargo's output is a pipe")?;
    let mut failed = 0;
    for line in BufReader::new(output).lines() {
        let line = line?;
        if let Some(summary) = Summary::parse(&line) {
            tally.passed(summary.passed);
            tally.failed_already_told(summary.failed);
            failed += summary.failed;
        }
        if !(line.starts_with("test ") && line.ends_with(" ... ok") || line.is_empty()) {
            println!("{line}");
        }
    }
    let status = child.wait()?;
    // Tests that failed are counted. If none did, something could not be built or run.
    ensure!(
        status.success() || failed > 0,
        "cargo test could not build or run something"
    );
    Ok(())
}

/// The last line of the test harness.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    passed: usize,
    failed: usize,
}

impl Summary {
    /// Reads `test result: ok. 16 passed; 0 failed; ...`.
    fn parse(line: &str) -> Option<Self> {
        let (_verdict, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut counts = counts.split("; ");
        let mut count = |what| counts.next()?.strip_suffix(what)?.parse().ok();
        Some(Self {
            passed: count(" passed")?,
            failed: count(" failed")?,
        })
    }
}

/// Replays Intel's recordings against the emulated module, if there are any.
fn conform(tally: &mut Tally) {
    let vectors = workspace::root().join("tests/vectors");
    if !vectors.exists() {
        println!("no recordings in {}", vectors.display());
        return;
    }
    let outcome = env::current_exe().map_err(Error::from).and_then(|xtask| {
        let status = Command::new(xtask).arg("conform").arg(&vectors).status()?;
        ensure!(status.success(), "the emulated module differs");
        Ok(())
    });
    count("conform", outcome, tally);
}

/// Runs the default simulation. It fails if it misses a measurement or a target.
fn simulation() -> Result<()> {
    let xtask = env::current_exe()?;
    let status = Command::new(xtask).args(["sim", "reclaim"]).status()?;
    ensure!(status.success(), "the simulation misses what it must show");
    Ok(())
}

/// Measures the instructions of the run loop.
fn exits() -> Result<()> {
    let code = bench::exits::run()?;
    ensure!(
        code == ExitCode::SUCCESS,
        "an exit takes too many instructions"
    );
    Ok(())
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(workspace::cargo());
    command.current_dir(workspace::root()).args(arguments);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_harness_summary_is_read() {
        let line = "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.1s";
        let summary = Summary::parse(line);
        assert_eq!(
            summary,
            Some(Summary {
                passed: 3,
                failed: 1
            })
        );
        assert_eq!(Summary::parse("test a::b ... ok"), None);
    }
}
