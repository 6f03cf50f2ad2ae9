//! The list of TDs, and the details of one: `td list`, `td show`.

use alloc::{format, string::String, vec::Vec};
use core::fmt::{self, Write};

use serde::Serialize;

use super::{TD, find, work};
use crate::{
    argument::Args,
    command::{Class, Command, Context},
    error::Error,
    host::{
        device::TdDevice,
        pci::TdPci,
        td::{Pages, TdLine, TdReport, TdVcpu, Unanswered},
    },
    load::TdRates,
    reply::{Reply, Text},
    table::{Bytes, Facts, Maybe, Micros, Permille, Short, Table},
};

pub const COMMANDS: &[Command] = &[
    Command {
        name: "td list",
        class: Class::Read,
        args: &[],
        summary: "List the TDs",
        help: "Shows each TD's number and name (commands accept either), its state, HKID and vCPUs, its private \
               memory and the limit of it, and any problem. The states are created (nothing is allocated), building, \
               paused, runnable, terminating (its HKID is being released), teardown (its memory is being reclaimed) \
               and reclaimed.",
        run: list,
    },
    Command {
        name: "td show",
        class: Class::Read,
        args: &[TD.arg],
        summary: "Show one TD in detail",
        help: "Shows its state, HKID, memory by page size, and measurement (the MRTD, which \"cargo xtask measure\" \
               computes from the same configuration); how long each vCPU ran, waited for an event, and was ready but \
               had no CPU, since its start and at present; how the TD was built and terminated, with times and SEAMCALLs; \
               its PCI functions with their owners; its virtual devices with their queues, notifications, interrupts, bytes and \
               what they dropped, and how long idle CPUs worked for them beside its vCPUs; the accesses of its guest that no device answered: ports, pages of \
               memory-mapped registers, and MSRs that are refused; and any problem.",
        run: |context, args| {
            let (tds, id) = find(context, args)?;
            let report = tds.show(id)?;
            drop(tds);
            let now = context.host.sample();
            let rates = context.session.load.until(&now);
            Ok(Reply::new(Shown {
                report,
                rates: rates.and_then(|rates| rates.td(id)),
            }))
        },
    },
];

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct List {
    tds: Vec<TdLine>,
}

fn list(context: &mut Context<'_>, _: &Args) -> Result<Reply, Error> {
    let tds = context.host.tds()?.list();
    Ok(Reply::new(List { tds }))
}

impl Text for List {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        if self.tds.is_empty() {
            return writeln!(
                out,
                "No TD is defined. \"td define\" and [[td]] in seamark.toml define TDs; \"boot\" shows mistakes in that file."
            );
        }
        let mut table = Table::new(&[
            "TD", "NAME", "STATE", "HKID", "VCPUS", "PRIVATE", "LIMIT", "PROBLEM",
        ]);
        for td in &self.tds {
            table.row(&[
                &td.id,
                &td.name,
                &td.state,
                &Maybe(td.hkid),
                &td.vcpus,
                &Bytes(td.private_bytes),
                &Bytes(td.memory_bytes),
                &Short(td.problem.as_deref().unwrap_or_default()),
            ]);
        }
        write!(out, "{table}")?;
        let mut problems = self.tds.iter().filter_map(|td| td.problem.as_deref());
        if problems.any(|problem| Short(problem).is_cut()) {
            writeln!(out, "\"td show\" shows a problem in full.")?;
        }
        Ok(())
    }
}

/// All details of a TD, and its rates.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Shown {
    #[serde(flatten)]
    report: TdReport,
    rates: Option<TdRates>,
}

impl Text for Shown {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        self.report.text(out)?;
        match &self.rates {
            Some(rates) => writeln!(out, "\n{}", Now(rates)),
            None => Ok(()),
        }
    }
}

/// The present activity of a TD.
pub struct Now<'a>(pub &'a TdRates);

impl fmt::Display for Now<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Now its vCPUs run {}, wait {} and lack a CPU {} of one CPU's time, with {} exits a second.",
            Permille(self.0.run_permille),
            Permille(self.0.wait_permille),
            Permille(self.0.steal_permille),
            self.0.exits_per_second
        )
    }
}

impl Text for TdReport {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let TdLine {
            id,
            name,
            state,
            hkid,
            vcpus: _,
            private_bytes,
            memory_bytes,
            problem,
        } = &self.line;
        let mut facts = Facts::default();
        facts.fact("TD", format_args!("{id} {name}"));
        facts.fact("state", state);
        if let Some(problem) = problem {
            facts.fact("problem", problem);
        }
        if let Some(shutdown) = &self.shutdown {
            facts.fact("shutdown", shutdown);
        }
        if !self.pending.is_empty() {
            facts.fact(
                "next start",
                format_args!("other {}", self.pending.join(", ")),
            );
        }
        facts.fact("HKID", Maybe(*hkid));
        facts.fact("image", &self.image);
        let marks = [
            (self.autostart, "autostart"),
            (self.control, "control"),
            (self.debug, "debug"),
            (self.no_rbp_mod, "no_rbp_mod"),
        ];
        let marks: Vec<_> = marks
            .iter()
            .filter(|mark| mark.0)
            .map(|mark| mark.1)
            .collect();
        if !marks.is_empty() {
            facts.fact("options", marks.join(", "));
        }
        let cap = match self.cap {
            Some(cap) => format!(", at most {cap} % of a CPU"),
            None => String::new(),
        };
        facts.fact("shares", format_args!("{}{cap}", self.shares));
        facts.fact(
            "memory",
            format_args!("{} of {}", Bytes(*private_bytes), Bytes(*memory_bytes)),
        );
        facts.fact("pages", self.pages);
        if self.made_whole > 0 {
            let count = self.made_whole;
            facts.fact("promoted", format_args!("{count} of 2 MiB"));
        }
        facts.fact("MRTD", Maybe(self.mrtd.as_ref()));
        for function in &self.pci {
            facts.fact("PCI", Function(function));
        }
        write!(out, "{facts}")?;
        devices(&self.devices, out)?;
        help(self.devices_helped_us, out)?;
        vcpus(&self.cpus, out)?;
        unanswered(&self.unanswered, out)?;
        for (what, done) in [("BUILT", &self.built), ("ENDED", &self.ended)] {
            if let Some(done) = done {
                writeln!(out)?;
                work::phases(what, done, out)?;
            }
        }
        match &self.reclaim {
            Some(reclaim) => write!(out, "\n{reclaim}"),
            None => Ok(()),
        }
    }
}

