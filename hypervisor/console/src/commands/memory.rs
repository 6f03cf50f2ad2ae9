//! Memory: `mem` and `mem peek`.

use core::fmt::{self, Write};

use serde::Serialize;

use crate::{
    command::{Arg, Args, Command, Context, Kind},
    error::Error,
    hexdump::{HexBytes, dump},
    host::{Hex, Memory},
    reply::{Reply, Text},
    table::{Bytes, Facts, Table},
};

pub const COMMANDS: &[Command] = &[
    Command {
        name: "mem",
        args: &[],
        summary: "Show the memory and who has it",
        help: "Frames by size, the frame ledger (every byte is free, used or quarantined, and the three must make up \
               the total), the hypervisor's heap, and the firmware's memory map. Quarantined frames are not handed \
               out, because they may still be the TDX module's; those of a TD whose end got stuck come back when \
               \"td retry\" succeeds.",
        run: |context, _| Ok(Reply::new(context.host.memory())),
    },
    Command {
        name: "mem peek",
        args: &[Arg {
            name: "PA",
            kind: Kind::Address,
            optional: false,
        }],
        summary: "Read 64 bytes of physical memory (at your own risk)",
        help: "Reads the cache line that holds the physical address PA, as eight loads of 8 bytes. For debugging, at \
               your own risk: device registers may change when they are read, and reading memory that belongs to the \
               TDX module or to a TD may stop the machine with a machine check.",
        run: peek,
    },
];

impl Text for Memory {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let mut frames = Table::new(&["FRAMES", "FREE", "USED", "QUARANTINED"]);
        for count in &self.frames {
            frames.row(&[
                &Bytes(count.frame_bytes),
                &count.free,
                &count.used,
                &count.quarantined,
            ]);
        }
        let ledger = &self.ledger;
        let balance = if ledger.balanced() {
            "balanced"
        } else {
            "DOES NOT BALANCE"
        };
        let mut facts = Facts::default();
        facts.fact("total", Bytes(ledger.total_bytes));
        facts.fact("free", Bytes(ledger.free_bytes));
        facts.fact("used", Bytes(ledger.used_bytes));
        facts.fact("quarantined", Bytes(ledger.quarantined_bytes));
        facts.fact("ledger", balance);
        let (used, total) = (Bytes(self.heap.used_bytes), Bytes(self.heap.total_bytes));
        facts.fact("heap", format_args!("{used} of {total} used"));
        let mut regions = Table::new(&["START", "END", "SIZE", "FIRMWARE CALLS IT"]);
        for region in &self.regions {
            let size = Bytes(region.end.0.saturating_sub(region.start.0));
            regions.row(&[&region.start, &region.end, &size, &region.kind]);
        }
        write!(out, "{frames}\n{facts}\n{regions}")
    }
}

#[derive(Serialize)]
struct Peek {
    address: Hex,
    bytes: HexBytes,
}

fn peek(context: &mut Context<'_>, args: &Args) -> Result<Reply, Error> {
    let line = args.number(0).unwrap_or_default() & !63;
    let bytes = context.host.peek(line).map_err(Error::Host)?;
    Ok(Reply::new(Peek {
        address: Hex(line),
        bytes: HexBytes(bytes.into()),
    }))
}

impl Text for Peek {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        dump(self.address.0, &self.bytes.0, out)
    }
}
