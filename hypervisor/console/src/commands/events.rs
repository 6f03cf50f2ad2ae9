//! The audit trail: `events`.

use core::fmt::{self, Write};

use crate::{
    argument::{Optional, Required},
    command::{Class, Command},
    host::event::Events,
    reply::{Reply, Text},
    table::{Maybe, Table},
};

const SINCE: Optional<u64> = Required::number("SINCE").optional();

pub const COMMANDS: &[Command] = &[Command {
    name: "events",
    class: Class::Read,
    args: &[SINCE.arg],
    summary: "Show what changed, and who asked for it",
    help: "Shows every change of state and every command that changes the host or a TD, oldest first: number, seconds \
           since boot, on whose behalf (\"console\", \"td NAME\" for a hypercall, \"button\", or \"host\" for the host \
           itself), the TD, and what happened. With SINCE, only events after that number. The last 512 are kept; \"lost\" \
           counts those that are not. \"dmesg\" has them, too.",
    run: |context, args| {
        let since = args.given(SINCE).unwrap_or(0);
        Ok(Reply::new(context.host.events(since)))
    },
}];

impl Text for Events {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        if self.lost > 0 {
            writeln!(out, "({} older events are lost)", self.lost)?;
        }
        let mut table = Table::new(&["EVENT", "TIME", "BY", "TD", "WHAT"]);
        for event in &self.events {
            let time = alloc::format!("{}.{:03}", event.us / 1_000_000, event.us / 1000 % 1000);
            table.row(&[
                &event.number,
                &time,
                &event.channel,
                &Maybe(event.name.as_ref()),
                &event.what,
            ]);
        }
        write!(out, "{table}")
    }
}
