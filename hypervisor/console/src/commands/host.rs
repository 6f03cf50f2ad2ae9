//! The machine: `host`.

use core::fmt::{self, Write};

use serde::Serialize;

use crate::{
    command::{Class, Command},
    host::load::Facts as Machine,
    load::Rates,
    reply::{Reply, Text},
    table::{Facts, Maybe, Permille, Uptime, Utc},
};

pub const COMMANDS: &[Command] = &[Command {
    name: "host",
    class: Class::Read,
    args: &[],
    summary: "Show the machine's identity, time and load",
    help: "Shows the machine's manufacturer, model, serial number, UUID and firmware, as its SMBIOS tables name them; \
           the CPU with its microcode; the time since boot, the time of day by the real-time clock (UTC), and the \
           load: how many vCPUs ran or wanted to run, on average over the last seconds. \"top\" shows it in detail.",
    run: |context, _| {
        let now = context.host.sample();
        let rates = context.session.load.until(&now);
        Ok(Reply::new(Host {
            facts: context.host.facts(),
            cpus: now.packages.iter().map(|package| package.cpus).sum(),
            load_permille: rates.as_ref().map(Rates::load_permille),
        }))
    },
}];

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Host {
    #[serde(flatten)]
    facts: Machine,
    cpus: u32,
    load_permille: Option<u64>,
}

impl Text for Host {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let Machine {
            manufacturer,
            model,
            serial_number,
            uuid,
            firmware,
            cpu,
            microcode: _,
            uptime_us,
            unix_seconds,
        } = &self.facts;
        let mut facts = Facts::default();
        facts.fact("manufacturer", Maybe(manufacturer.as_ref()));
        facts.fact("model", Maybe(model.as_ref()));
        facts.fact("serial number", Maybe(serial_number.as_ref()));
        facts.fact("UUID", Maybe(uuid.as_ref()));
        facts.fact("firmware", Maybe(firmware.as_ref()));
        facts.fact("CPU", cpu);
        facts.fact("uptime", Uptime(*uptime_us));
        facts.fact("time", Utc(*unix_seconds));
        let load = Maybe(self.load_permille.map(|load| Permille(load).as_number()));
        facts.fact("load", format_args!("{load} on {} CPUs", self.cpus));
        write!(out, "{facts}")
    }
}
