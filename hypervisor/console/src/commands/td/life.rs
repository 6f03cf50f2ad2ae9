//! The life of a TD: `td create`, `td start`, `td pause`, `td resume`, `td reset`, `td shrink`.

use core::fmt::{self, Write};

use super::{TD, find, show::Is, work};
use crate::{
    command::{Arg, Args, Command, Context, Kind},
    error::Error,
    host::td::{TdBuilt, TdNow, TdShrunk, Tds},
    reply::{Reply, Text},
    table::{Bytes, Facts, Maybe, Micros},
};

pub const COMMANDS: &[Command] = &[
    Command {
        name: "td create",
        args: &[TD],
        summary: "Build a TD; it does not run yet",
        help: "Checks the configuration against what the TDX module can do, and that there are frames, an HKID and CPUs; \
               then builds the TD. What goes wrong in the middle takes everything down again that was built.",
        run: |context, args| {
            let (tds, id) = find(context, args)?;
            tds.create(id).map(Reply::new).map_err(Error::Host)
        },
    },
    Command {
        name: "td start",
        args: &[TD],
        summary: "Let a TD run, and build it if it is not built",
        help: "A TD that has ended is built anew. \"td console\" shows what it says.",
        run: |context, args| now(context, args, |tds, id| tds.start(id)),
    },
    Command {
        name: "td pause",
        args: &[TD],
        summary: "Stop a TD's vCPUs",
        help: "None of them is in the guest afterwards. \"td resume\" lets them run again.",
        run: |context, args| now(context, args, |tds, id| tds.pause(id)),
    },
    Command {
        name: "td resume",
        args: &[TD],
        summary: "Let a paused TD run again",
        help: "Its vCPUs go on where they were. One whose guest has panicked can't go on: \"td reset\" starts it anew.",
        run: |context, args| now(context, args, |tds, id| tds.resume(id)),
    },
    Command {
        name: "td reset",
        args: &[TD],
        summary: "End a TD and build it again",
        help: "Under the same name and with the memory of its configuration; it runs if it did, also if its guest has \
               panicked or broken down. No state or memory of the old one survives.",
        run: |context, args| now(context, args, |tds, id| tds.reset(id)),
    },
    Command {
        name: "td shrink",
        args: &[
            TD,
            Arg {
                name: "SIZE",
                kind: Kind::Size,
                optional: false,
            },
        ],
        summary: "Take memory from a TD, while it runs",
        help: "SIZE, such as 256M, is what is left: the memory above that is taken by dynamic page removal. The guest is not \
               asked; one that uses what it has lost is ended.",
        run: |context, args| {
            let (tds, id) = find(context, args)?;
            let bytes = args.number(1).unwrap_or_default();
            tds.shrink(id, bytes).map(Reply::new).map_err(Error::Host)
        },
    },
];

fn now(
    context: &mut Context<'_>,
    args: &Args,
    act: fn(&dyn Tds, u32) -> Result<TdNow, alloc::string::String>,
) -> Result<Reply, Error> {
    let (tds, id) = find(context, args)?;
    act(&*tds, id).map(Reply::new).map_err(Error::Host)
}

impl Text for TdNow {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "{}.", Is(self))
    }
}

impl Text for TdBuilt {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let mut facts = Facts::default();
        facts.fact("HKID", Maybe(self.hkid));
        facts.fact("MRTD", Maybe(self.mrtd.as_ref()));
        facts.fact("pages", self.pages);
        writeln!(
            out,
            "{}; \"td start {}\" lets it run.\n",
            Is(&self.now),
            self.now.name
        )?;
        writeln!(out, "{facts}")?;
        work::phases("BUILT", &self.work, out)
    }
}

impl Text for TdShrunk {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        write!(
            out,
            "{}, and has {} of memory now.",
            Is(&self.now),
            Bytes(self.memory_bytes)
        )?;
        match self.left_to {
            Some(left_to) => writeln!(out, " What was taken comes back by {left_to}."),
            None => writeln!(
                out,
                " Taken: {}, in {} batches, {}.",
                self.taken,
                self.batches,
                Micros(self.us)
            ),
        }
    }
}
