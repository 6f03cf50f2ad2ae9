//! `cargo xtask test`: everything that must hold before a change is merged.

mod checks;
mod layers;
mod tally;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, anyhow};
use clap::Args;
use seamark_tests::programs::{Measure, Programs};
use seamark_tests::scenarios::{self, Need, Scenario};

use self::checks::{Check, When};
use self::tally::Tally;
use crate::folder::Folder;
use crate::{build, guest, host, measure, run};

/// The options of `test`.
#[derive(Args)]
pub struct Options {
    /// Run tests whose names contain one of these; without any, everything that does not have to be named
    filter: Vec<String>,
    /// List the names and run nothing
    #[arg(long)]
    list: bool,
    /// An option of the stub for every machine that has it, such as tsc_hz=2596170000; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = run::key_and_value)]
    stub: Vec<(String, String)>,
    /// Run on machines without a VT-d unit alone, unless a test asks for one
    #[arg(long)]
    no_iommu: bool,
    /// Repeat what can go wrong at any moment more often, in the tests that know how: io-debian, uefi-debian
    #[arg(long)]
    soak: bool,
    /// A checkout of Intel's LKVS, for foreign-lkvs
    #[arg(long, value_name = "DIR")]
    lkvs: Option<PathBuf>,
    /// Run only what needs no machine and little time: format, layers, lints, the host's tests
    #[arg(long)]
    quick: bool,
}

/// Runs the tests. The last line gives the passed and failed tests, host tests and whole-system tests together.
pub fn run(options: &Options) -> ExitCode {
    let selected: Vec<_> = scenarios::all()
        .into_iter()
        .filter(|s| options.selects(s))
        .collect();
    let checks = checks::ALL
        .iter()
        .filter(|check| options.selects_check(check));
    if options.list {
        checks::ALL
            .iter()
            .for_each(|check| println!("{}", check.name));
        scenarios::all().iter().for_each(|s| println!("{}", s.name));
        return ExitCode::SUCCESS;
    }
    let started = Instant::now();
    let mut tally = Tally::default();
    if let Some(word) = options.idle_word() {
        let error = anyhow!("nothing has that in its name; `cargo xtask test --list` names all");
        tally.failed(word, &error);
        return tally.report(started.elapsed());
    }
    for check in checks {
        announce(check.name);
        (check.run)(&mut tally);
    }
    if !selected.is_empty() {
        announce("build");
        let needs: Vec<_> = selected.iter().flat_map(|s| s.needs).copied().collect();
        match programs(&needs, options.lkvs.as_deref()) {
            Ok((programs, folder)) => {
                let programs = programs.with_stub_options(&options.stub);
                let programs = match options.soak {
                    true => programs.with_soak(),
                    false => programs,
                };
                options.run_scenarios(&selected, &programs, folder.path(), &mut tally);
            }
            Err(error) => tally.failed("build", &error),
        }
    }
    tally.report(started.elapsed())
}

impl Options {
    fn matches(&self, name: &str) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|f| name.contains(&**f))
    }

    fn selects(&self, scenario: &Scenario) -> bool {
        let is_in_group = self.filter.iter().any(|f| Some(&**f) == scenario.group);
        !self.quick && (is_in_group || self.selects_name(scenario.name, scenario.by_name_only))
    }

    fn selects_check(&self, check: &Check) -> bool {
        (!self.quick || check.when == When::Quick)
            && self.selects_name(check.name, check.when == When::ByName)
    }

    fn selects_name(&self, name: &str, by_name_only: bool) -> bool {
        if by_name_only {
            self.filter.iter().any(|f| f == name)
        } else {
            self.matches(name)
        }
    }

    /// Runs the scenarios. Without a filter, those that follow the run run twice: on machines with a VT-d unit, and on
    /// machines without.
    fn run_scenarios(
        &self,
        selected: &[Scenario],
        programs: &Programs,
        home: &Path,
        tally: &mut Tally,
    ) {
        let without = programs.clone().without_iommu();
        if self.no_iommu {
            selected.iter().for_each(|scenario| {
                run_scenario(scenario, &without, home, tally);
            });
            return;
        }
        let again: Vec<_> = (selected.iter())
            .filter(|scenario| run_scenario(scenario, programs, home, tally))
            .collect();
        if self.filter.is_empty() && !again.is_empty() {
            announce("machines without a VT-d unit");
            let home = home.join("no-iommu");
            for scenario in again {
                run_scenario(scenario, &without, &home, tally);
            }
        }
    }

    /// Returns a word that selects nothing.
    fn idle_word(&self) -> Option<&str> {
        let selects_nothing = |word: &&String| {
            let alone = Self {
                filter: vec![(*word).clone()],
                list: false,
                stub: Vec::new(),
                no_iommu: false,
                soak: false,
                lkvs: None,
                quick: self.quick,
            };
            let is_check = checks::ALL.iter().any(|check| alone.selects_check(check));
            !is_check && !scenarios::all().iter().any(|s| alone.selects(s))
        };
        self.filter.iter().find(selects_nothing).map(String::as_str)
    }
}

