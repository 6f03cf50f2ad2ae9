//! `cargo xtask bench reclaim`: the ways to reclaim a TD's memory, in one run of one machine.
//!
//! The hypervisor, built with its benchmark, measures inside the machine. This module has the machine, the figures and
//! their targets.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use seamark_tests::media::Media;
use seamark_tests::qemu::{Boot, Guest, Machine, Stub};
use serde::{Deserialize, Serialize};

use crate::{build, chart, workspace};

/// Prefix of each line of the program that is meant for this task.
const MARK: &str = "bench:";
/// Maximum time until the machine's benchmark begins, and for each way.
const BOOT: Duration = Duration::from_secs(300);

/// The options of the benchmark.
#[derive(Args)]
pub struct Options {
    /// Write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the chart of the ratios to this folder as SVG
    #[arg(long, value_name = "FOLDER")]
    charts: Option<PathBuf>,
    /// The TD's memory
    #[arg(long, value_name = "SIZE", default_value = "544M")]
    memory: String,
    /// Minutes that one way may take
    #[arg(long, value_name = "MINUTES", default_value_t = 20)]
    patience: u64,
}

/// A line of the machine's output.
#[derive(Clone, Debug, Deserialize)]
struct Line {
    name: String,
    vcpus: String,
    clear: String,
    us: u64,
    hkid_free_us: u64,
    pages_4k: u64,
    calls: u64,
    kicks: u64,
    kick_us: u64,
    in_calls_us: u64,
}

/// The content of the JSON file.
#[derive(Serialize)]
struct Figures {
    ways: Vec<Way>,
}

#[derive(Serialize)]
struct Way {
    name: String,
    vcpus: String,
    clear: String,
    seconds: f64,
    pages_4k: u64,
    seamcalls_per_4k: f64,
    hkid_free_seconds: f64,
}

impl From<&Line> for Way {
    fn from(line: &Line) -> Self {
        Self {
            name: line.name.clone(),
            vcpus: line.vcpus.clone(),
            clear: line.clear.clone(),
            seconds: line.us as f64 / 1e6,
            pages_4k: line.pages_4k,
            seamcalls_per_4k: line.calls as f64 / line.pages_4k as f64,
            hkid_free_seconds: line.hkid_free_us as f64 / 1e6,
        }
    }
}

/// A condition that must hold.
struct Target {
    what: String,
    is: f64,
    limit: Limit,
}

#[derive(Clone, Copy)]
enum Limit {
    Least(f64),
    Most(f64),
}

impl Target {
    fn holds(&self) -> bool {
        match self.limit {
            Limit::Least(least) => self.is >= least,
            Limit::Most(most) => self.is <= most,
        }
    }
}

