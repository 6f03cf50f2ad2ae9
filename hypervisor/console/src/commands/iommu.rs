//! DMA and interrupt remapping: `iommu`.

use alloc::format;
use core::fmt::{self, Display, Write};

use crate::{
    command::{Class, Command},
    host::iommu::{Dma, Iommu},
    reply::{Reply, Text},
    table::{Count, Facts, Table},
};

pub const COMMANDS: &[Command] = &[Command {
    name: "iommu",
    class: Class::Read,
    args: &[],
    summary: "Show the VT-d units and the requests that they blocked",
    help: "Shows what keeps devices from memory: VT-d units, or the functions' bus-master bits alone. For each unit: its \
           state, whether it remaps interrupts, and how many functions, bridges and interrupt controllers it names (+ \
           all: it has all others of its segment, too). For each function whose requests were blocked: their number and \
           the last one; \"muted\" means that too many came, so that they are no longer counted. Memory that the \
           firmware reserved for functions (RMRR), and whether they keep it.",
    run: |context, _| Ok(Reply::new(context.host.iommu())),
}];

impl Display for Dma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.blocked_by_vtd {
            return f.write_str("blocked by VT-d");
        }
        f.write_str("rests on the devices' bus-master bits alone")?;
        self.why_not
            .as_ref()
            .map_or(Ok(()), |why| write!(f, ": {why}"))
    }
}

impl Text for Iommu {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let mut facts = Facts::default();
        facts.fact("DMA", &self.dma);
        match &self.interrupts {
            Some(interrupts) => facts.fact(
                "interrupts",
                format_args!(
                    "remapped: {} of {} entries used, destinations of {} bits",
                    interrupts.used,
                    interrupts.entries,
                    if interrupts.extended { 32 } else { 8 }
                ),
            ),
            None => facts.fact("interrupts", "not remapped"),
        }
        if self.other_faults != 0 {
            facts.fact("other faults", self.other_faults);
        }
        if self.lost != 0 {
            facts.fact("faults lost", Count(self.lost as usize, "time"));
        }
        write!(out, "{facts}")?;
        self.units(out)?;
        self.faults(out)?;
        self.reserved(out)
    }
}

impl Iommu {
    fn units(&self, out: &mut dyn Write) -> fmt::Result {
        if self.units.is_empty() {
            return Ok(());
        }
        let mut table = Table::new(&["UNIT", "SEGMENT", "STATE", "INTERRUPTS", "NAMES", ""]);
        for unit in &self.units {
            table.row(&[
                &unit.base,
                &unit.segment,
                &unit.problem.as_deref().unwrap_or("on"),
                &if unit.remaps_interrupts {
                    "remapped"
                } else {
                    "-"
                },
                &unit.named,
                &if unit.has_rest { "+ all" } else { "" },
            ]);
        }
        write!(out, "\n{table}")
    }

    fn faults(&self, out: &mut dyn Write) -> fmt::Result {
        if self.faults.is_empty() {
            return Ok(());
        }
        let mut table = Table::new(&[
            "BLOCKED",
            "ACCESSES",
            "INTERRUPTS",
            "NOT LOGGED",
            "LAST",
            "",
        ]);
        for faults in &self.faults {
            table.row(&[
                &faults.function,
                &faults.accesses,
                &faults.interrupts,
                &faults.untold,
                &faults.last,
                &if faults.muted { "muted" } else { "" },
            ]);
        }
        write!(out, "\n{table}")
    }

    fn reserved(&self, out: &mut dyn Write) -> fmt::Result {
        if self.reserved.is_empty() {
            return Ok(());
        }
        let mut table = Table::new(&["RESERVED FOR", "START", "END", "ACCESS"]);
        for reserved in &self.reserved {
            let access = match &reserved.blocked {
                Some(why) => format!("blocked: {why}"),
                None => "kept".into(),
            };
            table.row(&[&reserved.function, &reserved.start, &reserved.end, &access]);
        }
        write!(out, "\n{table}")
    }
}
