//! The report of the simulation: tables, JSON, charts.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::cost::{Number, Origin};
use super::fit::{MEASURED, TOLERANCE, measurement};
use super::ways::{Limit, Run, Way};
use super::{LARGEST, Results, SIZES, Sensitivity};
use crate::chart::{LogChart, Ranges, Series};

/// Prints everything. Returns true if all targets are met.
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

/// A change smaller than this is ignored.
const NOTHING: f64 = 0.01;

fn matters(one: &Sensitivity, share: f64) -> bool {
    one.ratios.iter().any(|ratio| (ratio - 1.0).abs() >= share)
}

fn sensitivity(results: &Results) {
    println!(
        "\nTime with half and with twice a number, for 1 with the number itself (- : within 1 %):"
    );
    let mut machines: Vec<_> = results.sensitivity.iter().map(|one| one.cpus).collect();
    machines.sort_unstable();
    machines.dedup();
    for cpus in machines {
        let here: Vec<_> = results
            .sensitivity
            .iter()
            .filter(|one| one.cpus == cpus)
            .collect();
        let columns: Vec<_> = Way::ALL
            .into_iter()
            .filter_map(|way| {
                here.iter()
                    .find(|one| one.way == way)
                    .map(|one| (way, one.gib))
            })
            .collect();
        print!("\n  {:27}", format!("{cpus} CPUs"));
        columns
            .iter()
            .for_each(|(way, _)| print!(" {:>13}", way.name()));
        print!("\n  {:27}", "");
        columns
            .iter()
            .for_each(|(_, gib)| print!(" {:>13}", format!("{gib} GiB")));
        println!();
        let mut without = Vec::new();
        for number in Number::all() {
            let of = |way| {
                here.iter()
                    .find(|one| one.way == way && one.number == number)
            };
            let row: Vec<_> = columns.iter().map(|(way, _)| of(*way)).collect();
            if !row.iter().flatten().any(|one| matters(one, NOTHING)) {
                without.push(number.name());
                continue;
            }
            print!("  {:27}", number.name());
            for one in row {
                let text = one
                    .filter(|one| matters(one, NOTHING))
                    .map_or("-".into(), |one| {
                        format!("{:.2} {:.2}", one.ratios[0], one.ratios[1])
                    });
                print!(" {text:>13}");
            }
            println!();
        }
        println!("  without effect: {}", without.join("; "));
    }
}

/// Maximum seconds for 400 GiB on 64 CPUs.
const TARGETS: [(Way, f64); 2] = [(Way::Terminate2m, 4.0), (Way::Terminate4k, 70.0)];
/// Maximum seconds until the HKID is free, excluding the cache write-back.
const HKID_TARGET: f64 = 0.1;
/// The TD that the targets apply to.
const TARGET_GIB: u64 = 400;
const TARGET_CPUS: u32 = 64;

fn meets_targets(results: &Results) -> bool {
    println!("\nTargets, {TARGET_GIB} GiB on {TARGET_CPUS} CPUs:");
    let mut holds = true;
    for (way, limit) in TARGETS {
        let runs = results.sizes.iter().chain(&results.cpus);
        let here = runs.filter(|run| run.way == way && run.cpus == TARGET_CPUS);
        let Some(run) = here.max_by_key(|run| run.gib) else {
            println!("  {:13} was not run", way.name());
            holds = false;
            continue;
        };
        // All pages of one size take the same time.
        let seconds = run.seconds * TARGET_GIB as f64 / run.gib as f64;
        let write_back = results.cost[Number::CacheWriteBack] / 1e9;
        let hkid = run.hkid_free_seconds - write_back;
        let is_met = seconds <= limit && hkid <= HKID_TARGET;
        holds &= is_met;
        let from = if run.gib == TARGET_GIB {
            String::new()
        } else {
            format!(" (by its size from {} GiB; --full runs it)", run.gib)
        };
        println!(
            "  {:13} {seconds:.2} s of {limit} s{from}; HKID free after the write-back of {write_back:.4} s and {hkid:.4} s of \
             {HKID_TARGET} s{}",
            way.name(),
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

/// Returns the runs in the file's format.
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

/// Draws the charts: time by size, time by CPUs, sensitivity to each number.
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
    let machines: Vec<_> = SIZES
        .iter()
        .chain([&LARGEST])
        .map(|(gib, cpus)| format!("{gib} GiB: {cpus}"))
        .collect();
    let sizes = LogChart {
        title: "Time to take a TD down, and what limits it".into(),
        x: format!("GiB of the TD (CPUs: {})", machines.join(", ")),
        y: "seconds, until all memory is the host's and cleared (simulated)".into(),
        names: Vec::new(),
        series,
    };
    sizes.draw().write(folder, "sim-size")?;
    let ours = [
        Way::Dynamic,
        Way::Terminate4k,
        Way::Terminate2m,
        Way::Terminate1g,
    ];
    let cpus = LogChart {
        title: "Time to take a TD down against CPUs, and what limits it".into(),
        x: "CPUs (up to 56 in a package)".into(),
        y: "seconds for 100 GiB (simulated)".into(),
        names: Vec::new(),
        series: ours
            .map(|way| {
                let mut series = by(way, &results.cpus, |run| run.cpus.into());
                if let Some(run) = results.cpus.iter().find(|run| run.way == way) {
                    series.name = format!("{} (of {} GiB)", way.name(), run.gib);
                    let share = 100.0 / run.gib as f64;
                    series.points.iter_mut().for_each(|point| point.1 *= share);
                }
                series
            })
            .into(),
    };
    cpus.draw().write(folder, "sim-cpus")?;
    let mut rows: Vec<_> = results
        .sensitivity
        .iter()
        .filter(|one| one.cpus == TARGET_CPUS && matters(one, 0.02))
        .collect();
    rows.sort_by(|a, b| {
        let reach = |one: &Sensitivity| one.ratios[1] - one.ratios[0];
        (a.way as u8)
            .cmp(&(b.way as u8))
            .then(reach(b).total_cmp(&reach(a)))
    });
    let name =
        |one: &Sensitivity| format!("{}, {} GiB: {}", one.way.name(), one.gib, one.number.name());
    let ranges = Ranges {
        title: format!(
            "What the times on {TARGET_CPUS} CPUs rest on: each number halved and doubled (from 2 % on)"
        ),
        rows: rows
            .into_iter()
            .map(|one| (name(one), one.ratios))
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
            format!("limit: {}", run.limit.name())
        } else {
            String::new()
        }
    };
    // The limit is shown where it changes.
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
