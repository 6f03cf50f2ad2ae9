//! Everything that somebody needs to help, in one object: `report`.

use alloc::{format, string::String, vec::Vec};
use core::fmt::{self, Write};

use serde::Serialize;

use crate::{
    argument::Args,
    command::{Class, Command, Context},
    error::Error,
    host::{
        Boot, Build, Cpu, LogRecord, Memory,
        crash::Crash,
        errors::{Errors, Mitigation},
        iommu::Iommu,
        platform::Platform,
        td::TdLine,
        tdx::Tdx,
    },
    reply::{Reply, Text},
};

pub const COMMANDS: &[Command] = &[Command {
    name: "report",
    class: Class::Read,
    args: &[],
    summary: "Show everything that is needed to help, as one JSON object",
    help: "Prints one line with what \"version\", \"boot\", \"cpus\", \"mca\", \"crash show\", \"mem\", \"tdx\", \"iommu\", \"td list\" and \"dmesg\" show, and the \
           boot CPU's identification registers (null: the CPU has no such register). It contains nothing of a TD's \
           memory. Send the line with a request for help.",
    run: report,
}];

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Report {
    build: Build,
    boot: Boot,
    platform: Platform,
    cpus: Vec<Cpu>,
    mitigations: Vec<Mitigation>,
    errors: Errors,
    last_crash: Option<Crash>,
    memory: Memory,
    tdx: Tdx,
    iommu: Iommu,
    tds: Vec<TdLine>,
    log: Vec<String>,
    log_lost: u64,
}

fn report(context: &mut Context<'_>, _: &Args) -> Result<Reply, Error> {
    let host = &context.host;
    let mut log = Vec::new();
    let log_lost = host.log_records(&mut |record| log.push(line(record)));
    Ok(Reply::new(Report {
        build: host.build(),
        boot: host.boot(),
        platform: host.platform(),
        cpus: host.cpus(),
        mitigations: host.mitigations(),
        errors: host.errors(),
        last_crash: host.last_crash(),
        memory: host.memory(),
        tdx: host.tdx(),
        iommu: host.iommu(),
        tds: host.tds().map(|tds| tds.list()).unwrap_or_default(),
        log,
        log_lost,
    }))
}

fn line(record: &LogRecord<'_>) -> String {
    format!(
        "{} us, CPU {}, {} {}: {}",
        record.us, record.cpu, record.level, record.target, record.message
    )
}

impl Text for Report {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let json = serde_json::to_string(self).map_err(|_| fmt::Error)?;
        writeln!(out, "{json}")
    }
}
