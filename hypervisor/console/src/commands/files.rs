//! The files that TDs start from: `file ...`.

use alloc::{string::String, vec::Vec};
use core::fmt::{self, Write};

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::{
    argument::Required,
    command::{Class, Command},
    error::Error,
    host::{
        define::{FileLine, FilePart, FileReport, Files},
        failure::Code,
    },
    reply::{Reply, Text},
    table::{Bytes, Facts, Maybe, Table},
};

const NAME: Required<String> = Required::word("NAME");
const SIZE: Required<u64> = Required::number("SIZE");
const OFFSET: Required<u64> = Required::number("OFFSET");
const DATA: Required<String> = Required::text("DATA");
const SHA256: Required<String> = Required::word("SHA256");

/// The command that adds a part of a file.
pub const PART: &str = "file put";

pub const COMMANDS: &[Command] = &[
    Command {
        name: "file list",
        class: Class::Read,
        args: &[],
        summary: "List the files that TDs start from",
        help: "Shows the files that were loaded at boot and those that were put since, and how much more can be put: \
               files that are put may take a quarter of the host's memory.",
        run: |context, _| Ok(Reply::new(context.host.definitions()?.files())),
    },
    Command {
        name: "file show",
        class: Class::Read,
        args: &[NAME.arg],
        summary: "Show a file's size, SHA-256 and TDs",
        help: "The SHA-256 of a file that was loaded at boot is computed for this, which takes a while.",
        run: |context, args| {
            let file = context.host.definitions()?.file(&args.get(NAME)?);
            file.map(Reply::new).map_err(Error::from)
        },
    },
    Command {
        name: "file begin",
        class: Class::Host,
        args: &[NAME.arg, SIZE.arg],
        summary: "Begin to put a file of SIZE bytes",
        help: "Takes memory for the whole file. \"file put\" then adds its bytes in order, and \"file end\" completes \
               it. TDs can't use a file before it is complete. Beginning again discards what has arrived.",
        run: |context, args| {
            let (name, size) = (args.get(NAME)?, args.get(SIZE)?);
            let part = context.host.definitions()?.begin_file(&name, size);
            part.map(Reply::new).map_err(Error::from)
        },
    },
    Command {
        name: PART,
        class: Class::Host,
        args: &[NAME.arg, OFFSET.arg, DATA.arg],
        summary: "Add bytes to a file that was begun",
        help: "DATA is base64, as much as a line has room for: 64 KiB in JSON mode. OFFSET must be the number of bytes \
               that have arrived; an error names it, so that a script can go on after a reply that it lost.",
        run: |context, args| {
            let (name, offset) = (args.get(NAME)?, args.get(OFFSET)?);
            let bytes = STANDARD.decode(args.get(DATA)?.trim_end());
            let bytes = bytes.map_err(|_| {
                Code::InvalidArgument
                    .because("DATA is not base64 (RFC 4648, with padding); nothing was written")
            })?;
            let part = context.host.definitions()?.put_file(&name, offset, &bytes);
            part.map(Reply::new).map_err(Error::from)
        },
    },
    Command {
        name: "file end",
        class: Class::Host,
        args: &[NAME.arg, SHA256.arg],
        summary: "Complete a file whose SHA-256 is this",
        help: "SHA256 has 64 hexadecimal digits. If it is not that of the bytes that arrived, they are dropped.",
        run: |context, args| {
            let digest = digest(&args.get(SHA256)?).ok_or_else(|| {
                Code::InvalidArgument
                    .because("SHA256 must have 64 hexadecimal digits; the file is not complete")
            })?;
            let part = context
                .host
                .definitions()?
                .end_file(&args.get(NAME)?, &digest);
            part.map(Reply::new).map_err(Error::from)
        },
    },
    Command {
        name: "file drop",
        class: Class::Host,
        args: &[NAME.arg],
        summary: "Drop a file that was put",
        help: "Its memory is free again. A file that the definition of a TD names, or that a TD was built from whose \
               memory is not reclaimed, stays. A file that is not complete can be dropped at any time.",
        run: |context, args| {
            let part = context.host.definitions()?.drop_file(&args.get(NAME)?);
            part.map(|part| Reply::new(Dropped(part)))
                .map_err(Error::from)
        },
    },
];

fn digest(text: &str) -> Option<[u8; 32]> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect();
    let bytes: Vec<u8> = digits?
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
        .collect();
    bytes.try_into().ok().filter(|_| text.len() == 64)
}

impl Text for Files {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let mut table = Table::new(&["NAME", "SIZE", "FROM", "ARRIVED"]);
        for file in &self.files {
            let FileLine {
                name,
                bytes,
                from,
                arrived_bytes,
            } = file;
            let arrived =
                arrived_bytes.map_or_else(|| "all".into(), |n| alloc::format!("{}", Bytes(n)));
            table.row(&[name, &Bytes(*bytes), from, &arrived]);
        }
        writeln!(
            out,
            "{table}Files that are put have {} of {}.",
            Bytes(self.used_bytes),
            Bytes(self.quota_bytes)
        )
    }
}

impl Text for FileReport {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let FileLine {
            name,
            bytes,
            from,
            arrived_bytes,
        } = &self.line;
        let mut facts = Facts::default();
        facts.fact("file", name);
        facts.fact("bytes", bytes);
        facts.fact("from", from);
        if let Some(arrived) = arrived_bytes {
            facts.fact("arrived", arrived);
        }
        facts.fact("SHA-256", Maybe(self.sha256.as_ref()));
        if !self.tds.is_empty() {
            facts.fact("TDs", self.tds.join(", "));
        }
        write!(out, "{facts}")
    }
}

impl Text for FilePart {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let Self {
            name,
            bytes,
            arrived_bytes,
        } = self;
        writeln!(
            out,
            "File {name}: {arrived_bytes} of {bytes} bytes have arrived."
        )
    }
}

/// A file that is gone.
#[derive(serde::Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Dropped(FilePart);

impl Text for Dropped {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "File {} is dropped.", self.0.name)
    }
}
