//! What the emulated SEAM costs under TCG.

use std::process::ExitCode;

use anyhow::Result;
use seamark_tests::scenarios::measure_stub;

use crate::{build, host};

/// The most that a VP.ENTER with its exit may take, in nanoseconds.
const VP_ENTER_LIMIT: u128 = 35_000;

/// The figures, and what each is of.
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

/// Measures and prints it.
///
/// # Errors
/// When QEMU or the probe fails.
pub fn run() -> Result<ExitCode> {
    host::require(&host::QEMU)?;
    let measured = measure_stub(&build::all()?)?;
    let mut code = ExitCode::SUCCESS;
    for (name, figure) in measured {
        let what = FIGURES.iter().find(|(known, _)| *known == name);
        let what = what.map_or(&*name, |(_, what)| what);
        let limit = if name == "vp-enter" {
            if figure > VP_ENTER_LIMIT {
                code = ExitCode::FAILURE;
            }
            " (limit 35 us)"
        } else {
            ""
        };
        let (us, tenths) = (figure / 1000, figure % 1000 / 100);
        println!("{us:>6}.{tenths} us  {what}{limit}");
    }
    Ok(code)
}
