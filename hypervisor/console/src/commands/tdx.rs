//! TDX on this machine: `tdx`.

use core::fmt::{self, Write};

use crate::{
    command::{Class, Command},
    cpus,
    error::Error,
    host::tdx::{Microcode, Module, Tdx, TdxMemory, TdxState},
    reply::{Reply, Text},
    table::{Bytes, Count, Facts, Maybe, Micros, Table},
};

pub const COMMANDS: &[Command] = &[
    Command {
        name: "tdx",
        class: Class::Read,
        args: &[],
        summary: "Show the state of TDX and what is missing",
        help: "Shows whether TDs can be built on this machine, and if not, everything that is missing and how to fix \
               it; whether VT-d keeps devices from memory; the microcode of the CPUs; the module's version, features and limits, as it reports them; the private \
               KeyIDs; the convertible memory regions; the TDMRs and the size of their PAMTs; free memory that TDs \
               cannot use; and the steps of the bring-up with their times.",
        run: |context, _| Ok(Reply::new(context.host.tdx())),
    },
    Command {
        name: "tdx retry",
        class: Class::Host,
        args: &[],
        summary: "Continue a bring-up of TDX that has failed",
        help: "Repeats the step that failed and does those that follow, if the reason can pass by itself, such as a \
               module or a CPU that was busy. The TDs of the configuration can then run; those with autostart are \
               started.",
        run: |context, _| {
            context
                .host
                .retry_tdx()
                .map(Reply::new)
                .map_err(Error::from)
        },
    },
];

impl Text for Tdx {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let mut facts = Facts::default();
        facts.fact("TDX", self.state);
        let what = match self.state {
            TdxState::Failed => "problem",
            _ => "missing",
        };
        for reason in &self.reasons {
            facts.fact(what, reason);
        }
        facts.fact("DMA", &self.dma);
        if let Some(hkids) = &self.hkids {
            let last = hkids.first.saturating_add(hkids.total.saturating_sub(1));
            facts.fact(
                "HKIDs",
                format_args!(
                    "{} ({} to {last}): {} used, {} quarantined",
                    hkids.total, hkids.first, hkids.used, hkids.quarantined
                ),
            );
        }
        for (i, microcode) in self.microcode.iter().enumerate() {
            let name = if i == 0 { "microcode" } else { "" };
            facts.fact(name, microcode);
        }
        if let Some(module) = &self.module {
            describe(module, &mut facts);
        }
        if let Some(memory) = &self.memory {
            facts.fact("memory for TDs", Bytes(memory.private_bytes));
            facts.fact("PAMT", Bytes(memory.pamt_bytes));
        }
        if let Some(us) = self.bring_up_us {
            facts.fact("bring-up took", Micros(us));
        }
        write!(out, "{facts}")?;
        if !self.cmrs.is_empty() {
            let mut table = Table::new(&["CMR", "BASE", "SIZE"]);
            for (index, cmr) in self.cmrs.iter().enumerate() {
                table.row(&[&index, &cmr.base, &Bytes(cmr.size)]);
            }
            write!(out, "\n{table}")?;
        }
        if let Some(memory) = &self.memory {
            tdmrs(memory, out)?;
        }
        if !self.bring_up.is_empty() {
            let mut table = Table::new(&["BRING-UP", "CALLS", "TIME", "RESULT"]);
            for step in &self.bring_up {
                let result = step.error.as_deref().unwrap_or("ok");
                table.row(&[&step.name, &step.calls, &Micros(step.us), &result]);
            }
            write!(out, "\n{table}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Microcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision {
            Some(revision) => write!(f, "{revision}")?,
            None => f.write_str("unknown")?,
        }
        write!(f, " on {}", cpus::name(&self.cpus))
    }
}

fn tdmrs(memory: &TdxMemory, out: &mut dyn Write) -> fmt::Result {
    let mut table = Table::new(&["TDMR", "BASE", "SIZE", "NODE", "RESERVED", "PAMT"]);
    for (index, tdmr) in memory.tdmrs.iter().enumerate() {
        table.row(&[
            &index,
            &tdmr.base,
            &Bytes(tdmr.size),
            &Maybe(tdmr.numa_node),
            &tdmr.reserved_areas,
            &Bytes(tdmr.pamt_bytes),
        ]);
    }
    write!(out, "\n{table}")?;
    if !memory.left_out.is_empty() {
        let mut table = Table::new(&["NOT FOR TDS", "END", "SIZE", "WHY"]);
        for left in &memory.left_out {
            let size = Bytes(left.end.0.saturating_sub(left.start.0));
            table.row(&[&left.start, &left.end, &size, &left.why]);
        }
        write!(out, "\n{table}")?;
    }
    Ok(())
}

fn describe(module: &Module, facts: &mut Facts) {
    let Module {
        major,
        minor,
        update,
        build_number,
        build_date,
        ..
    } = module;
    facts.fact(
        "module",
        format_args!("{major}.{minor}.{update:02} build {build_number} of {build_date:08}"),
    );
    facts.fact("vendor", module.vendor);
    let features = Count(module.features.len(), "feature");
    facts.fact("features", format_args!("{}: {features}", module.features0));
    // The list is longer than a row, so each line gets a few names.
    for names in module.features.chunks(3) {
        facts.fact("", names.join(", "));
    }
    for (i, advisory) in module.advisories.iter().enumerate() {
        facts.fact(if i == 0 { "advisories" } else { "" }, advisory);
    }
    facts.fact(
        "TDMRs",
        format_args!(
            "{}, each with {} reserved areas",
            module.max_tdmrs, module.max_reserved_per_tdmr
        ),
    );
    facts.fact("vCPUs for each TD", Maybe(module.max_vcpus_per_td));
    facts.fact(
        "PAMT entries",
        format_args!(
            "{} bytes for 4 KiB, {} for 2 MiB, {} for 1 GiB",
            module.pamt_4k_entry_bytes, module.pamt_2m_entry_bytes, module.pamt_1g_entry_bytes
        ),
    );
}
