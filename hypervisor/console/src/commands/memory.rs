//! Memory: `mem` and `mem peek`.

use core::fmt::{self, Write};

use serde::Serialize;

use crate::{
    argument::{Args, Required},
    command::{Class, Command, Context},
    error::Error,
    hexdump::{HexBytes, dump},
    host::{Hex, Memory},
    reply::{Reply, Text},
    table::{Bytes, Facts, Table},
};

const PA: Required<u64> = Required::address("PA");

pub const COMMANDS: &[Command] = &[
    Command {
        name: "mem",
        class: Class::Read,
        args: &[],
        summary: "Show memory usage",
        help: "Shows frames by size, the frame ledger (free, used and quarantined bytes, which must add up to the \
               total), the hypervisor's heap, and the firmware's memory map. Quarantined frames are not reused, \
               because the TDX module may still own them. Those of a TD whose termination got stuck are freed when \
               \"td retry\" succeeds.",
        run: |context, _| Ok(Reply::new(context.host.memory())),
    },
    Command {
        name: "mem peek",
        class: Class::Host,
        args: &[PA.arg],
        summary: "Read 64 bytes of physical memory (at your own risk)",
        help: "Reads the cache line that contains the physical address PA: RAM in loads of 8 bytes, anything else in \
               loads of 4 bytes. A page that the TDX module reports as a TD's is not read. For debugging, at your own \
               risk: reading device registers can have side effects, and reading memory of the TDX module itself can \
               stop the machine with a machine check.",
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Peek {
    address: Hex,
    bytes: HexBytes,
}

fn peek(context: &mut Context<'_>, args: &Args) -> Result<Reply, Error> {
    let line = args.get(PA)? & !63;
    let bytes = context.host.peek(line)?;
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
