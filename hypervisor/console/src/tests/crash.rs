//! Tests of `crash show` and `crash drop`.

use alloc::{string::String, vec};

use serde_json::Value;

use super::{Console, Terminal};
use crate::host::crash::Crash;

/// Returns a terminal on a machine that has crashed.
fn crashed() -> Terminal {
    let mut terminal = Terminal::default();
    terminal.machine.crash = Some(Crash {
        unix: Some(1_764_434_460),
        kept_in: vec!["uefi-variables", "memory"],
        missing_bytes: 0,
        lines: ["crash: begin version=1", "crash: cpu=2", "crash: end"]
            .map(String::from)
            .into(),
    });
    terminal
}

#[test]
fn the_last_crash_is_shown_counted_and_dropped() {
    let mut terminal = crashed();
    assert_eq!(
        terminal.run("crash show"),
        "1 crash since the last \"crash drop\". The last one, kept in uefi-variables, memory:\r\n  begin \
         version=1\r\n  cpu=2\r\n  end\r\n"
    );
    assert!(
        terminal
            .run("boot")
            .contains("crashes         1 (\"crash show\")\r\n")
    );
    assert_eq!(terminal.run("crash drop"), "Dropped: 1 crash.\r\n");
    assert_eq!(terminal.run("crash show"), "No crash is on record.\r\n");
    assert_eq!(
        terminal.run("crash drop"),
        "No crash is on record; nothing to do.\r\n"
    );
    assert!(terminal.run("boot").contains("crashes         0\r\n"));
}

#[test]
fn the_greeting_tells_of_a_crash() {
    let terminal = crashed();
    let mut out = String::new();
    Console::new().start(&terminal.machine, &mut out);
    assert!(
        out.contains(
            "warning: 1 crash since the last \"crash drop\": \"crash show\" shows the last one, \"crash drop\" forgets it\r\n"
        ),
        "{out}"
    );
}

#[test]
fn scripts_get_the_lines_as_they_were_printed() {
    let mut terminal = crashed();
    terminal.send("json on\r");
    let shown = terminal.json("crash show");
    assert_eq!(
        shown["crash"]["lines"][0], "crash: begin version=1",
        "{shown}"
    );
    assert_eq!(terminal.json("report")["last_crash"], shown["crash"]);
    assert_eq!(terminal.json("crash drop")["dropped"], 1);
    assert_eq!(terminal.json("crash show")["crash"], Value::Null);
}

#[test]
fn a_crash_that_is_incomplete_or_stays_is_said_to_be() {
    let mut terminal = crashed();
    terminal.machine.keeps_crash = true;
    let crash = terminal.machine.crash.as_mut().unwrap();
    crash.missing_bytes = 7;
    assert!(
        terminal
            .run("crash show")
            .ends_with("7 bytes of it are lost.\r\n")
    );
    assert!(terminal.run("crash drop").starts_with("error: "));
    assert!(terminal.run("crash show").contains("begin"));
}
