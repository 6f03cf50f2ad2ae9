//! The first guest: it accepts its memory, prints its identity and its measurements, and halts.
#![no_std]
#![no_main]

use core::fmt;

use guest_kit::check::{Check, Checks, expect};
use guest_kit::{ensure, fail, guest, memory, say, tdcall, vcpu};
use seam::abi::Measurement;

guest!("hello", main);

fn main(checks: &mut Checks) {
    let info = tdcall::vp_info();
    say!(
        "Hello from a TD: vCPU {} of {}, addresses of {} bits, attributes {}",
        info.index,
        info.vcpus,
        info.gpa_width,
        info.attributes
    );
    checks.once("accepts-memory", accepts_memory);
    vcpu::start_all();
    checks.each("every-vcpu-runs", every_vcpu_runs);
    checks.once("reads-its-report", reads_its_report);
}

fn accepts_memory() -> Check {
    let accepted = memory::accept_all();
    say!(
        "memory: {} pages of 2 MiB, {} of 4 KiB",
        accepted.large,
        accepted.small
    );
    let at = memory::take(4096, 4096);
    let found = memory::word(at);
    memory::set_word(at, !found);
    expect("a new page", found, 0)?;
    expect("the page after a write", memory::word(at), u64::MAX)
}

fn every_vcpu_runs() -> Check {
    let index = tdcall::vp_info().index;
    expect(
        "the vCPU's number",
        index.into(),
        vcpu::current().index().into(),
    )
}

/// Checks the report. The MRTD is printed for comparison with the output of `cargo xtask measure`.
fn reads_its_report() -> Check {
    let data: [u8; 64] = core::array::from_fn(|i| i as u8);
    let report = match tdcall::mr_report(&data) {
        Ok(report) => report,
        Err(status) => return fail!("TDG.MR.REPORT: {status:?}"),
    };
    ensure!(
        report.report_mac.report_data == data,
        "the report has other data"
    );
    expect(
        "ATTRIBUTES",
        report.td_info.attributes.bits(),
        tdcall::vp_info().attributes.bits(),
    )?;
    say!("MRTD {}", Hex(&report.td_info.mrtd));
    Ok(())
}

struct Hex<'a>(&'a Measurement);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
