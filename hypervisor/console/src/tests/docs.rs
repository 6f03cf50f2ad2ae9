//! Tests that `docs/console.md` matches the command table.

extern crate std;

use alloc::{format, string::String};
use core::fmt::Write;
use std::{env, fs};

use super::{Terminal, commands};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/console.md");

#[test]
fn the_page_about_the_console_is_up_to_date() {
    let page = fs::read_to_string(PAGE).expect("docs/console.md");
    let expected = replace(&page, "commands", &command_table());
    let expected = replace(&expected, "replies", &example_replies());
    if page == expected {
        return;
    }
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(PAGE, expected).expect("docs/console.md can be written");
        return;
    }
    panic!(
        "docs/console.md is out of date; run\n\n    UPDATE_DOCS=1 cargo test -p console tests::docs\n"
    );
}

/// Returns the page with `text` between the two comments named `name`.
fn replace(page: &str, name: &str, text: &str) -> String {
    let (begin, end) = (
        format!("<!-- begin: {name} -->"),
        format!("<!-- end: {name} -->"),
    );
    let (head, rest) = page.split_once(&begin).expect("the comment before it");
    let (_, tail) = rest.split_once(&end).expect("the comment behind it");
    format!("{head}{begin}\n{text}{end}{tail}")
}

fn command_table() -> String {
    let mut table = String::from("| Command | Class | What it does |\n|---|---|---|\n");
    for command in commands::ALL.all() {
        // A bar ends a cell even inside code.
        let usage = command.usage().replace('|', "\\|");
        writeln!(
            table,
            "| `{usage}` | {} | {}. {} |",
            command.class.name(),
            command.summary,
            command.help
        )
        .expect("a string takes everything");
    }
    table
}

fn example_replies() -> String {
    let mut terminal = Terminal::default();
    terminal.send("json on\r");
    let lines = [
        "version",
        "boot",
        "cpus",
        "mem",
        "mem peek 0x1000",
        "pci list",
        "pci show 0000:01:00.0",
        "net list",
        "net show lan",
        "tdx",
        "td list",
        "td show hello",
        "td console hello",
        "hkids",
        "stats",
        "seam bench",
        "td terminate hello",
        "reclaim",
        "log",
        "dmesg warn",
        "json of",
    ];
    let replies: String = lines
        .iter()
        .map(|line| terminal.send(format!("{line}\r")))
        .collect();
    format!("```json\n{}```\n", replies.replace("\r\n", "\n"))
}