/// Prepares what the whole-system tests need, and a folder for their output.
fn programs(needs: &[Need], lkvs: Option<&Path>) -> Result<(Programs, Folder)> {
    host::require(&host::QEMU)?;
    if needs.contains(&Need::Bochs) {
        host::require(&host::BOCHS)?;
    }
    if needs.contains(&Need::Signing) {
        host::require(&host::SIGNING)?;
    }
    if needs.contains(&Need::Network) {
        host::require(&host::NETWORK)?;
    }
    if needs.contains(&Need::DebianDisk) {
        host::require(&host::DEBIAN_DISK)?;
        guest::debian()?;
    }
    let is_linux = |need: &Need| {
        use Need::{Bochs, DebianDisk, Network, Ovmf13, Signing};
        !matches!(need, Bochs | DebianDisk | Network | Ovmf13 | Signing)
    };
    if needs.iter().any(is_linux) {
        guest::linux()?;
    }
    let predictions = Measure {
        tds: measure::report,
        boot: measure::of_uefi_boot,
    };
    let programs = build::all()?.with_measure(predictions);
    guest::foreign(&programs, needs, lkvs)?;
    build::report(&programs)?;
    let folder = Folder::claim(programs.directory(), "tests")?;
    let programs = match lkvs {
        Some(_) => programs.with_lkvs(),
        None => programs,
    };
    Ok((programs, folder))
}

/// Runs a scenario. Returns true if it passed and is another test on machines without a VT-d unit.
fn run_scenario(scenario: &Scenario, programs: &Programs, home: &Path, tally: &mut Tally) -> bool {
    print!("system test {} ... ", scenario.name);
    // Flushing only makes the line appear at once.
    let _ = std::io::stdout().flush();
    let started = Instant::now();
    match scenario.run(programs, home) {
        Ok(outcome) => {
            let took = started.elapsed().as_secs_f32();
            println!("ok ({took:.1} s)");
            outcome.notes.iter().for_each(|note| println!("    {note}"));
            tally.passed(1);
            outcome.follows_run
        }
        Err(error) => {
            println!("FAILED");
            tally.failed(scenario.name, &error);
            false
        }
    }
}

fn announce(stage: &str) {
    println!("--- {stage}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(filter: &[&str]) -> Options {
        Options {
            filter: filter.iter().map(|&f| f.to_owned()).collect(),
            list: false,
            stub: Vec::new(),
            no_iommu: false,
            soak: false,
            lkvs: None,
            quick: false,
        }
    }

    fn scenario(name: &str) -> Scenario {
        scenarios::all()
            .into_iter()
            .find(|s| s.name == name)
            .unwrap()
    }

    #[test]
    fn without_a_filter_all_runs_but_what_must_be_named() {
        assert!(options(&[]).selects(&scenario("boot-over-pxe")));
        assert!(!options(&[]).selects(&scenario("monitor-linux")));
    }

    #[test]
    fn a_quick_run_starts_no_machine_and_leaves_out_what_takes_long() {
        let quick = Options {
            quick: true,
            ..options(&[])
        };
        assert!(!scenarios::all().iter().any(|s| quick.selects(s)));
        let checks = checks::ALL
            .iter()
            .filter(|check| quick.selects_check(check));
        let names: Vec<_> = checks.map(|check| check.name).collect();
        assert_eq!(names, ["fmt", "layers", "clippy", "host"]);
    }

    #[test]
    fn a_filter_is_a_part_of_the_name_or_the_whole_name_of_the_slow() {
        assert!(options(&["pxe"]).selects(&scenario("boot-over-pxe")));
        assert!(!options(&["pxe"]).selects(&scenario("boot-from-disk")));
        assert!(!options(&["monitor"]).selects(&scenario("monitor-linux")));
        assert!(options(&["monitor-linux"]).selects(&scenario("monitor-linux")));
        assert!(options(&["foreign"]).selects(&scenario("foreign-kexec")));
        assert!(options(&["foreign-kexec"]).selects(&scenario("foreign-kexec")));
        assert!(!options(&["foreign-kexec"]).selects(&scenario("foreign-stress")));
        assert!(!options(&["kexec"]).selects(&scenario("foreign-kexec")));
    }

    #[test]
    fn a_word_that_is_in_no_name_is_noticed_beside_others() {
        assert_eq!(options(&["pxe", "fmt"]).idle_word(), None);
        assert_eq!(options(&[]).idle_word(), None);
        assert_eq!(options(&["pxe", "pxf"]).idle_word(), Some("pxf"));
        assert_eq!(options(&["monitor"]).idle_word(), Some("monitor"));
    }

    #[test]
    fn no_two_tests_share_a_name() {
        let mut names: Vec<_> = scenarios::all().iter().map(|s| s.name).collect();
        names.extend(checks::ALL.iter().map(|c| c.name));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
