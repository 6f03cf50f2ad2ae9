//! The cost of the emulated SEAM under TCG.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use seamark_tests::scenarios::{count_stub, measure_stub};
use stub_module::Release;

use crate::folder::Folder;
use crate::{build, host};

/// Maximum time of a VP.ENTER with its exit, in nanoseconds.
const VP_ENTER_LIMIT: u128 = 35_000;

/// The figures and their names.
const FIGURES: [(&str, &str); 5] = [
    (
        "cpuid",
        "one CPUID, which exits (how fast this computer is)",
    ),
    ("empty-seamcall", "an empty SEAMCALL"),
    ("vp-enter", "a VP.ENTER with its exit by TDVMCALL"),
    ("clear-2m-movdir64b", "clearing 2 MiB by MOVDIR64B"),
    ("clear-2m-rep-stosq", "clearing 2 MiB by REP STOSQ"),
];

/// The options of the measurement.
#[derive(Args)]
pub struct Options {
    /// The release of Intel's module that the emulated one behaves as
    #[arg(long, value_name = "RELEASE", default_value_t)]
    module: Release,
}

/// Measures and prints the figures.
///
/// # Errors
/// QEMU or the probe fails.
pub fn run(options: &Options) -> Result<ExitCode> {
    host::require(&host::QEMU)?;
    let module = ("module".to_owned(), options.module.to_string());
    let programs = build::all()?.with_stub_options(&[module]);
    let folder = Folder::claim(programs.directory(), "bench")?;
    let measured = measure_stub(&programs, folder.path())?;
    let mut code = ExitCode::SUCCESS;
    for figures in measured {
        let what = words(&figures.name);
        let limit = if figures.name == "vp-enter" {
            if figures.median() > VP_ENTER_LIMIT {
                code = ExitCode::FAILURE;
            }
            " (limit 35 us)"
        } else {
            ""
        };
        let each: Vec<_> = figures.each.iter().map(|&figure| us(figure)).collect();
        println!(
            "{:>8} us  {what}{limit}: the median of {}",
            us(figures.median()),
            each.join(", ")
        );
    }
    println!("In instructions, which do not vary:");
    for count in count_stub(&programs, folder.path())? {
        let limit = count.limit().map(|limit| format!(" (limit {limit})"));
        if !count.is_within() {
            code = ExitCode::FAILURE;
        }
        println!(
            "{:>8}     {}{}",
            count.instructions,
            words(&count.name),
            limit.unwrap_or_default()
        );
    }
    Ok(code)
}

/// Returns the operation of this name in words.
fn words(name: &str) -> &str {
    let known = FIGURES.iter().find(|(known, _)| *known == name);
    known.map_or(name, |(_, what)| what)
}

/// Formats nanoseconds as microseconds.
fn us(nanoseconds: u128) -> String {
    format!("{}.{}", nanoseconds / 1000, nanoseconds % 1000 / 100)
}
