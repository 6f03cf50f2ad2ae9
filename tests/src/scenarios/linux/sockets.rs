//! Two TDs with Debian's kernel and a socket device each: they talk to each other, and one gets quotes that a program in
//! the other stands for.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::shell::{PROMPT, Shell};
use super::{Bench, COMMAND, config, sound, start};

/// The configurations: one asks, the other answers.
const ASKING: &str = "vsock = { cid = 3, peers = [4] }\n";
const ANSWERING: &str = "vsock = { cid = 4, peers = [3], services = [\"quote\"] }\n";
/// Bytes that go to the other TD and back.
const BYTES: u32 = 1_000_000;

fn td(name: &str, more: &str) -> String {
    format!(
        "[[td]]\nname = \"{name}\"\nkernel = \"vmlinuz\"\ninitrd = \"initrd\"\ncmdline = \"console=hvc0\"\n\
         memory = \"256M\"\nconsole = \"virtio\"\n{more}"
    )
}

/// Lets two TDs talk by sockets, and one of them make quotes for the other. The end of either is the end of its
/// connections alone.
pub fn sockets(bench: &mut Bench) -> Result<()> {
    let tds = [td("asking", ASKING), td("answering", ANSWERING)];
    let machine = bench.machine_with_linux(&config(&tds))?;
    let mut console = bench.console(&machine)?;
    for name in ["asking", "answering"] {
        start(bench, &mut console, name, &[PROMPT])?;
    }
    let mut shell = Shell::reopen(&mut console, "asking")?;
    shell.run("dmesg -n 1", COMMAND)?;
    refused(&mut shell)?;
    shell.leave()?;
    let mut shell = Shell::reopen(&mut console, "answering")?;
    shell.run("dmesg -n 1", COMMAND)?;
    shell.run(
        "vsock echo 5 3 >/tmp/echo 2>&1 & vsock quote >/tmp/quote 2>&1 &",
        COMMAND,
    )?;
    wait_for(
        &mut shell,
        "cat /tmp/echo /tmp/quote",
        &["echoes", "quotes"],
    )?;
    shell.leave()?;

    let mut shell = Shell::reopen(&mut console, "asking")?;
    talk(bench, &mut shell)?;
    let quote = ask_for_quote(&mut shell, "first", "Seamark's first question")?;
    ensure!(
        quote.contains("quote of Seamark's first question"),
        "{quote}"
    );
    let quote = ask_for_quote(&mut shell, "next", "Seamark's next question")?;
    ensure!(
        quote.contains("quote of Seamark's next question"),
        "{quote}"
    );
    // The other TD ends in the middle of a connection.
    shell.run(
        "sleep 1000 | vsock connect 4 5 >/dev/null & sleep 1",
        COMMAND,
    )?;
    shell.leave()?;
    console.succeed("td destroy answering", COMMAND)?;
    let mut shell = Shell::reopen(&mut console, "asking")?;
    wait_for(
        &mut shell,
        "vsock connect 4 5 </dev/null 2>&1",
        &["can't connect"],
    )?;
    let quote = ask_for_quote(&mut shell, "last", "the last one")?;
    ensure!(!quote.contains("quote of"), "{quote}");
    shell.leave()?;
    console.succeed("td destroy asking", COMMAND)?;
    sound(&mut console)
}

/// Tries to connect where nobody is.
fn refused(shell: &mut Shell<'_>) -> Result<()> {
    for to in ["2 99", "2 4050", "4 5", "77 5"] {
        let said = shell.run(&format!("vsock connect {to} </dev/null 2>&1"), COMMAND)?;
        ensure!(said.contains("can't connect"), "{to}: {said}");
    }
    let quote = ask_for_quote(shell, "none", "nobody")?;
    ensure!(!quote.contains("quote of"), "{quote}");
    Ok(())
}

/// Sends words and a file to the other TD, which sends them back.
fn talk(bench: &mut Bench, shell: &mut Shell<'_>) -> Result<()> {
    let said = shell.run("echo hello | vsock connect 4 5", COMMAND)?;
    ensure!(said.trim() == "hello", "{said}");
    shell.run(&format!("head -c {BYTES} /dev/urandom >/tmp/sent"), COMMAND)?;
    let begin = Instant::now();
    shell.run("vsock connect 4 5 </tmp/sent >/tmp/got", COMMAND)?;
    let took = begin.elapsed().as_secs_f64();
    bench.note(format!(
        "{BYTES} bytes to the other TD and back in {took:.1} s"
    ));
    let same = shell.run("cmp /tmp/sent /tmp/got && echo the same", COMMAND)?;
    ensure!(same.trim() == "the same", "{same}");
    Ok(())
}

/// Asks for a quote with this text as the report's data. Returns the quote, or what Linux says.
fn ask_for_quote(shell: &mut Shell<'_>, name: &str, text: &str) -> Result<String> {
    let entry = format!("/sys/kernel/config/tsm/report/{name}");
    let data = format!(
        "(echo -n \"{text}\"; head -c {} /dev/zero)",
        64 - text.len()
    );
    shell.run(
        &format!("mkdir {entry}; {data} >/tmp/data; cat /tmp/data >{entry}/inblob"),
        COMMAND,
    )?;
    shell.run(&format!("tr '\\000' '.' <{entry}/outblob 2>&1"), COMMAND)
}

/// Repeats a command until its output has all these words.
fn wait_for(shell: &mut Shell<'_>, command: &str, words: &[&str]) -> Result<()> {
    let deadline = Instant::now() + COMMAND;
    loop {
        let said = shell.run(command, COMMAND)?;
        if words.iter().all(|word| said.contains(word)) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{command}: {said}");
    }
}