/// Runs the benchmark and prints the results. The exit code says whether every target is met.
///
/// # Errors
/// The measurement fails.
pub fn run(options: &Options) -> Result<ExitCode> {
    let lines = measure(options)?;
    print(&lines);
    let figures = Figures {
        ways: lines.iter().map(Way::from).collect(),
    };
    if let Some(file) = &options.json {
        let text = serde_json::to_string(&figures)? + "\n";
        std::fs::write(file, text).with_context(|| format!("can't write {}", file.display()))?;
    }
    if let Some(folder) = &options.charts {
        chart(&lines).draw().write(folder, "reclaim")?;
    }
    let targets = targets(&lines);
    println!();
    for target in &targets {
        let (word, limit) = match target.limit {
            Limit::Least(limit) => ("at least", limit),
            Limit::Most(limit) => ("at most", limit),
        };
        let verdict = if target.holds() { "ok" } else { "MISSED" };
        println!(
            "  {:6} {:62} {:>10.4}, {word} {limit}",
            verdict, target.what, target.is
        );
    }
    Ok(if targets.iter().all(Target::holds) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Measures on four CPUs in two packages, which rebuild the TD for each way.
fn measure(options: &Options) -> Result<Vec<Line>> {
    let programs = build::for_bench()?;
    let home = workspace::target().join("seamark/bench");
    std::fs::create_dir_all(&home)?;
    let config = format!(
        "[host]\nlog_level = \"warn\"\ncpu_timeout_ms = 20000\n\
         [[file]]\nname = \"spin\"\npath = \"spin.fd\"\n\
         [[td]]\nname = \"bench\"\nimage = \"spin\"\nmemory = \"{}\"\nvcpus = 4\n",
        options.memory
    );
    let file = home.join("seamark.toml");
    std::fs::write(&file, config)?;
    std::fs::copy(programs.guest("spin"), home.join("spin.fd"))?;
    let media =
        Media::of_program(&programs.directory().join("seamark-bench.efi"))?.with_config(&file)?;
    let image = home.join("disk.img");
    media.write_disk(&image)?;
    let stub = Stub {
        rom: programs.rom(),
        options: Vec::new(),
    };
    let mut machine = Machine::new(Boot::Disk(image), Some(stub));
    // A server has its memory. The time that QEMU takes to allocate a page must not be measured.
    machine.preallocated = true;
    let mut guest = Guest::start(&machine, &home.join("run"), None)?;
    let mut lines = Vec::new();
    let mut limit = BOOT + Duration::from_secs(60 * options.patience);
    loop {
        guest.expect(MARK, limit)?;
        let rest = guest.expect("\n", Duration::from_secs(10))?;
        let rest = rest.trim();
        if rest == "done" {
            return Ok(lines);
        }
        if rest.starts_with("failed") {
            bail!("{rest}\n{}", guest.transcript());
        }
        let line: Line = serde_json::from_str(rest).with_context(|| rest.to_owned())?;
        println!(
            "  {:13} {:9} {:7} {:>10.3} s",
            line.name,
            line.vcpus,
            line.clear,
            line.us as f64 / 1e6
        );
        lines.push(line);
        limit = Duration::from_secs(60 * options.patience);
    }
}

fn print(lines: &[Line]) {
    println!(
        "\n  {:13} {:9} {:7} {:>10} {:>10} {:>10} {:>8} {:>10} {:>9}",
        "way",
        "vCPUs",
        "clear",
        "seconds",
        "HKID free",
        "calls/4K",
        "kicks",
        "kicks (s)",
        "call (us)"
    );
    for line in lines {
        let way = Way::from(line);
        println!(
            "  {:13} {:9} {:7} {:>10.3} {:>10.3} {:>10.4} {:>8} {:>10.3} {:>9.3}",
            way.name,
            way.vcpus,
            way.clear,
            way.seconds,
            way.hkid_free_seconds,
            way.seamcalls_per_4k,
            line.kicks,
            line.kick_us as f64 / 1e6,
            line.in_calls_us as f64 / 1e6,
        );
    }
}

fn find<'l>(lines: &'l [Line], name: &str, vcpus: &str, clear: &str) -> Option<&'l Line> {
    lines
        .iter()
        .find(|line| (&*line.name, &*line.vcpus, &*line.clear) == (name, vcpus, clear))
}

/// Returns how many times faster a way is than page by page.
fn ratio(lines: &[Line], name: &str, vcpus: &str, clear: &str) -> Option<f64> {
    let per_page = find(lines, "per-page", vcpus, clear)?;
    let other = find(lines, name, vcpus, clear)?;
    Some(per_page.us as f64 / other.us.max(1) as f64)
}