/// Lists the virtual devices, if there are any.
fn devices(devices: &[TdDevice], out: &mut dyn Write) -> fmt::Result {
    if devices.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&[
        "DEVICE",
        "KIND",
        "NAME",
        "QUEUES",
        "KICKS",
        "INTERRUPTS",
        "TO GUEST",
        "FROM GUEST",
        "DROPPED",
    ]);
    for device in devices {
        table.row(&[
            &device.device,
            &device.kind,
            &device.name.as_deref().unwrap_or_default(),
            &device.queues,
            &device.notifications,
            &device.interrupts,
            &Bytes(device.to_guest_bytes),
            &Bytes(device.from_guest_bytes),
            &device.dropped,
        ]);
    }
    write!(out, "\n{table}")?;
    for device in devices {
        if let Some(problem) = &device.problem {
            writeln!(
                out,
                "Device {} waits for a reset by its driver: {problem}.",
                device.device
            )?;
        }
    }
    Ok(())
}

/// Tells of the time that other CPUs spent on the devices, if they did.
fn help(us: u64, out: &mut dyn Write) -> fmt::Result {
    match us {
        0 => Ok(()),
        us => writeln!(out, "Idle CPUs worked for its devices for {}.", Micros(us)),
    }
}

fn vcpus(vcpus: &[TdVcpu], out: &mut dyn Write) -> fmt::Result {
    let mut table = Table::new(&["VCPU", "CPU", "", "RAN", "WAITED", "STOLEN", "ENTRIES"]);
    for vcpu in vcpus {
        let time = |us: Option<u64>| Maybe(us.map(Micros));
        table.row(&[
            &vcpu.index,
            &Maybe(vcpu.cpu),
            &if vcpu.running { "running" } else { "" },
            &time(vcpu.run_us),
            &time(vcpu.wait_us),
            &time(vcpu.steal_us),
            &Maybe(vcpu.entries),
        ]);
    }
    write!(out, "\n{table}")
}

/// Lists the accesses that nothing answered, if there are any.
fn unanswered(accesses: &Unanswered, out: &mut dyn Write) -> fmt::Result {
    if accesses.places.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["UNANSWERED", "AT", "READS", "WRITES", "PART OF A PC"]);
    for place in &accesses.places {
        let part = place.part.unwrap_or("-");
        table.row(&[&place.kind, &place.at, &place.reads, &place.writes, &part]);
    }
    write!(out, "\n{table}")?;
    match accesses.others {
        0 => Ok(()),
        others => writeln!(out, "and {others} accesses to other places."),
    }
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, size) in [
            (self.private_1g, "1 GiB"),
            (self.private_2m, "2 MiB"),
            (self.private_4k, "4 KiB"),
        ] {
            // Pages of 1 GiB are rare; they are shown only if there are any.
            if size != "1 GiB" || count > 0 {
                write!(f, "{count} of {size}, ")?;
            }
        }
        write!(f, "{} of S-EPT", self.sept)
    }
}

/// A PCI function of a TD in a line.
struct Function<'a>(&'a TdPci);

impl fmt::Display for Function<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TdPci {
            device,
            address,
            kind,
            owner,
            counts,
        } = self.0;
        let Some(address) = address else {
            return write!(f, "{device}: the machine has no such function, or several");
        };
        f.write_str(address)?;
        if address != device {
            write!(f, " ({device})")?;
        }
        if let Some(kind) = kind {
            write!(f, ", {kind}")?;
        }
        write!(f, ", owner {}", owner.as_deref().unwrap_or("unknown"))?;
        let Some(counts) = counts else {
            return Ok(());
        };
        let accesses = counts.config + counts.memory;
        let interrupts = counts.interrupts;
        write!(f, ", {interrupts} interrupts, {accesses} accesses by exits")?;
        if counts.refused > 0 {
            write!(f, ", no vector for {}", counts.refused)?;
        }
        if counts.rests > 0 {
            write!(f, ", interrupted too often {} times", counts.rests)?;
        }
        Ok(())
    }
}

/// The start of a sentence about a command's result: "TD 1 hello is paused".
pub(super) struct Is<'a>(pub &'a crate::host::td::TdNow);

impl fmt::Display for Is<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(td) = self;
        write!(f, "TD {} {} is {}", td.id, td.name, td.state.in_words())
    }
}
