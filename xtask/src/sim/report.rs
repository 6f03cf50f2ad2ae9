//! What the simulation says: tables, JSON, charts.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::Results;
use super::cost::{Number, Origin};
use super::fit::{MEASURED, TOLERANCE, measurement};
use super::ways::{Limit, Run, Way};
use crate::chart::{LogChart, Ranges, Series};

/// Prints everything. Whether it shows what it must.
pub fn print(results: &Results) -> bool {
    println!("Numbers, in nanoseconds:");
    for number in Number::all() {
        let origin = match number.origin() {
            Origin::Fitted => "fitted".into(),
            Origin::Source(source) => format!("source: {source}"),
            Origin::Assumed(why) => format!("assumed: {why}"),
        };
        println!(
            "  {:26} {:>12.1}  {origin}",
            number.name(),
            results.cost[number]
        );
    }
    println!("\nLinux's way against what was measured:");
    let mut holds = true;
    for measured in MEASURED {
        let found = results.sizes.iter().find(|run| {
            (run.way, run.gib, run.cpus) == (measured.way, measured.gib, measured.cpus)
        });
        let seconds = found.map_or(f64::NAN, |run| run.seconds);
        let off = seconds / measured.seconds - 1.0;
        let is_near = off.abs() <= TOLERANCE;
        holds &= is_near;
        println!(
            "  {:12} {:>4} GiB {:>3} CPUs: {:>8.1} s, measured {:>6.0} s: {:>+5.1} %{}",
            measured.way.name(),
            measured.gib,
            measured.cpus,
            seconds,
            measured.seconds,
            off * 100.0,
            if is_near { "" } else { " TOO FAR" }
        );
    }
    table("Every way, cleared:", &results.sizes);
    table("With other CPUs:", &results.cpus);
    sensitivity(results);
    holds & meets_targets(results)
}

fn table(title: &str, runs: &[Run]) {
    println!("\n{title}");
    println!(
        "  {:13} {:>5} {:>5} {:>10} {:>12} {:>10} {:>12}  limit",
        "way", "GiB", "CPUs", "seconds", "HKID free", "calls/4K", "Linux (s)"
    );
    let mut runs: Vec<_> = runs.iter().collect();
    runs.sort_by_key(|run| (run.gib, run.way as u8, run.cpus));
    for run in runs {
        let linux = measurement(run.way, run.gib, run.cpus);
        println!(
            "  {:13} {:>5} {:>5} {:>10.3} {:>12.4} {:>10.4} {:>12}  {}",
            run.way.name(),
            run.gib,
            run.cpus,
            run.seconds,
            run.hkid_free_seconds,
            run.calls_per_4k,
            linux.map_or(String::new(), |seconds| format!("{seconds:.0}")),
            run.limit.name(),
        );
    }
}

fn sensitivity(results: &Results) {
    println!("\nTime when a number is halved and doubled, for once before (where it matters):");
    for way in Way::ALL {
        for one in results.sensitivity.iter().filter(|one| one.way == way) {
            let [half, twice] = one.ratios;
            if (half - 1.0).abs() > 0.02 || (twice - 1.0).abs() > 0.02 {
                println!(
                    "  {:13} {:26} {half:>6.2} {twice:>6.2}",
                    way.name(),
                    one.number.name()
                );
            }
        }
    }
}

/// At most so many seconds for 400 GiB on 64 CPUs.
const TARGETS: [(Way, f64); 2] = [(Way::Terminate2m, 4.0), (Way::Terminate4k, 70.0)];
/// At most so many seconds until the HKID is free, the caches' write-back aside.
const HKID_TARGET: f64 = 0.1;

fn meets_targets(results: &Results) -> bool {
    println!("\nTargets, 400 GiB on 64 CPUs:");
    let mut holds = true;
    for (way, seconds) in TARGETS {
        let found = results
            .sizes
            .iter()
            .find(|run| (run.way, run.gib, run.cpus) == (way, 400, 64));
        let Some(run) = found else {
            println!("  {:13} needs --full", way.name());
            continue;
        };
        let write_back = results.cost[Number::CacheWriteBack] / 1e9;
        let is_met = run.seconds <= seconds && run.hkid_free_seconds - write_back <= HKID_TARGET;
        holds &= is_met;
        println!(
            "  {:13} {:.2} s of {seconds} s; HKID free after {:.4} s, write-back {write_back:.4} s{}",
            way.name(),
            run.seconds,
            run.hkid_free_seconds,
            if is_met { "" } else { " MISSED" }
        );
    }
    holds
}

