//! The busiest TDs, and the host: `top`.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt::{self, Write};

use serde::Serialize;

use crate::{
    argument::Args,
    command::{Class, Command, Context},
    error::Error,
    host::{Heap, Ledger, Management, load::Sample, load::TdSample, td::TdState},
    load::{Load, PackageRates, Rates, TdRates},
    reply::{Reply, Text, Then},
    screen::Size,
    session::Front,
    table::{Bytes, Maybe, Micros, Permille, Table},
};

pub const COMMANDS: &[Command] = &[Command {
    name: "top",
    class: Class::Read,
    args: &[],
    summary: "Show what the host and the TDs are busy with",
    help: "Shows the CPUs by package, exits and SEAMCALLs in a second, memory, and the TDs, the busiest first: how \
           long their vCPUs ran, waited for an event, and were ready but had no CPU, in percent of one CPU. It is \
           shown again every two seconds until a key is pressed, as wide as the terminal is; \"screen\" tells its \
           size. In JSON mode, or with a filter, it is shown once, as a script needs it. Rates are those of the last two to four seconds; \
           null: not known yet.",
    run: top,
}];

/// Microseconds between two views.
pub const PERIOD_US: u64 = 2_000_000;

/// Shows the present state on the whole screen.
pub fn show(host: &dyn Management, load: &Load, size: Size, out: &mut dyn Write) -> fmt::Result {
    out.write_str("\x1b[H")?;
    for line in View::of(host, load).on(size).lines() {
        write!(out, "{line}\x1b[K\r\n")?;
    }
    out.write_str("Press a key to leave.\x1b[K\x1b[J")
}

fn top(context: &mut Context<'_>, _: &Args) -> Result<Reply, Error> {
    let session = &mut *context.session;
    let view = View::of(context.host, &session.load);
    if session.is_interactive() {
        session.front = Some(Front::Top { due_us: 0 });
        return Ok(Reply::new(view).then(Then::View));
    }
    Ok(Reply::new(view))
}

/// The state of the host and the TDs.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct View {
    uptime_us: u64,
    /// The microseconds over which the rates were measured.
    interval_us: Option<u64>,
    packages: Vec<PackageRates>,
    calls_per_second: Option<u64>,
    exits_per_second: Option<u64>,
    load_permille: Option<u64>,
    memory: Ledger,
    heap: Heap,
    tds: Vec<Td>,
}

/// A TD.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Td {
    id: u32,
    name: String,
    state: TdState,
    vcpus: u16,
    private_bytes: u64,
    memory_bytes: u64,
    exits: u64,
    rates: Option<TdRates>,
}

impl View {
    fn of(host: &dyn Management, load: &Load) -> Self {
        let now = host.sample();
        let rates = load.until(&now);
        let Sample {
            us,
            memory,
            heap,
            tds,
            ..
        } = now;
        let td = |td: TdSample| Td {
            rates: rates.as_ref().and_then(|rates| rates.td(td.id)),
            id: td.id,
            name: td.name,
            state: td.state,
            vcpus: td.vcpus,
            private_bytes: td.private_bytes,
            memory_bytes: td.memory_bytes,
            exits: td.spent.exits,
        };
        let mut tds: Vec<Td> = tds.into_iter().map(td).collect();
        let busy = |td: &Td| td.rates.map_or(0, |rates| rates.run_permille);
        tds.sort_by_key(|td| (core::cmp::Reverse(busy(td)), td.id));
        Self {
            uptime_us: us,
            interval_us: rates.as_ref().map(|rates| rates.us),
            calls_per_second: rates.as_ref().map(|rates| rates.calls_per_second),
            exits_per_second: rates.as_ref().map(Rates::exits_per_second),
            load_permille: rates.as_ref().map(Rates::load_permille),
            packages: rates.map(|rates| rates.packages).unwrap_or_default(),
            memory,
            heap,
            tds,
        }
    }

    /// Returns the view for a screen of this size. The last row is left free.
    fn on(&self, size: Size) -> String {
        let columns = usize::from(size.columns);
        let head = self.head(columns);
        let room = usize::from(size.rows).saturating_sub(head.lines().count() + 3);
        let shown = self.tds.len().min(room);
        let mut text = head;
        // A string takes everything.
        let _ = write!(text, "{}", self.table(&self.tds[..shown], columns));
        if shown < self.tds.len() {
            let _ = writeln!(text, "and {} more TDs", self.tds.len() - shown);
        }
        let cut = |line: &str| line.chars().take(columns).collect::<String>() + "\n";
        text.lines().map(cut).collect()
    }

    fn head(&self, columns: usize) -> String {
        let number = |number: Option<u64>| Maybe(number);
        let load = Maybe(self.load_permille.map(|load| Permille(load).as_number()));
        let mut text = format!(
            "up {}, load {load}, {} exits/s, {} SEAMCALLs/s\n",
            Micros(self.uptime_us),
            number(self.exits_per_second),
            number(self.calls_per_second)
        );
        let Ledger {
            total_bytes,
            free_bytes,
            used_bytes,
            quarantined_bytes,
            ..
        } = self.memory;
        let _ = write!(
            text,
            "memory {}: {} free, {} used",
            Bytes(total_bytes),
            Bytes(free_bytes),
            Bytes(used_bytes)
        );
        if quarantined_bytes > 0 {
            let _ = write!(text, ", {} quarantined", Bytes(quarantined_bytes));
        }
        let _ = writeln!(text, "; heap {}", Bytes(self.heap.used_bytes));
        let bar = if columns >= 160 { 60 } else { 20 };
        for package in &self.packages {
            let filled = (package.busy_permille as usize * bar)
                .div_ceil(1000)
                .min(bar);
            let _ = writeln!(
                text,
                "package {} of {:>3} CPUs {:>7} busy  [{}{}]",
                package.package,
                package.cpus,
                Permille(package.busy_permille).to_string(),
                "|".repeat(filled),
                " ".repeat(bar - filled)
            );
        }
        text + "\n"
    }

    fn table(&self, tds: &[Td], columns: usize) -> String {
        let is_wide = columns >= 120;
        let name_room = if is_wide { columns - 100 } else { 10 };
        let mut header = alloc::vec![
            "TD", "NAME", "STATE", "VCPUS", "RUN %", "WAIT %", "STEAL %", "EXITS/S", "PRIVATE"
        ];
        if is_wide {
            header.extend(["LIMIT", "EXITS"]);
        }
        let mut table = Table::new(&header);
        for td in tds {
            let rate = |of: fn(&TdRates) -> u64| {
                Maybe(td.rates.as_ref().map(|td| Permille(of(td)).in_percent()))
            };
            let name = shortened(&td.name, name_room);
            let cells: [&dyn fmt::Display; 11] = [
                &td.id,
                &name,
                &td.state,
                &td.vcpus,
                &rate(|td| td.run_permille),
                &rate(|td| td.wait_permille),
                &rate(|td| td.steal_permille),
                &Maybe(td.rates.map(|rates| rates.exits_per_second)),
                &Bytes(td.private_bytes),
                &Bytes(td.memory_bytes),
                &td.exits,
            ];
            table.row(&cells[..header.len()]);
        }
        table.to_string()
    }
}

fn shortened(name: &str, room: usize) -> String {
    if name.chars().count() <= room {
        return name.to_string();
    }
    name.chars().take(room - 1).collect::<String>() + "~"
}

impl Text for View {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        out.write_str(&self.on(Size::UNBOUNDED))
    }
}
