//! PCI functions: `pci list`, `pci show`, `pci release`.

use core::fmt::{self, Display, Write};

use crate::{
    argument::{Args, Required},
    command::{Class, Command, Context},
    error::Error,
    host::pci::{PciLine, PciList, PciReleased, PciReport},
    reply::{Reply, Text},
    table::{Bytes, Count, Facts, Maybe, Short, Table},
};

const FUNCTION: Required<alloc::string::String> = Required::pci_function("ADDRESS");

pub const COMMANDS: &[Command] = &[
    Command {
        name: "pci list",
        class: Class::Read,
        args: &[],
        summary: "Show the PCI functions",
        help: "Shows each function with its vendor and device, what it is, its isolation group (functions that can reach \
               each other, or that the IOMMU can't tell apart, are in one group and go to one owner), its owner, its \
               health, and the first reason why no TD can have it. The owner is host, none, the name of a TD, \"formerly\" \
               and the name of the last TD, whose data the function may hold, or \"out of use\".",
        run: list,
    },
    Command {
        name: "pci show",
        class: Class::Read,
        args: &[FUNCTION.arg],
        summary: "Show a PCI function",
        help: "Shows a function (0000:01:00.0, or 01:00.0 in segment 0): what \"pci list\" shows with every reason, its \
               bridge and group, the ids that its requests carry, its base address registers, its capabilities, the ways \
               to reset it, and the errors that it has reported. If nobody uses the function, its registers are measured \
               the first time, for which it stops answering for a moment.",
        run: show,
    },
    Command {
        name: "pci release",
        class: Class::Host,
        args: &[FUNCTION.arg],
        summary: "Let any TD have a PCI function",
        help: "A function that a TD has had goes to no other TD until it is released, with all functions of its group. \
               Nothing is erased: a reset, which the function gets before each TD, clears neither a drive nor the \
               firmware of a device.",
        run: release,
    },
];

fn list(context: &mut Context<'_>, _: &Args) -> Result<Reply, Error> {
    let functions = context.host.pci_list()?;
    Ok(Reply::new(PciList { functions }))
}

fn show(context: &mut Context<'_>, args: &Args) -> Result<Reply, Error> {
    let address = args.get(FUNCTION)?;
    Ok(Reply::new(context.host.pci_show(&address)?))
}

fn release(context: &mut Context<'_>, args: &Args) -> Result<Reply, Error> {
    let address = args.get(FUNCTION)?;
    Ok(Reply::new(context.host.pci_release(&address)?))
}

impl Text for PciReleased {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let Self {
            functions,
            td,
            warning,
        } = self;
        for function in functions {
            writeln!(
                out,
                "PCI function {function}, which TD {td} had, is released; any TD can have it."
            )?;
        }
        writeln!(out, "warning: {warning}")
    }
}

impl Text for PciList {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let mut table = Table::new(&[
            "ADDRESS",
            "ID",
            "DEVICE",
            "GROUP",
            "OWNER",
            "HEALTH",
            "NOT FOR TDS",
        ]);
        for line in &self.functions {
            let reason = line.refusals.first().map_or("", |reason| reason.as_str());
            table.row(&[
                &line.address,
                &line.id,
                &line.device,
                &line.group,
                &line.owner,
                &line.health.name(),
                &Short(reason),
            ]);
        }
        write!(out, "{table}")?;
        writeln!(out, "{}", Count(self.functions.len(), "function"))
    }
}

impl Text for PciReport {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let PciLine {
            address,
            id,
            device,
            group,
            owner,
            health,
            refusals,
        } = &self.line;
        let mut facts = Facts::default();
        facts.fact("function", address);
        facts.fact(
            "device",
            format_args!("{device}, {id}, class {}", self.class),
        );
        facts.fact("subsystem", Maybe(self.subsystem.as_ref()));
        facts.fact("port", self.port.unwrap_or("conventional PCI"));
        facts.fact("bridge", Maybe(self.bridge.as_ref()));
        if let Some(physical) = &self.physical {
            facts.fact("virtual function of", physical);
        }
        facts.fact("owner", owner);
        facts.fact(
            "group",
            format_args!("{group}{}", Joined(" with ", &self.group_members)),
        );
        facts.fact("request ids", Joined("", &self.requesters));
        facts.fact(
            "health",
            format_args!("{}{}", health.name(), Joined(": ", &self.errors)),
        );
        for (name, items) in [
            ("resets", &self.resets),
            ("capabilities", &self.capabilities),
        ] {
            match &items[..] {
                [] => facts.fact(name, "none"),
                items => facts.fact(name, Joined("", items)),
            }
        }
        for reason in refusals {
            facts.fact("not for TDs", reason);
        }
        write!(out, "{facts}")?;
        if self.bars.is_empty() {
            return Ok(());
        }
        let mut table = Table::new(&["BAR", "KIND", "ADDRESS", "SIZE"]);
        for bar in &self.bars {
            table.row(&[
                &bar.index,
                &bar.kind,
                &bar.address,
                &Maybe(bar.size.map(Bytes)),
            ]);
        }
        write!(out, "\n{table}")
    }
}

/// Items separated by commas, behind a lead if there are any.
struct Joined<'a, T>(&'a str, &'a [T]);

impl<T: Display> Display for Joined<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, item) in self.1.iter().enumerate() {
            f.write_str(if number == 0 { self.0 } else { ", " })?;
            write!(f, "{item}")?;
        }
        Ok(())
    }
}
