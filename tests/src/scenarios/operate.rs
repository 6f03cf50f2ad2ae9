//! Operating a whole machine: a configuration with mistakes, Linux that is defined at run time from files that were put
//! over the console and shut down by its power button, and the ledger afterwards.

use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::linux::shell::PROMPT;
use super::stage::{nothing_illegal, nothing_is_left, said, used, wait_for_state};
use super::{Bench, Scenario};
use crate::console::Console;
use crate::media::Media;

pub const ALL: &[Scenario] = &[Scenario::by_name_only("operate", operate).with_linux()];

/// Time limit of a report.
const ANSWER: Duration = Duration::from_secs(60);
/// Time limit of building a TD, ending one, or a guest's output.
const WORK: Duration = Duration::from_secs(240);
/// Bytes of a file in a line.
const CHUNK: usize = 48 << 10;

/// The configuration that the machine boots with. Three TDs are in order.
const CONFIG: &str = "\
[host]
reclaim_share = 100

[[file]]
name = \"hello\"
path = \"hello.fd\"

[[td]]
name = \"one\"
image = \"hello\"
memory = \"16M\"
autostart = true

[[td]]
name = \"wrong\"
image = \"hello\"
memory = 16M
vcpus = \"two\"

[[td]]
name = \"two\"
image = \"hello\"
memory = \"16M\"
autostart = true

[[td]]
name = \"missing\"
image = \"helo\"
memory = \"16M\"

[[td]]
name = \"three\"
image = \"hello\"
memory = \"16M\"
autostart = true
";

/// The beginnings of what is said about it.
const MISTAKES: [&str; 5] = [
    "seamark.toml:2: reclaim_share is 100; it must be a number from 0 to 90",
    "seamark.toml:17: ",
    "seamark.toml:18: vcpus is \"two\"; it must be a number from 1 to 65535",
    "seamark.toml:28: image is \"helo\", and no [[file]] has that name",
    "seamark.toml: 2 [[td]] with mistakes are left out",
];

fn operate(bench: &mut Bench) -> Result<()> {
    let hello = fs::read(bench.programs().guest("hello")).context("the guest hello")?;
    let media = Media::of_program(&bench.programs().seamark())?
        .with_config_text(CONFIG)
        .with_bytes("hello.fd", &hello);
    let machine = bench.machine_with(&media)?;
    let mut console = bench.console(&machine)?;
    mistakes(&mut console)?;
    for name in ["one", "two", "three"] {
        wait_for_state(&mut console, name, "runnable", WORK)?;
        console.succeed(&format!("td destroy {name}"), WORK)?;
        console.succeed(&format!("td undefine {name}"), ANSWER)?;
    }
    let before = used(&mut console)?;

    let linux = bench.programs().linux();
    for (name, path) in [("kernel", linux.kernel()), ("initrd", linux.initrd())] {
        let content = fs::read(&path).with_context(|| format!("can't read {}", path.display()))?;
        let time = put(&mut console, name, &content)?;
        let rate = content.len() as f32 / 1024.0 / time.as_secs_f32();
        bench.note(format!(
            "{name}: {} KiB, {rate:.0} KiB/s",
            content.len() >> 10
        ));
    }
    run_linux(bench, &mut console)?;

    for name in ["kernel", "initrd"] {
        console.succeed(&format!("file drop {name}"), ANSWER)?;
    }
    trail(&mut console)?;
    nothing_is_left(&mut console, &[], before)?;
    nothing_illegal(&mut console)
}

/// Checks that every mistake is reported, and that the rest of the configuration is in force.
fn mistakes(console: &mut Console) -> Result<()> {
    let boot = console.succeed("boot", ANSWER)?;
    let problems = boot["config_problems"].as_array().context("problems")?;
    ensure!(problems.len() == MISTAKES.len(), "{boot}");
    for (problem, begin) in problems.iter().zip(MISTAKES) {
        ensure!(
            problem.as_str().unwrap_or_default().starts_with(begin),
            "{begin}: {boot}"
        );
    }
    let list = console.succeed("td list", ANSWER)?;
    let names = list["tds"].as_array().into_iter().flatten();
    let names: Vec<_> = names.map(|td| &td["name"]).collect();
    ensure!(names == ["one", "two", "three"], "{list}");
    Ok(())
}

/// Puts a file. Returns the time that this takes.
fn put(console: &mut Console, name: &str, content: &[u8]) -> Result<Duration> {
    let start = Instant::now();
    console.succeed(&format!("file begin {name} {}", content.len()), ANSWER)?;
    let incomplete = console.ask(&format!("td define \"{}\"", definition("\\n")), ANSWER)?;
    ensure!(
        incomplete["code"] == "invalid-definition",
        "a file is used that is not complete: {incomplete}"
    );
    for (chunk, offset) in content.chunks(CHUNK).zip((0..).step_by(CHUNK)) {
        let data = STANDARD.encode(chunk);
        let answer = console.succeed(&format!("file put {name} {offset} {data}"), WORK)?;
        ensure!(answer["arrived_bytes"] == offset + chunk.len(), "{answer}");
    }
    let mut digest = String::new();
    for byte in Sha256::digest(content) {
        write!(digest, "{byte:02x}")?;
    }
    console.succeed(&format!("file end {name} {digest}"), ANSWER)?;
    Ok(start.elapsed())
}

