//! SEAMCALL counts and times: `stats`, `seam bench`.

use core::fmt::{self, Write};

use crate::{
    command::{Class, Command},
    error::Error,
    host::seam::{LeafStats, SeamBench, Stats},
    reply::{Reply, Text},
    table::{Bytes, Facts, Table},
};

pub const COMMANDS: &[Command] = &[
    Command {
        name: "stats",
        class: Class::Read,
        args: &[],
        summary: "Show counters of SEAMCALLs, retries and TD exits",
        help: "Counts since boot, over all CPUs: SEAMCALLs by leaf, with those that found an operand busy, were \
               interrupted, or were illegal (a bug in Seamark; 0 on a healthy host); retries by reason; and exits of \
               the present TDs' vCPUs by reason.",
        run: |context, _| Ok(Reply::new(context.host.stats())),
    },
    Command {
        name: "seam bench",
        class: Class::Host,
        args: &[],
        summary: "Measure how long each SEAMCALL takes",
        help: "Shows the minimum, median and 99th percentile in TSC ticks, for harmless leafs and for a scratch TD \
               that is built, run, shrunk and terminated repeatedly. Needs an HKID and about 20 MiB of memory while \
               it runs. Leafs whose time depends on the page size have one line for each size. TDH.VP.ENTER is a \
               full round trip, into a guest that only executes TDG.VP.VMCALL.",
        run: |context, _| {
            context
                .host
                .seam_bench()
                .map(Reply::new)
                .map_err(Error::from)
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
            let mut table = Table::new(&["RETRIED", "TIMES", "GIVEN UP"]);
            for retry in &self.retries {
                table.row(&[&retry.reason, &retry.retries, &retry.given_up]);
            }
            write!(out, "\n{table}")?;
        }
        if !self.exits.is_empty() {
            let mut table = Table::new(&["TD EXITS", "TIMES"]);
            for exit in &self.exits {
                table.row(&[&exit.what, &exit.count]);
            }
            write!(out, "\n{table}")?;
        }
        let mut facts = Facts::default();
        facts.fact("SEAMCALLs that faulted", self.faults);
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
            Some(problem) => writeln!(out, "Some leafs could not be measured: {problem}"),
            None => Ok(()),
        }
    }
}
