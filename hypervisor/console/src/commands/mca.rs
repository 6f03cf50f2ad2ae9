//! Hardware errors: `mca`.

use core::fmt::{self, Write};

use crate::{
    command::{Class, Command},
    host::errors::Errors,
    reply::{Reply, Text},
    table::{Maybe, Micros, Table},
};

pub const COMMANDS: &[Command] = &[Command {
    name: "mca",
    class: Class::Read,
    args: &[],
    summary: "Show hardware errors",
    help: "Looks at the machine-check banks of every CPU and at the firmware's error records, and shows the errors since \
           the start by CPU, the firmware's records by source (ACPI HEST), foreign NMIs, and the last errors in full.",
    run: |context, _| Ok(Reply::new(context.host.errors())),
}];

impl Text for Errors {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let mut table = Table::new(&[
            "CPU",
            "CORRECTED",
            "UNCORRECTED",
            "CHECKS",
            "SIGNALS",
            "SIGNALLING BANKS",
            "LOCAL",
        ]);
        for cpu in &self.cpus {
            table.row(&[
                &cpu.cpu,
                &cpu.corrected,
                &cpu.uncorrected,
                &cpu.machine_checks,
                &cpu.signals,
                &cpu.signalling,
                &if cpu.local { "yes" } else { "no" },
            ]);
        }
        write!(out, "{table}")?;
        if self.cpus.is_empty() {
            writeln!(out, "No CPU has machine-check banks.")?;
        }
        for source in &self.firmware {
            writeln!(
                out,
                "Firmware's source {} ({}): {} corrected, {} recoverable, {} fatal",
                source.source, source.notice, source.corrected, source.recoverable, source.fatal
            )?;
        }
        for nmis in self.nmis.iter().filter(|nmis| nmis.count != 0) {
            writeln!(out, "Foreign NMIs, source {}: {}", nmis.source, nmis.count)?;
        }
        for cpu in &self.silent {
            writeln!(out, "CPU {cpu} did not answer; its counts may be old.")?;
        }
        if self.last.is_empty() {
            return Ok(());
        }
        let mut last = Table::new(&[
            "TIME", "CPU", "BANK", "VERDICT", "STATUS", "ADDRESS", "ERROR", "",
        ]);
        for error in &self.last {
            last.row(&[
                &Micros(error.us),
                &error.cpu,
                &error.bank,
                &error.verdict,
                &error.status,
                &Maybe(error.address),
                &error.error,
                &if error.stale { "before the start" } else { "" },
            ]);
        }
        write!(out, "{last}")
    }
}
