//! Termination of TDs: `td terminate`, `td destroy`, `td retry`.

use core::fmt::{self, Write};

use super::{TD, find, show::Is, work};
use crate::{
    command::{Arg, Command, Kind},
    error::Error,
    host::td::{TdEnded, TdState},
    reply::{Reply, Text},
    table::Bytes,
};

/// Reclaims the TD's memory before its key.
const DYNAMIC: &str = "--dynamic";

pub const COMMANDS: &[Command] = &[
    Command {
        name: "td terminate",
        args: &[TD],
        summary: "End a TD; its memory comes back by and by",
        help: "Its vCPUs stop, its HKID is free again, and from then on each page comes back with one SEAMCALL: idle CPUs \
               see to that while the machine goes on. \"reclaim\" shows how far it is. Asking twice is harmless; when the \
               end got stuck, \"td retry\" goes on with it.",
        run: |context, args| {
            let (tds, id) = find(context, args)?;
            tds.terminate(id).map(Reply::new).map_err(Error::Host)
        },
    },
    Command {
        name: "td destroy",
        args: &[
            Arg {
                name: DYNAMIC,
                kind: Kind::Flag,
                optional: true,
            },
            TD,
        ],
        summary: "End a TD and wait until its memory is back",
        help: "As \"td terminate\", and this CPU helps until the last page is back. With --dynamic the memory is taken before \
               the key, by dynamic page removal: slower, for comparison. Shows pages by size, SEAMCALLs by leaf, and for each \
               phase the time that passed and the CPU time: that of all CPUs that were busy with it, added up.",
        run: |context, args| {
            let dynamic = args.flag(DYNAMIC);
            let (tds, id) = find(context, args)?;
            tds.destroy(id, dynamic)
                .map(Reply::new)
                .map_err(Error::Host)
        },
    },
    Command {
        name: "td retry",
        args: &[TD],
        summary: "Go on with the end of a TD that got stuck",
        help: "From where it got stuck: writing caches back, giving the HKID back, taking memory back. Until that succeeds \
               HKID and memory are in quarantine.",
        run: |context, args| {
            let (tds, id) = find(context, args)?;
            tds.retry(id).map(Reply::new).map_err(Error::Host)
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
                ": its HKID is free, and its memory is being taken back; \"reclaim\" shows how far that is"
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
