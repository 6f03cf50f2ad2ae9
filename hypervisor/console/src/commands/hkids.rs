//! HKIDs and memory in reclaim: `hkids`, `reclaim`.

use alloc::vec::Vec;
use core::fmt::{self, Write};

use serde::Serialize;

use crate::{
    command::{Args, Command, Context},
    error::Error,
    host::td::{HkidHolder, HkidReport, TdReclaim},
    reply::{Reply, Text},
    table::Table,
};

pub const COMMANDS: &[Command] = &[
    Command {
        name: "hkids",
        args: &[],
        summary: "Show the private HKIDs and who has them",
        help: "How many there are, how many are free for TDs, and those that are not: the TDX module's own, those of TDs, and \
               those in quarantine with the reason (\"td retry\" may bring them back).",
        run: |context, _| context.host.hkids().map(Reply::new).map_err(Error::Host),
    },
    Command {
        name: "reclaim",
        args: &[],
        summary: "Show how far the memory of ended TDs is back",
        help: "For each TD whose memory is being taken back: how much is back, how fast, and how long the rest takes at that \
               rate; pages in quarantine, and why it is stuck if it is (\"td retry\" goes on).",
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
        let mut table = Table::new(&["HKID", "WHO HAS IT"]);
        for line in &self.taken {
            let td = line.td.as_deref().unwrap_or("a TD");
            let reason = line.reason.as_deref().unwrap_or_default();
            let holder = match line.holder {
                HkidHolder::Module => "the TDX module".into(),
                HkidHolder::Td => alloc::format!("TD {td}"),
                HkidHolder::Quarantine => alloc::format!("in quarantine, of {td}: {reason}"),
            };
            table.row(&[&line.hkid, &holder]);
        }
        write!(out, "{table}")
    }
}

#[derive(Serialize)]
struct Reclaims {
    tds: Vec<TdReclaim>,
}

fn reclaim(context: &mut Context<'_>, _: &Args) -> Result<Reply, Error> {
    let tds = context.host.tds().map_err(Error::Host)?.reclaims();
    Ok(Reply::new(Reclaims { tds }))
}

impl Text for Reclaims {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        if self.tds.is_empty() {
            return writeln!(out, "No TD's memory is being taken back.");
        }
        self.tds.iter().try_for_each(|td| write!(out, "{td}"))
    }
}
