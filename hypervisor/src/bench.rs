//! The benchmark of reclaim on this machine, instead of a console: every way, and a line of JSON for each.
//!
//! Only the program that `cargo xtask bench reclaim` builds has it.

use core::fmt::{self, Write};

use alloc::{format, string::String};

use mm::private::ClearPolicy;

use crate::{
    metal::{platform::Metal, tds},
    serial,
};
use host::bench::reclaim::{Measured, Run, Way, run};
use host::td::registry::Tds;

/// What each line begins with that is meant for whoever started the benchmark.
const MARK: &str = "bench:";

/// Measures every way on the first TD of the configuration, which must not have been started.
pub fn run_all() {
    match tds::get() {
        Some(tds) => all(tds),
        None => say(format_args!("failed: no TDX module builds TDs")),
    }
    say(format_args!("done"));
}

fn all(tds: &Tds<'_, Metal>) {
    // First what is soon done: memory that nobody has been at for minutes may take longer to clear, where the machine is
    // itself a program among others.
    for spinning in [false, true] {
        for policy in [ClearPolicy::Reuse, ClearPolicy::Always] {
            for way in Way::ALL {
                one(tds, way, spinning, policy);
            }
        }
    }
}

fn one(tds: &Tds<'_, Metal>, way: Way, spinning: bool, policy: ClearPolicy) {
    let vcpus = if spinning { "spinning" } else { "stopped" };
    let Some(config) = tds.config(1) else {
        let _ = writeln!(
            serial::port(),
            "{MARK} failed: the configuration names no TD"
        );
        return;
    };
    let what = Run {
        way,
        spinning,
        clearing: policy.on(true),
    };
    match run(tds.host(), config, tds.image(1), what) {
        Ok(measured) => say(format_args!("{}", line(way, vcpus, policy, &measured))),
        Err(error) => say(format_args!("failed: {way}, {vcpus}, {policy}: {error}")),
    }
}

/// A line; the port is free again after it.
fn say(what: fmt::Arguments<'_>) {
    let _ = writeln!(serial::port(), "{MARK} {what}");
}

fn line(way: Way, vcpus: &str, policy: ClearPolicy, measured: &Measured) -> String {
    let Measured {
        pages_4k,
        us,
        hkid_free_us,
        kicks,
        kick_us,
        in_calls_us,
        call_ns,
        ..
    } = measured;
    let calls = measured.calls();
    format!(
        "{{\"name\":\"{way}\",\"vcpus\":\"{vcpus}\",\"clear\":\"{policy}\",\"us\":{us},\"hkid_free_us\":{hkid_free_us},\
         \"pages_4k\":{pages_4k},\"calls\":{calls},\"kicks\":{kicks},\"kick_us\":{kick_us},\"in_calls_us\":{in_calls_us},\"call_ns\":{call_ns}}}"
    )
}
