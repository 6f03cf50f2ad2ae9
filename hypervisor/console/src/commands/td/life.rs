//! The life of a TD: `td create`, `td start`, `td pause`, `td resume`, `td reset`, `td shrink`.

use core::fmt::{self, Write};

use super::{TD, find, show::Is, work};
use crate::{
    argument::{Args, Required},
    command::{Class, Command, Context},
    error::Error,
    host::{
        failure::Failure,
        td::{TdBuilt, TdNow, TdShrunk, Tds},
    },
    reply::{Reply, Text},
    table::{Bytes, Count, Facts, Maybe, Micros},
};

const SIZE: Required<u64> = Required::size("SIZE");

pub const COMMANDS: &[Command] = &[
    Command {
        name: "td create",
        class: Class::Td,
        args: &[TD.arg],
        summary: "Build a TD without starting it",
        help: "Checks the configuration against what the TDX module supports, and that frames, an HKID and CPUs are \
               available; then builds the TD. If a step fails, everything built so far is torn down.",
        run: |context, args| {
            let (tds, id) = find(context, args)?;
            tds.create(id).map(Reply::new).map_err(Error::from)
        },
    },
    Command {
        name: "td start",
        class: Class::OwnTd,
        args: &[TD.arg],
        summary: "Start a TD; build it first if necessary",
        help: "A terminated TD is built again. \"td console\" shows its output.",
        run: |context, args| now(context, args, |tds, id| tds.start(id)),
    },
    Command {
        name: "td pause",
        class: Class::OwnTd,
        args: &[TD.arg],
        summary: "Stop a TD's vCPUs",
        help: "No vCPU is in the guest when the command returns. \"td resume\" lets them run again.",
        run: |context, args| now(context, args, |tds, id| tds.pause(id)),
    },
    Command {
        name: "td resume",
        class: Class::OwnTd,
        args: &[TD.arg],
        summary: "Resume a paused TD",
        help: "Its vCPUs continue where they stopped. A TD whose guest has panicked cannot be resumed: use \"td \
               reset\".",
        run: |context, args| now(context, args, |tds, id| tds.resume(id)),
    },
    Command {
        name: "td reset",
        class: Class::OwnTd,
        args: &[TD.arg],
        summary: "Terminate a TD and build it again",
        help: "The new TD has the same name and the configured memory. It is started if the old one was running, \
               even if its guest had panicked or crashed. No state or memory of the old TD survives.",
        run: |context, args| now(context, args, |tds, id| tds.reset(id)),
    },
    Command {
        name: "td shrink",
        class: Class::OwnTd,
        args: &[TD.arg, SIZE.arg],
        summary: "Remove memory from a running TD",
        help: "SIZE, such as 256M, is the memory that remains. The memory above it is removed by dynamic page \
               removal. The guest is not asked; if it uses removed memory, it is stopped.",
        run: |context, args| {
            let (tds, id) = find(context, args)?;
            tds.shrink(id, args.get(SIZE)?)
                .map(Reply::new)
                .map_err(Error::from)
        },
    },
];

fn now(
    context: &mut Context<'_>,
    args: &Args,
    act: fn(&dyn Tds, u32) -> Result<TdNow, Failure>,
) -> Result<Reply, Error> {
    let (tds, id) = find(context, args)?;
    act(&*tds, id).map(Reply::new).map_err(Error::from)
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
            "{}; \"td start {}\" starts it.\n",
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
            Some(left_to) => writeln!(out, " The memory above that will be freed by {left_to}."),
            None => writeln!(
                out,
                " Removed: {}, in {}, {}.",
                self.taken,
                Count(self.batches as usize, "batch"),
                Micros(self.us)
            ),
        }
    }
}
