//! Typing at a port of a TD without watching it: `td type` and `td send`.

use alloc::{string::String, vec::Vec};
use core::fmt::{self, Write};

use serde::Serialize;

use super::{TD, find};
use crate::{
    argument::{Args, Required},
    command::{Class, Command, Context},
    error::Error,
    host::{failure::Code, td::TdPort},
    reply::{Reply, Text},
};

const TEXT: Required<String> = Required::text("TEXT");

const TYPE: Command = Command {
    name: "td type",
    class: Class::OwnTd,
    args: &[TD.arg, TEXT.arg],
    summary: "Type a text on a TD's console",
    help: "TEXT is the rest of the line. \\r in it is Enter, \\t Tab, \\e Escape, \\n a line feed, \\\\ a backslash, and \
           \\xNN the byte with that hexadecimal number. \"td console\" shows what the TD answers. TEXT is in no log and \
           no event, but the history has it.",
    run: |context, args| type_text(context, args, TdPort::Console),
};

const SEND: Command = Command {
    name: "td send",
    class: Class::OwnTd,
    args: &[TD.arg, TEXT.arg],
    summary: "Send a text to a TD's port for scripts",
    help: "As \"td type\", to the port that \"td script\" shows.",
    run: |context, args| type_text(context, args, TdPort::Script),
};

pub const COMMANDS: &[Command] = &[TYPE, SEND];

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Typed {
    td: String,
    bytes: usize,
    #[serde(skip)]
    port: TdPort,
}

fn type_text(context: &mut Context<'_>, args: &Args, port: TdPort) -> Result<Reply, Error> {
    let bytes = decode(&args.get(TEXT)?)?;
    let (tds, id) = find(context, args)?;
    let td = tds.name(id).unwrap_or_default();
    for (count, byte) in bytes.iter().enumerate() {
        if !tds.type_byte(id, port, *byte) {
            return Err(Code::Busy
                .because(alloc::format!(
                    "TD {td} took {count} of {} bytes: its {} is full, or it does not run; type the rest again",
                    bytes.len(),
                    port.in_words()
                ))
                .into());
        }
    }
    let bytes = bytes.len();
    Ok(Reply::new(Typed { td, bytes, port }))
}

fn decode(text: &str) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    loop {
        rest = match rest {
            [] => return Ok(bytes),
            [b'\\', b'x', high, low, rest @ ..] => {
                bytes.push(hex(*high, *low).ok_or(Error::NoEscape)?);
                rest
            }
            [b'\\', letter, rest @ ..] => {
                bytes.push(match letter {
                    b'r' => b'\r',
                    b'n' => b'\n',
                    b't' => b'\t',
                    b'e' => 0x1B,
                    b'\\' => b'\\',
                    _ => return Err(Error::NoEscape),
                });
                rest
            }
            [b'\\'] => return Err(Error::NoEscape),
            [byte, rest @ ..] => {
                bytes.push(*byte);
                rest
            }
        };
    }
}

fn hex(high: u8, low: u8) -> Option<u8> {
    let digit = |digit: u8| char::from(digit).to_digit(16);
    Some((digit(high)? * 16 + digit(low)?) as u8)
}

impl Text for Typed {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        writeln!(
            out,
            "Typed {} bytes on the {} of TD {}.",
            self.bytes,
            self.port.in_words(),
            self.td
        )
    }
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn escapes_are_control_characters() {
        let said = |text| decode(text).ok();
        assert_eq!(said(r"ls -l | wc\r").as_deref(), Some(&b"ls -l | wc\r"[..]));
        assert_eq!(
            said(r"\\\t\e\n\x1D").as_deref(),
            Some(&b"\\\t\x1b\n\x1d"[..])
        );
        for wrong in [r"\", r"\q", r"\x1", r"\xgg"] {
            assert!(decode(wrong).is_err(), "{wrong}");
        }
    }
}
