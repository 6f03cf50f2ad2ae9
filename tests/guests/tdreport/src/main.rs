//! Prints MRTD and RTMRs from the TDREPORT of the TD in which this Linux runs, as `cargo xtask measure` prints them.
//!
//! Source: Linux include/uapi/linux/tdx-guest.h.
#![expect(unsafe_code, reason = "calls the driver by ioctl")]

use std::fs::File;

use anyhow::{Context, Result, ensure};
use rustix::ioctl::{Updater, ioctl, opcode};
use seam::abi::TdReport;
use zerocopy::{FromBytes, IntoBytes};

/// struct tdx_report_req.
#[repr(C)]
struct Request {
    report_data: [u8; 64],
    report: [u8; size_of::<TdReport>()],
}

/// TDX_CMD_GET_REPORT0.
const GET_REPORT0: rustix::ioctl::Opcode = opcode::read_write::<Request>(b'T', 1);

fn main() -> Result<()> {
    const DEVICE: &str = "/dev/tdx_guest";
    let device = File::open(DEVICE).with_context(|| format!("can't open {DEVICE}"))?;
    let mut request = Request {
        report_data: std::array::from_fn(|i| i as u8),
        report: [0; size_of::<TdReport>()],
    };
    // SAFETY: the request is laid out as the driver wants it, and the driver writes nothing else.
    unsafe { ioctl(&device, Updater::<GET_REPORT0, Request>::new(&mut request)) }
        .context("the driver gives no report")?;
    let report = TdReport::read_from_bytes(&request.report)
        .map_err(|_| anyhow::anyhow!("a report of another size"))?;
    ensure!(
        report.report_mac.report_data == request.report_data,
        "the report is about other data"
    );
    println!("MRTD   {}", hex(&report.td_info.mrtd));
    for (number, rtmr) in report.td_info.rtmr.iter().enumerate() {
        println!("RTMR{number}  {}", hex(rtmr.as_bytes()));
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
