//! SEAMCALL counts and times: `stats`, `seam bench`.

use alloc::{string::String, vec::Vec};
use core::fmt::{self, Write};

use serde::Serialize;

use crate::{
    argument::{Args, Optional, Required},
    command::{Class, Command, Context},
    commands::td::{find_word, show::Now},
    error::Error,
    host::{
        load::Spent,
        seam::{ExitStats, LeafStats, SeamBench, Stats},
    },
    load::TdRates,
    reply::{Reply, Text},
    table::{Bytes, Facts, Micros, Table},
};

pub const COMMANDS: &[Command] = &[
    Command {
        name: "stats",
        class: Class::Read,
        args: &[TD.arg],
        summary: "Show counters of SEAMCALLs, retries and TD exits",
        help: "Counts since boot, over all CPUs: SEAMCALLs by leaf, with those that found an operand busy, were \
               interrupted, or were illegal (a bug in Seamark; 0 on a healthy host); retries by reason; and exits of \
               the present TDs' vCPUs by reason. With TD, the exits of that TD alone, since it was started, and how its \
               vCPUs spent their time.",
        run: stats,
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

const TD: Optional<String> = Required::td("TD").optional();

fn stats(context: &mut Context<'_>, args: &Args) -> Result<Reply, Error> {
    let Some(word) = args.given(TD) else {
        return Ok(Reply::new(context.host.stats()));
    };
    let (tds, id) = find_word(context, &word)?;
    let td = tds.name(id).unwrap_or_default();
    let exits = tds.exits(id)?;
    drop(tds);
    let now = context.host.sample();
    let rates = context.session.load.until(&now);
    let spent = now.tds.iter().find(|td| td.id == id).map(|td| td.spent);
    Ok(Reply::new(TdStats {
        id,
        name: td,
        spent: spent.unwrap_or_default(),
        rates: rates.and_then(|rates| rates.td(id)),
        exits,
    }))
}

/// Counts of one TD, since it was started.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct TdStats {
    id: u32,
    name: String,
    #[serde(flatten)]
    spent: Spent,
    rates: Option<TdRates>,
    exits: Vec<ExitStats>,
}

impl Text for TdStats {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let Spent {
            run_us,
            wait_us,
            steal_us,
            exits,
        } = self.spent;
        let mut facts = Facts::default();
        facts.fact("TD", format_args!("{} {}", self.id, self.name));
        facts.fact("ran", Micros(run_us));
        facts.fact("waited", Micros(wait_us));
        facts.fact("stolen", Micros(steal_us));
        facts.fact("exits", exits);
        write!(out, "{facts}")?;
        if let Some(rates) = &self.rates {
            writeln!(out, "{}", Now(rates))?;
        }
        write!(out, "\n{}", exits_table(&self.exits))
    }
}

fn exits_table(exits: &[ExitStats]) -> Table {
    let mut table = Table::new(&["TD EXITS", "TIMES"]);
    for exit in exits {
        table.row(&[&exit.what, &exit.count]);
    }
    table
}

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
            write!(out, "\n{}", exits_table(&self.exits))?;
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
