//! Scenarios on each release of Intel's module that the stub emulates. `modules` names them all.

use anyhow::Result;

use super::{Bench, Scenario, guests, linux, tds};

/// Runs a scenario on a machine with this release of the module.
fn on(bench: &mut Bench, release: &str, run: fn(&mut Bench) -> Result<()>) -> Result<()> {
    bench.choose_module(release);
    run(bench)
}

/// Lists scenarios on each release.
macro_rules! on_each_release {
    ($($what:literal, $needs:expr, $run:expr;)*) => {
        &[$(
            on_each_release!(@one $what, "1.5.01", $needs, $run),
            on_each_release!(@one $what, "1.5.16", $needs, $run),
            on_each_release!(@one $what, "1.5.25", $needs, $run),
        )*]
    };
    (@one $what:literal, $release:literal, $needs:expr, $run:expr) => {
        Scenario::in_group(
            "modules",
            concat!("module-", $release, "-", $what),
            |bench| on(bench, $release, $run),
            $needs,
        )
    };
}

pub const ALL: &[Scenario] = on_each_release! {
    "hello", &[], tds::hello;
    "smp", &[], guests::side_by_side;
    "mem", &[], guests::memory;
    "hostile", &[], |bench| guests::hostile(bench, 10_000);
    "rounds", &[], |bench| tds::rounds(bench, 25);
    "linux", &[super::Need::Linux], linux::boot;
};
