//! `cargo xtask bench exits`: the cost in instructions of the exits that a guest makes most often, and of requests to its
//! devices.
//!
//! `tests/exits` runs the run loop of `vcpu` with a guest that repeats one call; callgrind counts. The instructions
//! that 1,000 more exits add are the cost of 1,000 exits: from the return of TDH.VP.ENTER to the next one, including
//! the loading and storing of the registers. The stand-ins for module and guest are not counted. The program is built
//! as `seamark.efi` is.
//!
//! The last cases are the most that guests can make of a request, with the copy: that is what they can cost another TD.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

use crate::{host, workspace};

const PROFILE: &str = "efi";
/// The stand-ins for module and guest, which are not counted.
const NOT_COUNTED: [&str; 2] = ["exits_module", "exits_guest"];
/// The copy of a request's data, which is counted in the worst cases alone.
const COPY: [&str; 3] = [
    "*access::copy_out*",
    "*access::copy_in*",
    "*access::copy_across*",
];
/// Maximum number of instructions of an exit that take a lock.
const EXIT_LOCKS: f64 = 2.0;
/// Maximum number of instructions of a case that is an exit, and takes no lock. Requests to devices take those of the
/// device and of the guest's memory.
const EXIT: f64 = 300.0;

/// The counts of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    instructions: u64,
    /// Instructions that lock the bus; taking a lock needs one.
    locked: u64,
}

/// A case, as the program lists it.
struct Case {
    name: String,
    /// The largest number of instructions.
    most: f64,
    /// Number of exits that one run has more than the other.
    exits: u64,
    /// The copy of data is counted.
    has_copy: bool,
}

/// The cost of an exit.
struct Cost {
    instructions: f64,
    locked: f64,
}

/// Measures and prints the costs. The exit code says whether each is within its limit.
///
/// # Errors
/// The measurement fails, or the run loop allocates memory.
pub fn run() -> Result<ExitCode> {
    host::require(&host::CALLGRIND)?;
    let program = build()?;
    println!(
        "{:20} {:>12} {:>6} {:>10}",
        "exit", "instructions", "most", "locked"
    );
    let mut holds = true;
    for case in cases(&program)? {
        let cost = measure(&program, &case)?;
        let Case {
            name, most: limit, ..
        } = case;
        // A CPU counts its SEAMCALLs with one locked instruction each, in memory of its own. There are at most two per
        // exit.
        let is_free_of_locks = limit > EXIT || cost.locked <= EXIT_LOCKS;
        let is_within = cost.instructions <= limit && is_free_of_locks;
        holds &= is_within;
        println!(
            "{name:20} {:>12.1} {limit:>6} {:>10.1}{}",
            cost.instructions,
            cost.locked,
            if is_within { "" } else { "  TOO MANY" }
        );
    }
    println!("no allocation; an exit takes no lock; the copy is counted in the worst cases alone");
    Ok(if holds {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn build() -> Result<PathBuf> {
    let status = Command::new(workspace::cargo())
        .current_dir(workspace::root())
        .args([
            "build",
            "--quiet",
            "--package",
            "exits",
            "--profile",
            PROFILE,
        ])
        .status()
        .context("can't start cargo")?;
    ensure!(status.success(), "cargo could not build exits");
    Ok(workspace::target().join(PROFILE).join("exits"))
}

/// Returns the cases.
fn cases(program: &Path) -> Result<Vec<Case>> {
    let output = Command::new(program).output();
    let output = output.with_context(|| format!("can't run {}", program.display()))?;
    let list = String::from_utf8(output.stdout).context("exits names its cases in UTF-8")?;
    ensure!(!list.is_empty(), "exits names no cases");
    let cases = list.lines().map(|line| {
        let words: Vec<_> = line.split(' ').collect();
        let [name, most, exits, copy] = words[..] else {
            bail!("`{line}` is no case of exits");
        };
        Ok(Case {
            name: name.to_owned(),
            most: most.parse()?,
            exits: exits.parse()?,
            has_copy: copy == "with-copy",
        })
    });
    cases.collect()
}

fn measure(program: &Path, case: &Case) -> Result<Cost> {
    let shorter = count(program, case, case.exits)?;
    let longer = count(program, case, 2 * case.exits)?;
    let each = |less: u64, more: u64| (more as f64 - less as f64) / case.exits as f64;
    Ok(Cost {
        instructions: each(shorter.instructions, longer.instructions),
        locked: each(shorter.locked, longer.locked),
    })
}

/// Counts a run with `exits` exits.
fn count(program: &Path, case: &Case, exits: u64) -> Result<Counts> {
    let out = workspace::target().join("seamark/exits.callgrind");
    if let Some(folder) = out.parent() {
        fs::create_dir_all(folder)?;
    }
    let copy: &[_] = if case.has_copy { &[] } else { &COPY };
    let not_counted = NOT_COUNTED.iter().chain(copy);
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-bus=yes"])
        .args(not_counted.map(|name| format!("--toggle-collect={name}")))
        .arg("--collect-atstart=yes")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args([&case.name, &exits.to_string()])
        .output()
        .context("can't start valgrind")?;
    ensure!(
        output.status.success(),
        "{}: {}",
        case.name,
        String::from_utf8_lossy(&output.stderr)
    );
    let profile = fs::read_to_string(&out).context("callgrind wrote nothing")?;
    Counts::parse(&profile).with_context(|| format!("{} is no profile", out.display()))
}

impl Counts {
    /// Reads `events: Ir Ge` and `totals: 516 64`, in any order of events.
    fn parse(profile: &str) -> Option<Self> {
        let line = |name| profile.lines().find_map(|line| line.strip_prefix(name));
        let events = line("events: ")?.split_whitespace();
        let totals = line("totals: ")?.split_whitespace();
        let counts: Vec<_> = events.zip(totals).collect();
        let of = |event| {
            let (_, total) = counts.iter().find(|(name, _)| *name == event)?;
            total.parse().ok()
        };
        Some(Self {
            instructions: of("Ir")?,
            locked: of("Ge")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_tells_what_was_counted() {
        let profile = "version: 1\nevents: Ir Ge\nfn=(1) main\n0 5 1\ntotals: 698985 2064\n";
        let counts = Counts {
            instructions: 698_985,
            locked: 2064,
        };
        assert_eq!(Counts::parse(profile), Some(counts));
        assert_eq!(Counts::parse("events: Ir\ntotals: 5\n"), None);
    }
}
