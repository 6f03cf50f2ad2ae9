//! HKIDs and memory in reclaim: `hkids`, `reclaim`.

use alloc::vec::Vec;
use core::fmt::{self, Write};

use serde::Serialize;

use crate::{
    argument::Args,
    command::{Class, Command, Context},
    error::Error,
    host::td::{HkidHolder, HkidReport, TdReclaim},
    reply::{Reply, Text},
    table::Table,
};

pub const COMMANDS: &[Command] = &[
    Command {
        name: "hkids",
        class: Class::Read,
        args: &[],
        summary: "Show the private HKIDs and their owners",
        help: "Shows how many HKIDs there are, how many are free, and the owner of each other one: the TDX module, a \
               TD, or quarantine with the reason (\"td retry\" may free it).",
        run: |context, _| context.host.hkids().map(Reply::new).map_err(Error::from),
    },
    Command {
        name: "reclaim",
        class: Class::Read,
        args: &[],
        summary: "Show the progress of memory reclaim",
        help: "Shows for each TD in teardown how much memory is reclaimed, the rate, and the estimated time left; \
               pages in quarantine; and the reason if reclaim is stuck (\"td retry\" resumes it).",
        run: reclaim,
    },
];

impl Text for HkidReport {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        writeln!(
            out,
            "{} HKIDs from {} on: {} free, {} used, {} in quarantine",
            self.total, self.first, self.free, self.used, self.quarantined
        )?;
        let mut table = Table::new(&["HKID", "OWNER"]);
        for line in &self.taken {
            let td = line.td.as_deref().unwrap_or("a TD");
            let reason = line.reason.as_deref().unwrap_or_default();
            let holder = match line.holder {
                HkidHolder::Module => "the TDX module".into(),
                HkidHolder::Td => alloc::format!("TD {td}"),
                HkidHolder::Quarantine => alloc::format!("quarantine, from {td}: {reason}"),
            };
            table.row(&[&line.hkid, &holder]);
        }
        write!(out, "{table}")
    }
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Reclaims {
    tds: Vec<TdReclaim>,
}

fn reclaim(context: &mut Context<'_>, _: &Args) -> Result<Reply, Error> {
    let tds = context.host.tds()?.reclaims();
    Ok(Reply::new(Reclaims { tds }))
}

impl Text for Reclaims {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        if self.tds.is_empty() {
            return writeln!(out, "No memory is being reclaimed.");
        }
        self.tds.iter().try_for_each(|td| write!(out, "{td}"))
    }
}
