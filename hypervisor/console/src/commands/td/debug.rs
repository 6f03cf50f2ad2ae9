//! Inspection of debug TDs: `td regs`, `td dump`.

use core::fmt::{self, Write};

use serde::Serialize;

use super::{TD, find};
use crate::{
    argument::{Args, Optional, Required},
    command::{Class, Command, Context},
    error::Error,
    hexdump::{HexBytes, dump},
    host::{Hex, td::Registers},
    reply::{Reply, Text},
    table::Table,
};

/// Number of bytes shown by default, and the maximum.
const DEFAULT_BYTES: u64 = 256;
const MOST_BYTES: u64 = 4096;

const VCPU: Optional<u64> = Required::number("VCPU").optional();
const GPA: Required<u64> = Required::address("GPA");
const BYTES: Optional<u64> = Required::within("BYTES", 1, MOST_BYTES).optional();

pub const COMMANDS: &[Command] = &[
    Command {
        name: "td regs",
        class: Class::OwnTd,
        args: &[TD.arg, VCPU.arg],
        summary: "Show the registers of a debug TD's vCPU",
        help: "Shows those of vCPU 0, or of VCPU. The TDX module lets the host read them (TDH.VP.RD) only if the TD \
               was built with debug = true, which the TD's attestation reveals.",
        run: regs,
    },
    Command {
        name: "td dump",
        class: Class::OwnTd,
        args: &[TD.arg, GPA.arg, BYTES.arg],
        summary: "Show private memory of a debug TD",
        help: "Shows 256 bytes, or BYTES (at most 4096), from the guest-physical address GPA on (TDH.MEM.RD). Like \
               \"td regs\", for debug TDs only.",
        run: memory,
    },
];

fn regs(context: &mut Context<'_>, args: &Args) -> Result<Reply, Error> {
    let (tds, id) = find(context, args)?;
    let vcpu = args.given(VCPU).unwrap_or(0);
    // A number that does not fit becomes one that no vCPU has.
    let vcpu = u16::try_from(vcpu).unwrap_or(u16::MAX);
    tds.registers(id, vcpu).map(Reply::new).map_err(Error::from)
}

impl Text for Registers {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "vCPU {} of TD {}", self.vcpu, self.name)?;
        let mut table = Table::new(&["REGISTER", "VALUE", "REGISTER", "VALUE"]);
        for pair in self.registers.chunks(2) {
            match pair {
                [left, right] => table.row(&[&left.name, &left.value, &right.name, &right.value]),
                [left, ..] => table.row(&[&left.name, &left.value]),
                [] => {}
            }
        }
        write!(out, "{table}")
    }
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Dump {
    address: Hex,
    bytes: HexBytes,
}

fn memory(context: &mut Context<'_>, args: &Args) -> Result<Reply, Error> {
    let address = args.get(GPA)? & !7;
    let count = args.given(BYTES).unwrap_or(DEFAULT_BYTES);
    let (tds, id) = find(context, args)?;
    let mut bytes = alloc::vec![0; count.next_multiple_of(8) as usize];
    tds.memory(id, address, &mut bytes)?;
    Ok(Reply::new(Dump {
        address: Hex(address),
        bytes: HexBytes(bytes),
    }))
}

impl Text for Dump {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        dump(self.address.0, &self.bytes.0, out)
    }
}
