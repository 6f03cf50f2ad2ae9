//! The definitions of TDs: `td define`, `td undefine`, `td set`, `td attach`, `td detach`, and `td shutdown`.

use alloc::string::String;
use core::fmt::{self, Write};

use super::{
    super::text::{TOML, begin},
    TD, find,
    show::Is,
};
use crate::{
    argument::{Flag, Optional, Required},
    command::{Class, Command, Context},
    error::Error,
    host::{
        define::{TdAsked, TdAttached, TdDefined, TdDetached, TdForgotten, TdSet},
        pci::TdPci,
    },
    paste,
    reply::{Reply, Text},
};

const KEY: Required<String> = Required::word("KEY");
const DEVICE: Required<String> = Required::pci_function("DEVICE");
const VALUE: Required<String> = Required::value("VALUE");
/// Seconds that a guest has to shut down: a day at most.
const SECONDS: Optional<u64> = Required::within("SECONDS", 0, 86_400).optional();
/// Terminates a TD whose guest did not shut down in time.
const FORCE: Flag = Flag::new("--force");

/// Seconds that a guest has to shut down, if the operator names none.
const DEFAULT_LIMIT_S: u32 = 60;

pub const COMMANDS: &[Command] = &[
    Command {
        name: "td define",
        class: Class::Td,
        args: &[TOML.arg],
        summary: "Define a TD",
        help: "Paste the lines of one [[td]], as in seamark.toml, and end them with a line that has a single dot; \
               Ctrl-C discards them. A script gives the text as one JSON string. The files that it names are those of \
               \"file list\". All mistakes are reported, and nothing is allocated before the TD starts. The definition \
               is lost when the host restarts: \"config show\" prints what to put into the file.",
        run: |context, args| match args.given(TOML) {
            Some(text) => define(context, &paste::given(&text)?),
            None => begin("td define", context, args),
        },
    },
    Command {
        name: "td undefine",
        class: Class::Td,
        args: &[TD.arg],
        summary: "Forget a TD that is not built",
        help: "The TD's console and the record of its last life are lost, too. No other TD gets its number. A TD that \
               seamark.toml names comes back when the host restarts.",
        run: |context, args| {
            let id = find(context, args)?.1;
            let forgotten = context.host.definitions()?.undefine(id);
            forgotten.map(Reply::new).map_err(Error::from)
        },
    },
    Command {
        name: "td set",
        class: Class::Td,
        args: &[TD.arg, KEY.arg, VALUE.arg],
        summary: "Change a key of a TD's definition",
        help: "KEY and VALUE are as in seamark.toml; a text needs no quotes, and the value default (without quotes) \
               removes the key. shares and cap apply at once, everything else when the TD is built again; \"td show\" \
               lists the keys that wait for that.",
        run: |context, args| {
            let id = find(context, args)?.1;
            let (key, value) = (args.get(KEY)?, args.get(VALUE)?);
            let set = context.host.definitions()?.set(id, &key, &value);
            set.map(Reply::new).map_err(Error::from)
        },
    },
    Command {
        name: "td attach",
        class: Class::Td,
        args: &[TD.arg, DEVICE.arg],
        summary: "Give a PCI function to a TD",
        help: "The TD has the function from its next start on. DEVICE is an address (0000:01:00.0), or vendor and device \
               (8086:0a54) if the machine has one of them; \"pci list\" lists the functions. The TD must not be built: no \
               function is plugged into a TD that lives. Functions of one group go to one TD, all of them or none, and a \
               function that another TD has had must be released before (\"pci release\").",
        run: |context, args| {
            let id = find(context, args)?.1;
            let device = args.get(DEVICE)?;
            let attached = context.host.definitions()?.attach(id, &device);
            attached.map(Reply::new).map_err(Error::from)
        },
    },
    Command {
        name: "td detach",
        class: Class::Td,
        args: &[TD.arg, DEVICE.arg],
        summary: "Take a PCI function from a TD",
        help: "The TD starts without the function from now on. DEVICE is as for \"td attach\". The TD must not be built. \
               If the TD has had the function, it keeps the TD's label until it is released (\"pci release\").",
        run: |context, args| {
            let id = find(context, args)?.1;
            let device = args.get(DEVICE)?;
            let detached = context.host.definitions()?.detach(id, &device);
            detached.map(Reply::new).map_err(Error::from)
        },
    },
    Command {
        name: "td shutdown",
        class: Class::OwnTd,
        args: &[TD.arg, SECONDS.arg, FORCE.arg],
        summary: "Ask a TD's guest to power off",
        help: "Presses the ACPI power button of the guest, which has 60 seconds, or SECONDS, to power off. The command \
               does not wait; \"td show\" says how long is left. If the guest does not power off in time, nothing more \
               happens, or with --force the TD is terminated.",
        run: |context, args| {
            let id = find(context, args)?.1;
            let limit = args.given(SECONDS).map_or(DEFAULT_LIMIT_S, |s| s as u32);
            let force = args.has(FORCE);
            let asked = context.host.definitions()?.shut_down(id, limit, force);
            asked.map(Reply::new).map_err(Error::from)
        },
    },
];

fn define(context: &mut Context<'_>, text: &str) -> Result<Reply, Error> {
    let defined = context.host.definitions()?.define(text);
    defined.map(Reply::new).map_err(Error::from)
}

fn warn(warnings: &[String], out: &mut dyn Write) -> fmt::Result {
    let mut all = warnings.iter();
    all.try_for_each(|warning| writeln!(out, "warning: {warning}"))
}

impl Text for TdDefined {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let Self { id, name, .. } = self;
        warn(&self.warnings, out)?;
        writeln!(
            out,
            "TD {id} {name} is defined; \"td start {name}\" starts it."
        )
    }
}

impl Text for TdForgotten {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "TD {} {} is forgotten.", self.id, self.name)
    }
}

impl Text for TdSet {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        warn(&self.warnings, out)?;
        let Self { now, key, .. } = self;
        let when = match self.applies_now {
            true => "is set",
            false => "is set for the next time that it is built",
        };
        writeln!(out, "{}; {key} {when}.", Is(now))
    }
}

/// The function in a sentence: its address, or the words of the definition.
fn name(function: &TdPci) -> &str {
    function.address.as_ref().unwrap_or(&function.device)
}

impl Text for TdAttached {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        warn(&self.warnings, out)?;
        let function = name(&self.function);
        writeln!(
            out,
            "{}; it has PCI function {function} from its next start on.",
            Is(&self.now)
        )
    }
}

impl Text for TdDetached {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let function = name(&self.function);
        writeln!(
            out,
            "{}; it starts without PCI function {function}.",
            Is(&self.now)
        )?;
        match &self.function.owner {
            Some(owner) if owner.starts_with("formerly ") => writeln!(
                out,
                "The function may hold data of the TD; \"pci release {function}\" frees it for others."
            ),
            _ => Ok(()),
        }
    }
}

impl Text for TdAsked {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let Self { now, limit_s, .. } = self;
        if !self.listens {
            writeln!(
                out,
                "warning: the guest does not listen to its power button (it has no ACPI driver for it, or has not \
                 loaded it yet)"
            )?;
        }
        let after = match self.force {
            true => "then it is terminated",
            false => "then nothing more happens",
        };
        writeln!(
            out,
            "{}. Its power button was pressed; it has {limit_s} s to power off, {after}.",
            Is(now)
        )
    }
}