/// The definition of the TD, with this between its lines.
fn definition(end: &str) -> String {
    [
        "name = 'linux'",
        "kernel = 'kernel'",
        "initrd = 'initrd'",
        "cmdline = 'console=ttyS0'",
        "memory = '256M'",
        "vcpus = 2",
    ]
    .join(end)
}

/// Defines Linux, runs it, and shuts it down by its power button.
fn run_linux(bench: &mut Bench, console: &mut Console) -> Result<()> {
    // As a person does: pasted, with a dot at the end.
    console.enter("json off", ANSWER)?;
    let text = format!("td define\r{}\r.\r", definition("\r"));
    console.guest().send(text.as_bytes())?;
    let defined = "linux is defined; \"td start linux\" starts it.";
    console.guest().expect(defined, ANSWER)?;
    console.guest().expect(crate::console::PROMPT, ANSWER)?;

    super::linux::start(bench, console, "linux", &[PROMPT])?;
    let refused = console.ask("td undefine linux", ANSWER)?;
    ensure!(refused["code"] == "wrong-state", "{refused}");
    let refused = console.ask("file drop kernel", ANSWER)?;
    ensure!(refused["code"] == "wrong-state", "{refused}");
    let set = console.succeed("td set linux cap 150", ANSWER)?;
    ensure!(set["applies_now"] == true, "{set}");
    let set = console.succeed("td set linux memory 512M", ANSWER)?;
    ensure!(set["applies_now"] == false, "{set}");
    let shown = console.succeed("td show linux", ANSWER)?;
    ensure!(shown["cap"] == 150, "{shown}");
    ensure!(
        shown["pending"] == Value::from(["memory"].to_vec()),
        "{shown}"
    );

    for columns in [80, 200] {
        top(console, columns)?;
    }

    let asked = console.succeed("td shutdown linux 200 --force", ANSWER)?;
    ensure!(asked["listens"] == true, "{asked}");
    let start = Instant::now();
    wait_for_state(console, "linux", "reclaimed", WORK)?;
    bench.note(format!(
        "from the button to the last page: {:.1} s",
        start.elapsed().as_secs_f32()
    ));
    let said = said(console, "linux", ANSWER)?;
    ensure!(said.contains("[it switched itself off]"), "{said}");
    console.succeed("td undefine linux", ANSWER)?;
    let gone = console.ask("td show linux", ANSWER)?;
    ensure!(gone["code"] == "no-such-td", "{gone}");
    Ok(())
}

/// Shows `top` on a screen of that width, until a key is pressed.
fn top(console: &mut Console, columns: usize) -> Result<()> {
    const LEAVE: &str = "Press a key to leave.";
    console.enter("json off", ANSWER)?;
    console.enter(&format!("screen 24 {columns}"), ANSWER)?;
    console.guest().send(b"top\r")?;
    let guest = console.guest();
    guest.expect(LEAVE, ANSWER)?;
    // The second view has rates.
    let view = guest.expect(LEAVE, ANSWER)?;
    guest.send(b" ")?;
    guest.expect(crate::console::PROMPT, ANSWER)?;
    console.enter("screen 0", ANSWER)?;
    ensure!(view.contains("linux"), "{view}");
    // Neither colours nor other sequences than the erasing of a line's end.
    let lines = view
        .lines()
        .map(|line| line.replace("\x1b[K", "").replace("\x1b[H", ""));
    let widest = lines.map(|line| line.trim_end().chars().count()).max();
    ensure!(
        widest <= Some(columns),
        "{widest:?} of {columns} columns: {view}"
    );
    Ok(())
}

/// The entries that the audit trail must have, in this order: the TD, the one who asked, the event.
const TRAIL: [(&str, &str, &str); 12] = [
    ("", "console", "file begin kernel "),
    ("", "console", "file end kernel "),
    ("", "console", "file end initrd "),
    ("linux", "console", "defined"),
    ("", "console", "td define ..."),
    ("linux", "console", "td set linux cap 150"),
    ("linux", "console", "td set linux memory 512M"),
    ("linux", "console", "td shutdown linux 200 --force"),
    ("linux", "host", "runnable -> terminating"),
    ("linux", "console", "td undefine linux"),
    ("", "console", "file drop kernel"),
    ("", "console", "file drop initrd"),
];

/// Checks that the audit trail has it all.
fn trail(console: &mut Console) -> Result<()> {
    let events = console.succeed("events", ANSWER)?;
    ensure!(events["lost"] == 0, "{events}");
    let all = events["events"].as_array().context("events")?;
    let mut left = all.iter();
    for (td, channel, what) in TRAIL {
        let is_it = |event: &&Value| {
            let text = |key: &str| event[key].as_str().unwrap_or_default();
            text("name") == td && text("channel") == channel && text("what").starts_with(what)
        };
        ensure!(
            left.any(|event| is_it(&event)),
            "{what} of {td:?}: {events}"
        );
    }
    Ok(())
}
