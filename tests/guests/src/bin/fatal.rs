//! A guest that gives up: it reports a fatal error with a message in registers, after a check that nothing else is
//! wrong.
#![no_std]
#![no_main]

use guest_kit::check::{Check, Checks};
use guest_kit::{ensure, guest, tdcall, vmcall};

guest!("fatal", main, give_up);

/// Linux's code for an unspecified fatal error.
const CODE: u32 = 0x5EA;

fn main(checks: &mut Checks) {
    checks.once("runs", runs);
}

fn runs() -> Check {
    ensure!(tdcall::vp_info().vcpus > 0, "a TD without vCPUs");
    Ok(())
}

fn give_up() -> ! {
    vmcall::report_fatal_error(
        CODE,
        "no use in going on, said the guest with all sixty-four letters.",
    )
}
