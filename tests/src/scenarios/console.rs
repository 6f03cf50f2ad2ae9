//! Scenarios about the console itself: random input, and its lock.

use std::env;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use config::lock::PasswordHash;
use serde_json::Value;

use super::{Bench, Scenario};
use crate::console::Console;
use crate::media::Media;

pub const ALL: &[Scenario] = &[
    Scenario::new("console-fuzz", fuzz),
    Scenario::new("console-lock", lock),
];

/// Number of random bytes that the console gets.
const FUZZ_BYTES: usize = 100_000;

/// An environment variable that repeats a run.
const SEED: &str = "SEAMARK_FUZZ_SEED";

fn fuzz(bench: &mut Bench) -> Result<()> {
    let seed = seed()?;
    bench.note(format!("{SEED}={seed}"));
    let machine = bench.machine()?;
    let mut console = bench.console(&machine)?;

    let mut random = fastrand::Rng::with_seed(seed);
    let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
        .take(FUZZ_BYTES)
        .collect();
    let limit = Duration::from_secs(120);
    let context = || format!("repeat it with {SEED}={seed}");
    console.guest().send(&bytes).with_context(context)?;
    console.resume_after_noise(limit).with_context(context)?;
    console.succeed("version", limit).with_context(context)?;
    Ok(())
}

/// Time limit of an answer.
const ANSWER: Duration = Duration::from_secs(120);
/// The longest delay after wrong passwords, in microseconds.
const LONGEST_US: u64 = 30_000_000;

/// Tries twenty wrong passwords on a console with a lock. Nobody gets in, a TD runs on, the owner gets in after the
/// delay, and no password is anywhere.
fn lock(bench: &mut Bench) -> Result<()> {
    const RIGHT: &str = "Correct-Horse";
    const WRONG: &str = "Battery-Staple";
    let hash = PasswordHash::new(RIGHT.as_bytes(), b"saltsaltsaltsalt", 4096, 1);
    let hash = hash.map_err(anyhow::Error::msg)?;
    let media = Media::of_program(&bench.programs().seamark())?
        .with_config_text(&format!(
            "[host]\nconsole_lock = \"{hash}\"\n[[file]]\nname = \"spin\"\npath = \"spin.fd\"\n[[td]]\nname = \
             \"spin\"\nimage = \"spin\"\nmemory = \"16M\"\nvcpus = 1\nautostart = true\n"
        ))
        .with_file("spin.fd", &bench.programs().guest("spin"))?;
    let machine = bench.machine_with(&media)?;
    let mut console = bench.console(&machine)?;
    let ran = |console: &mut Console| -> Result<u64> {
        let shown = console.succeed("td show spin", ANSWER)?;
        shown["cpus"][0]["run_us"]
            .as_u64()
            .context("it is scheduled")
    };
    let mut last = ran(&mut console)?;
    let (mut read, mut wait_us) = (0, 0);
    for guess in 0..20 {
        let reply = unlock(&mut console, &format!("{WRONG}-{guess}"))?;
        ensure!(reply["ok"] == false, "guess {guess}: {reply}");
        read += u32::from(reply["code"] == "wrong-password");
        let refused = console.ask("td terminate spin", ANSWER)?;
        ensure!(refused["code"] == "locked", "{refused}");
        let now = ran(&mut console)?;
        ensure!(now > last, "the TD stands still at {now} us");
        last = now;
    }
    ensure!(read >= 4, "{read} passwords were read");
    // The owner comes, and tries until he is let in.
    let begun = uptime(&mut console)?;
    loop {
        let reply = unlock(&mut console, RIGHT)?;
        if reply["state"] == "open" {
            break;
        }
        ensure!(reply["code"] == "too-early", "{reply}");
        wait_us = uptime(&mut console)? - begun;
        ensure!(wait_us <= LONGEST_US, "the owner waits for {wait_us} us");
    }
    bench.note(format!(
        "{read} of 20 read; the owner waited for {wait_us} us"
    ));
    console.succeed("td terminate spin", ANSWER)?;
    let events = console.succeed("events", ANSWER)?;
    let what = |event: &Value| event["what"].as_str().unwrap_or_default().to_owned();
    let all: Vec<String> = events["events"]
        .as_array()
        .context("events")?
        .iter()
        .map(what)
        .collect();
    for expected in [
        "unlock: wrong-password",
        "unlock",
        "td terminate spin: locked",
        "runnable -> terminating",
    ] {
        ensure!(
            all.iter().any(|what| what == expected),
            "{expected}: {all:?}"
        );
    }
    let by = |event: &&Value| event["what"] == "runnable -> terminating";
    let ended = events["events"]
        .as_array()
        .and_then(|all| all.iter().find(by));
    ensure!(
        ended.is_some_and(|event| event["channel"] == "console"),
        "{ended:?}"
    );
    for command in ["dmesg", "history"] {
        let shown = console.enter(command, ANSWER)?.text;
        ensure!(!shown.contains(RIGHT) && !shown.contains(WRONG), "{shown}");
    }
    let transcript = console.guest().transcript();
    ensure!(
        !transcript.contains(RIGHT) && !transcript.contains(WRONG),
        "a password was shown"
    );
    Ok(())
}

/// Gives the console a password. Returns the answer to it.
fn unlock(console: &mut Console, password: &str) -> Result<Value> {
    let asks = console.succeed("unlock", ANSWER)?;
    ensure!(asks["state"] == "asks", "{asks}");
    console.ask(password, ANSWER)
}

fn uptime(console: &mut Console) -> Result<u64> {
    let host = console.succeed("host", ANSWER)?;
    host["uptime_us"].as_u64().context("uptime_us")
}

fn seed() -> Result<u64> {
    match env::var(SEED) {
        Ok(text) => text.parse().with_context(|| format!("{SEED} is no number")),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            Ok(now.as_secs() ^ u64::from(now.subsec_nanos()) << 32)
        }
    }
}
