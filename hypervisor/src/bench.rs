//! The reclaim benchmark, which runs instead of the console and prints a line of JSON for each method of reclaiming.
//!
//! Only the program that `cargo xtask bench reclaim` builds contains it.

use core::fmt::{self, Write};

use alloc::{format, string::String};

use mm::private::ClearPolicy;

use crate::{
    metal::{platform::Metal, tds},
    serial,
};
use host::bench::reclaim::{Measured, Method, Run, run};
use host::td::registry::Tds;

/// Prefix of each line that is meant for the program that started the benchmark.
const MARK: &str = "bench:";

/// Measures every method on the first TD of the configuration, which must not have been started.
pub fn run_all() {
    match tds::get() {
        Some(tds) => all(tds),
        None => say(format_args!("failed: no TDX module builds TDs")),
    }
    say(format_args!("done"));
}

fn all(tds: &Tds<'_, Metal>) {
    // Quick runs come first: where the machine is itself virtual, memory that has been idle for minutes may take
    // longer to clear.
    for spinning in [false, true] {
        for policy in [ClearPolicy::Reuse, ClearPolicy::Always] {
            for method in Method::ALL {
                one(tds, method, spinning, policy);
            }
        }
    }
}

fn one(tds: &Tds<'_, Metal>, method: Method, spinning: bool, policy: ClearPolicy) {
    let vcpus = if spinning { "spinning" } else { "stopped" };
    let Some(config) = tds.config(1) else {
        say(format_args!("failed: the configuration names no TD"));
        return;
    };
    let what = Run {
        method,
        spinning,
        clearing: policy.on(true),
    };
    match run(tds.host(), config, tds.image(1), what) {
        Ok(measured) => say(format_args!("{}", line(method, vcpus, policy, &measured))),
        Err(error) => say(format_args!("failed: {method}, {vcpus}, {policy}: {error}")),
    }
}

fn say(what: fmt::Arguments<'_>) {
    serial::line(format_args!("{MARK} {what}"));
}

fn line(method: Method, vcpus: &str, policy: ClearPolicy, measured: &Measured) -> String {
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
        "{{\"name\":\"{method}\",\"vcpus\":\"{vcpus}\",\"clear\":\"{policy}\",\"us\":{us},\"hkid_free_us\":{hkid_free_us},\
         \"pages_4k\":{pages_4k},\"calls\":{calls},\"kicks\":{kicks},\"kick_us\":{kick_us},\"in_calls_us\":{in_calls_us},\"call_ns\":{call_ns}}}"
    )
}