fn targets(lines: &[Line]) -> Vec<Target> {
    let mut targets = Vec::new();
    for (name, vcpus, clear, least) in [
        ("dynamic", "stopped", "reuse", 1.2),
        ("terminate-4k", "stopped", "reuse", 3.5),
        ("terminate-2m", "stopped", "reuse", 300.0),
        ("dynamic", "spinning", "reuse", 2.0),
        ("terminate-4k", "spinning", "reuse", 6.0),
        ("terminate-2m", "stopped", "always", 25.0),
    ] {
        targets.push(Target {
            what: format!("times faster than per-page: {name}, {vcpus}, clear = {clear}"),
            is: ratio(lines, name, vcpus, clear).unwrap_or(0.0),
            limit: Limit::Least(least),
        });
    }
    for (name, most) in [
        ("dynamic", 3.05),
        ("terminate-4k", 1.02),
        ("terminate-2m", 0.005),
    ] {
        let of = lines.iter().filter(|line| line.name == name);
        let most_seen = of
            .map(|line| Way::from(line).seamcalls_per_4k)
            .fold(0.0, f64::max);
        targets.push(Target {
            what: format!("SEAMCALLs per 4 KiB: {name}"),
            is: most_seen,
            limit: Limit::Most(most),
        });
    }
    // The model must be realistic: it spends its time in calls and kicks.
    if let Some(line) = find(lines, "per-page", "stopped", "reuse") {
        targets.push(Target {
            what: "per-page without kicks, for its calls times what each costs".into(),
            is: (line.us - line.kick_us) as f64 / line.in_calls_us.max(1) as f64,
            limit: Limit::Most(1.3),
        });
    }
    targets
}

/// Draws the ratios, one series for each way, with the kinds of run side by side.
fn chart(lines: &[Line]) -> chart::LogChart {
    const KINDS: [(&str, &str); 4] = [
        ("stopped", "reuse"),
        ("spinning", "reuse"),
        ("stopped", "always"),
        ("spinning", "always"),
    ];
    let series = ["per-page", "dynamic", "terminate-4k", "terminate-2m"].map(|name| {
        let mut points = Vec::new();
        let mut labels = Vec::new();
        for (at, (vcpus, clear)) in KINDS.into_iter().enumerate() {
            if let Some(ratio) = ratio(lines, name, vcpus, clear) {
                // The axis is logarithmic, and the kinds must be equally spaced.
                points.push((f64::from(1 << at), ratio));
                labels.push(match ratio {
                    // The others are compared with it.
                    _ if name == "per-page" => String::new(),
                    ..10.0 => format!("{ratio:.1}"),
                    _ => format!("{ratio:.0}"),
                });
            }
        }
        chart::Series {
            name: name.into(),
            points,
            is_loose: true,
            labels,
        }
    });
    chart::LogChart {
        title: "Times faster than page by page".into(),
        x: "vCPUs, and what is done with the pages' content".into(),
        y: "ratio".into(),
        names: KINDS
            .map(|(vcpus, clear)| format!("{vcpus}, {clear}"))
            .into(),
        series: series.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, us: u64, calls: u64) -> Line {
        Line {
            name: name.into(),
            vcpus: "stopped".into(),
            clear: "reuse".into(),
            us,
            hkid_free_us: us / 2,
            pages_4k: 100,
            calls,
            kicks: 0,
            kick_us: 0,
            in_calls_us: calls * 10,
        }
    }

    #[test]
    fn ratios_are_against_per_page_and_what_is_missing_is_missed() {
        let lines = [line("per-page", 5000, 400), line("dynamic", 4000, 300)];
        let targets = targets(&lines);
        assert!((targets[0].is - 1.25).abs() < 1e-9 && targets[0].holds());
        assert!(!targets[1].holds());
        let model = targets.last().unwrap();
        assert!((model.is - 1.25).abs() < 1e-9 && model.holds());
    }

    #[test]
    fn the_figures_are_written_as_they_are_asked_for() {
        let figures = Figures {
            ways: vec![Way::from(&line("dynamic", 4_000_000, 300))],
        };
        assert_eq!(
            serde_json::to_string(&figures).unwrap(),
            r#"{"ways":[{"name":"dynamic","vcpus":"stopped","clear":"reuse","seconds":4.0,"pages_4k":100,"seamcalls_per_4k":3.0,"hkid_free_seconds":2.0}]}"#
        );
    }
}
