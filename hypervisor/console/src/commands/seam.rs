//! SEAMCALL counts and times: `stats`, `seam bench`.

use core::fmt::{self, Write};

use crate::{
    command::Command,
    error::Error,
    host::seam::{LeafStats, SeamBench, Stats},
    reply::{Reply, Text},
    table::{Bytes, Facts, Table},
};

pub const COMMANDS: &[Command] = &[
    Command {
        name: "stats",
        args: &[],
        summary: "Count SEAMCALLs, retries, and exits of TDs",
        help: "Since the start, over all CPUs: SEAMCALLs by leaf, with those that found something busy, that an interrupt \
               stopped, and that were illegal, which means that this program made them wrongly and is 0 on a healthy host; \
               what was tried again, and why; and why the vCPUs of the TDs that live came out of the guest.",
        run: |context, _| Ok(Reply::new(context.host.stats())),
    },
    Command {
        name: "seam bench",
        args: &[],
        summary: "Measure how long each SEAMCALL takes",
        help: "Minimum, median and 99th percentile in ticks of the time-stamp counter, on harmless leafs and on a TD of its \
               own that is built, run, shrunk and ended again and again. It needs an HKID and some 20 MiB of memory, and gives \
               them back. Leafs whose time depends on the size of a page have a line for each. TDH.VP.ENTER is a whole round: \
               into a guest that does nothing but TDG.VP.VMCALL, and back.",
        run: |context, _| {
            context
                .host
                .seam_bench()
                .map(Reply::new)
                .map_err(Error::Host)
        },
    },
];

impl Text for Stats {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let mut table = Table::new(&["SEAMCALL", "CALLS", "BUSY", "INTERRUPTED", "ILLEGAL"]);
        for LeafStats {
            leaf,
            calls,
            busy,
            interrupted,
            illegal,
        } in self.leafs.iter().chain([&self.total])
        {
            table.row(&[leaf, calls, busy, interrupted, illegal]);
        }
        write!(out, "{table}")?;
        if !self.retries.is_empty() {
            let mut table = Table::new(&["TRIED AGAIN", "TIMES", "GIVEN UP"]);
            for retry in &self.retries {
                table.row(&[&retry.reason, &retry.retries, &retry.given_up]);
            }
            write!(out, "\n{table}")?;
        }
        if !self.exits.is_empty() {
            let mut table = Table::new(&["EXITS OF TDS", "TIMES"]);
            for exit in &self.exits {
                table.row(&[&exit.what, &exit.count]);
            }
            write!(out, "\n{table}")?;
        }
        let mut facts = Facts::default();
        facts.fact("SEAMCALLs without an answer", self.faults);
        facts.fact("pages lost", self.lost_pages);
        facts.fact("HKIDs lost", self.lost_hkids);
        write!(out, "\n{facts}")
    }
}

impl Text for SeamBench {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let mut table = Table::new(&["SEAMCALL", "PAGE", "CALLS", "MIN", "MEDIAN", "P99"]);
        for leaf in &self.leafs {
            let page = leaf
                .page_bytes
                .map(|bytes| alloc::format!("{}", Bytes(bytes)));
            table.row(&[
                &leaf.leaf,
                &page.unwrap_or_default(),
                &leaf.calls,
                &leaf.min,
                &leaf.median,
                &leaf.p99,
            ]);
        }
        writeln!(
            out,
            "{table}Ticks of {} MHz; rounds: {}.",
            self.tsc_hz / 1_000_000,
            self.rounds
        )?;
        match &self.problem {
            Some(problem) => writeln!(out, "Not all could be measured: {problem}"),
            None => Ok(()),
        }
    }
}
