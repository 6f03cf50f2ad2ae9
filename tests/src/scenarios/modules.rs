//! Scenarios on each release of Intel's module that the stub emulates. `modules` names them all. Those on the releases
//! that the other scenarios do not use always run, except the long ones.

use anyhow::Result;

use super::{Bench, Need, Scenario, guests, linux, rom, tds};

/// Runs a scenario on a machine with this release of the module.
fn on(bench: &mut Bench, release: &str, run: fn(&mut Bench) -> Result<()>) -> Result<()> {
    bench.choose_module(release);
    run(bench)
}

/// Lists scenarios on each release: those that always run on the older ones, and those that run by name only.
macro_rules! on_each_release {
    (always { $($short:literal, $short_run:expr;)* } by_name { $($long:literal, $needs:expr, $long_run:expr;)* }) => {
        &[
            $(
                on_each_release!(@one $short, "1.5.01", &[], $short_run).always(),
                on_each_release!(@one $short, "1.5.16", &[], $short_run).always(),
                on_each_release!(@one $short, "1.5.25", &[], $short_run),
            )*
            $(
                on_each_release!(@one $long, "1.5.01", $needs, $long_run),
                on_each_release!(@one $long, "1.5.16", $needs, $long_run),
                on_each_release!(@one $long, "1.5.25", $needs, $long_run),
            )*
        ]
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
    always {
        "hello", tds::hello;
        "smp", guests::side_by_side;
        "hostile", |bench| guests::hostile(bench, 10_000);
        "rom-tdcall", |bench| rom::guest_once(bench, "tdcall");
        "rom-cpuid", |bench| rom::guest_once(bench, "cpuid");
        "rom-msrs", |bench| rom::guest_once(bench, "msrs");
    }
    by_name {
        "mem", &[], guests::memory;
        "rounds", &[], |bench| tds::rounds(bench, 25);
        "linux", &[Need::Linux], linux::boot;
    }
};
