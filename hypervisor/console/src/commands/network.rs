//! Networks of TDs: `net list`, `net show`.

use alloc::{format, string::String, vec::Vec};
use core::fmt::{self, Display, Write};

use serde::Serialize;

use crate::{
    argument::{Args, Required},
    command::{Class, Command, Context},
    error::Error,
    host::{failure::Code, network::Network},
    reply::{Reply, Text},
    table::{Bytes, Facts, Table},
};

const NETWORK: Required<String> = Required::network("NAME");

pub const COMMANDS: &[Command] = &[
    Command {
        name: "net list",
        class: Class::Read,
        args: &[],
        summary: "List the networks of TDs",
        help: "Shows each [[network]] of the configuration with the number of its cards, and the frames and bytes that \
               they received and the frames that were dropped, since their TDs started.",
        run: list,
    },
    Command {
        name: "net show",
        class: Class::Read,
        args: &[NETWORK.arg],
        summary: "Show a network and its cards",
        help: "Shows each card with its TD, its number on the TD's bus, its address and its port: open, isolated (it reaches \
               trunk ports alone) or trunk (its TD bridges to other networks); then, since the TD started, the frames and \
               bytes that it sent and received, and the frames that were dropped: those for it without a buffer of its \
               driver, and of those from it the ones with another source address, with a length or a header that is wrong, \
               and beyond its rate.",
        run: show,
    },
];

/// A network in a line.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Line {
    name: String,
    isolated: bool,
    rate_bytes: Option<u64>,
    cards: usize,
    /// Frames that cards received, and their bytes.
    frames: u64,
    bytes: u64,
    /// Frames that were dropped.
    dropped: u64,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct List {
    networks: Vec<Line>,
}

fn list(context: &mut Context<'_>, _: &Args) -> Result<Reply, Error> {
    let networks = context.host.networks().into_iter();
    let networks = networks.map(|network| {
        let sum = |count: fn(&_) -> u64| network.cards.iter().map(count).sum();
        Line {
            cards: network.cards.len(),
            frames: sum(|card| card.received_frames),
            bytes: sum(|card| card.received_bytes),
            dropped: sum(|card| card.dropped()),
            name: network.name,
            isolated: network.isolated,
            rate_bytes: network.rate_bytes,
        }
    });
    Ok(Reply::new(List {
        networks: networks.collect(),
    }))
}

fn show(context: &mut Context<'_>, args: &Args) -> Result<Reply, Error> {
    let name = args.get(NETWORK)?;
    let mut networks = context.host.networks().into_iter();
    match networks.find(|network| network.name == name) {
        Some(network) => Ok(Reply::new(network)),
        None => {
            let why = format!("there is no network {name:?}; \"net list\" lists them");
            Err(Code::InvalidArgument.because(why).into())
        }
    }
}

impl Text for List {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        if self.networks.is_empty() {
            return writeln!(
                out,
                "There is no network. [[network]] in seamark.toml defines one, and [[td.net]] puts a TD into it."
            );
        }
        let mut table = Table::new(&[
            "NETWORK", "CARDS", "FRAMES", "BYTES", "DROPPED", "RATE", "PORTS",
        ]);
        for line in &self.networks {
            table.row(&[
                &line.name,
                &line.cards,
                &line.frames,
                &Bytes(line.bytes),
                &line.dropped,
                &Rate(line.rate_bytes),
                &ports(line.isolated),
            ]);
        }
        write!(out, "{table}")
    }
}

impl Text for Network {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let mut facts = Facts::default();
        facts.fact("network", &self.name);
        facts.fact("ports", ports(self.isolated));
        facts.fact("rate", Rate(self.rate_bytes));
        write!(out, "{facts}")?;
        if self.cards.is_empty() {
            return writeln!(out, "\nNo TD with a card in it has been built.");
        }
        let mut cards = Table::new(&["TD", "DEVICE", "ADDRESS", "PORT", "RATE", "DRIVER"]);
        let mut counts = Table::new(&[
            "TD",
            "SENT",
            "BYTES",
            "RECEIVED",
            "BYTES",
            "NO BUFFER",
            "SPOOFED",
            "MALFORMED",
            "LIMITED",
        ]);
        for card in &self.cards {
            cards.row(&[
                &card.td,
                &card.device,
                &card.mac,
                &card.port,
                &Rate(card.rate_bytes),
                &if card.running { "ready" } else { "not ready" },
            ]);
            counts.row(&[
                &card.td,
                &card.sent_frames,
                &Bytes(card.sent_bytes),
                &card.received_frames,
                &Bytes(card.received_bytes),
                &card.no_buffer,
                &card.spoofed,
                &card.malformed,
                &card.limited,
            ]);
        }
        write!(out, "\n{cards}\n{counts}")
    }
}

const fn ports(is_isolated: bool) -> &'static str {
    match is_isolated {
        true => "isolated",
        false => "open",
    }
}

/// A limit of bytes per second.
struct Rate(Option<u64>);

impl Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(rate) => f.pad(&format!("{}/s", Bytes(rate))),
            None => f.pad("any"),
        }
    }
}
