//! Termination of TDs: `td terminate`, `td destroy`, `td retry`.

use core::fmt::{self, Write};

use super::{TD, find, show::Is, work};
use crate::{
    argument::Flag,
    command::{Class, Command},
    error::Error,
    host::td::{TdEnded, TdState},
    reply::{Reply, Text},
    table::Bytes,
};

/// Reclaims the TD's memory before its key.
const DYNAMIC: Flag = Flag::new("--dynamic");

pub const COMMANDS: &[Command] = &[
    Command {
        name: "td terminate",
        class: Class::OwnTd,
        args: &[TD.arg],
        summary: "Terminate a TD; reclaim its memory in the background",
        help: "Stops its vCPUs and releases its HKID. Idle CPUs then reclaim its memory, with one SEAMCALL for each \
               page. \"reclaim\" shows the progress. Terminating a TD twice is harmless; if termination gets stuck, \
               \"td retry\" resumes it.",
        run: |context, args| {
            let (tds, id) = find(context, args)?;
            tds.terminate(id).map(Reply::new).map_err(Error::from)
        },
    },
    Command {
        name: "td destroy",
        class: Class::Td,
        args: &[DYNAMIC.arg, TD.arg],
        summary: "Terminate a TD and wait until its memory is reclaimed",
        help: "Like \"td terminate\", but this CPU helps until the last page is reclaimed. --dynamic removes the \
               memory before the HKID is released, by dynamic page removal: slower, for comparison. Shows pages by \
               size, SEAMCALLs by leaf, and for each phase the elapsed time and the CPU time, summed over the CPUs \
               that worked on it.",
        run: |context, args| {
            let dynamic = args.has(DYNAMIC);
            let (tds, id) = find(context, args)?;
            tds.destroy(id, dynamic)
                .map(Reply::new)
                .map_err(Error::from)
        },
    },
    Command {
        name: "td retry",
        class: Class::Td,
        args: &[TD.arg],
        summary: "Resume a termination that got stuck",
        help: "Repeats the step that failed: cache write-back, release of the HKID, or reclaim of the memory. Until \
               it succeeds, the HKID and the memory are in quarantine.",
        run: |context, args| {
            let (tds, id) = find(context, args)?;
            tds.retry(id).map(Reply::new).map_err(Error::from)
        },
    },
];

impl Text for TdEnded {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        if self.already {
            return writeln!(out, "{} already; nothing to do.", Is(&self.now));
        }
        write!(out, "{}", Is(&self.now))?;
        if self.now.state == TdState::Teardown {
            write!(
                out,
                ": its HKID is free and its memory is being reclaimed; \"reclaim\" shows the progress"
            )?;
        }
        writeln!(
            out,
            ".\nIt had {} of private memory: {}.\n",
            Bytes(self.bytes),
            self.pages
        )?;
        work::phases("PHASE", &self.work, out)?;
        writeln!(out)?;
        work::leafs(&self.work, out)
    }
}
