//! Tests of what programs may rely on in JSON: names, codes, the version, and the classes of commands.

use alloc::{collections::BTreeSet, format, vec::Vec};

use super::{Terminal, commands};
use crate::{Class, PROTOCOL, host::failure::Code};

#[test]
fn an_error_names_the_whole_command_and_its_code() {
    let mut terminal = Terminal::default();
    terminal.send("json on\r");
    for (line, command, code) in [
        ("frobnicate", "frobnicate", Code::UnknownCommand),
        ("td", "td", Code::UnknownCommand),
        ("td dump", "td dump", Code::MissingArgument),
        ("td dump hello", "td dump", Code::MissingArgument),
        ("td dump hello here", "td dump", Code::InvalidArgument),
        ("td shrink hello much", "td shrink", Code::InvalidArgument),
        (
            "mem peek 0x10000000000000",
            "mem peek",
            Code::InvalidArgument,
        ),
        (
            "mem peek 0xfffffffffffc0",
            "mem peek",
            Code::InvalidArgument,
        ),
        ("mem pek 0", "mem", Code::UnexpectedArgument),
        ("  td   list now", "td list", Code::UnexpectedArgument),
        ("td show fred", "td show", Code::NoSuchTd),
        ("help me", "help", Code::UnknownCommand),
        ("json maybe", "json", Code::InvalidArgument),
        ("td list \u{e9}", "td list", Code::ForeignByte),
        (
            &format!("td list {}", "x".repeat(100_000)),
            "td list",
            Code::LineTooLong,
        ),
    ] {
        let reply = terminal.json(line);
        assert_eq!(
            (&reply["cmd"], &reply["ok"], &reply["code"]),
            (&command.into(), &false.into(), &code.name().into()),
            "{line}: {reply}"
        );
        assert_eq!(reply["protocol"], PROTOCOL, "{reply}");
        assert!(reply["error"].is_string(), "{reply}");
    }
    terminal.machine.without_tdx = true;
    assert_eq!(terminal.json("td start hello")["code"], "unavailable");
}

#[test]
fn a_success_has_the_version_and_no_code() {
    let mut terminal = Terminal::default();
    terminal.send("json on\r");
    let reply = terminal.json("td list");
    assert_eq!(
        (&reply["protocol"], &reply["ok"]),
        (&1.into(), &true.into())
    );
    assert_eq!(reply.get("code"), None);
}

#[test]
fn codes_have_names_of_their_own() {
    let names: BTreeSet<&str> = Code::ALL.iter().map(|code| code.name()).collect();
    assert_eq!(names.len(), Code::ALL.len());
    for name in names {
        let good = |c: char| c.is_ascii_lowercase() || c == '-';
        assert!(name.chars().all(good), "{name}");
    }
}

#[test]
fn a_command_that_changes_the_host_or_a_td_is_in_no_lower_class() {
    let of = |class| -> Vec<&str> {
        let all = commands::ALL.all();
        all.filter(|command| command.class == class)
            .map(|command| command.name)
            .collect()
    };
    assert_eq!(
        of(Class::Host),
        [
            "reboot",
            "poweroff",
            "crash drop",
            "mem peek",
            "pci release",
            "tdx retry",
            "file begin",
            "file put",
            "file end",
            "file drop",
            "seam bench",
            "log"
        ]
    );
    for command in of(Class::Read) {
        let mut terminal = Terminal::default();
        terminal.send("json on\r");
        terminal.json(command);
        assert_eq!(terminal.machine.requested, None, "{command}");
        assert_eq!(*terminal.machine.tds.done.borrow(), [""; 0], "{command}");
        assert_eq!(
            *terminal.machine.definitions.done.borrow(),
            [""; 0],
            "{command}"
        );
    }
    assert!(
        of(Class::Read)
            .iter()
            .all(|name| !name.starts_with("td ") || ["td list", "td show"].contains(name))
    );
}

#[test]
fn classes_are_ordered_by_what_they_allow() {
    assert!(Class::Read < Class::OwnTd && Class::OwnTd < Class::Td && Class::Td < Class::Host);
}