#[derive(Serialize)]
struct Row {
    way: &'static str,
    gib: u64,
    cpus: u32,
    seconds: f64,
    hkid_free_seconds: f64,
    linux_measured_seconds: Option<f64>,
}

#[derive(Serialize)]
struct File {
    runs: Vec<Row>,
}

/// The runs as the file has them.
pub fn json(results: &Results) -> String {
    let mut rows: Vec<Row> = Vec::new();
    for run in results.sizes.iter().chain(&results.cpus) {
        let is_there = rows
            .iter()
            .any(|row| (row.way, row.gib, row.cpus) == (run.way.name(), run.gib, run.cpus));
        if !is_there {
            rows.push(Row {
                way: run.way.name(),
                gib: run.gib,
                cpus: run.cpus,
                seconds: run.seconds,
                hkid_free_seconds: run.hkid_free_seconds,
                linux_measured_seconds: measurement(run.way, run.gib, run.cpus),
            });
        }
    }
    let text = serde_json::to_string_pretty(&File { runs: rows });
    text.unwrap_or_default() + "\n"
}

/// Draws the charts: time against size, time against CPUs, what the conclusion rests on.
pub fn draw(results: &Results, folder: &Path) -> Result<()> {
    let mut series: Vec<_> = Way::ALL
        .map(|way| by(way, &results.sizes, |run| run.gib))
        .into();
    series.push(Series {
        name: "Linux, measured".into(),
        points: MEASURED.map(|m| (m.gib as f64, m.seconds)).into(),
        is_loose: true,
        labels: Vec::new(),
    });
    let sizes = LogChart {
        title: "Time to take a TD down, on the CPUs of the measurements (2 TiB: 224)".into(),
        x: "GiB".into(),
        y: "seconds".into(),
        series,
    };
    sizes.draw().write(folder, "sim-size")?;
    let ours = [Way::Terminate4k, Way::Terminate2m, Way::Terminate1g];
    let cpus = LogChart {
        title: "Time against CPUs, and what more of them would not help".into(),
        x: "CPUs".into(),
        y: "seconds".into(),
        series: ours
            .map(|way| {
                let mut series = by(way, &results.cpus, |run| run.cpus.into());
                if let Some(run) = results.cpus.iter().find(|run| run.way == way) {
                    series.name = format!("{} {} GiB", way.name(), run.gib);
                }
                series
            })
            .into(),
    };
    cpus.draw().write(folder, "sim-cpus")?;
    let matters = |ratios: [f64; 2]| ratios.iter().any(|ratio| (ratio - 1.0).abs() > 0.05);
    let rows = results.sensitivity.iter().filter(|one| matters(one.ratios));
    let ranges = Ranges {
        title: "Time when a number is halved or doubled, for once before".into(),
        rows: rows
            .map(|one| {
                (
                    format!("{}: {}", one.way.name(), one.number.name()),
                    one.ratios,
                )
            })
            .collect(),
    };
    ranges.draw().write(folder, "sim-sensitivity")
}

fn by(way: Way, runs: &[Run], x: impl Fn(&Run) -> u64) -> Series {
    let mut runs: Vec<_> = runs.iter().filter(|run| run.way == way).collect();
    runs.sort_by_key(|run| x(run));
    let is_ours = runs.iter().any(|run| run.limit != Limit::Cpus);
    let label = |run: &&Run| {
        if is_ours {
            run.limit.name().to_owned()
        } else {
            String::new()
        }
    };
    // The limit is told where it changes.
    let mut labels: Vec<String> = runs.iter().map(label).collect();
    for index in (1..labels.len()).rev() {
        if labels[index] == labels[index - 1] {
            labels[index].clear();
        }
    }
    Series {
        name: way.name().into(),
        points: runs
            .iter()
            .map(|run| (x(run) as f64, run.seconds))
            .collect(),
        is_loose: false,
        labels,
    }
}
