//! Cargo as part of a longer build: one line says what is built, and nothing is printed if there is nothing to do.

use std::io::{BufRead, BufReader, IsTerminal};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

/// Runs a build of `what`. Prints a line before cargo's own output if cargo compiles something.
///
/// # Errors
/// Cargo can't be started, or fails.
pub fn build(mut cargo: Command, what: &str) -> Result<()> {
    if std::io::stderr().is_terminal() {
        cargo.env("CARGO_TERM_COLOR", "always");
    }
    let started = Instant::now();
    let mut child = cargo
        .stderr(Stdio::piped())
        .spawn()
        .context("can't start cargo")?;
    let messages = child.stderr.take().context("cargo's messages are a pipe")?;
    let mut has_said = false;
    for line in BufReader::new(messages).lines() {
        let line = line?;
        if is_idle(&line) {
            continue;
        }
        if !has_said {
            eprintln!("Building {what}");
            has_said = true;
        }
        eprintln!("{line}");
    }
    let status = child.wait()?;
    ensure!(status.success(), "cargo could not build {what}");
    if has_said {
        eprintln!("Built {what} in {} s", started.elapsed().as_secs());
    }
    Ok(())
}

/// Returns true if a line of cargo's is noise: each of several builds reports that it has finished.
fn is_idle(line: &str) -> bool {
    let plain = anstream::adapter::strip_str(line).to_string();
    plain.trim().is_empty() || plain.trim_start().starts_with("Finished `")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_there_was_nothing_to_do_is_not_said() {
        assert!(is_idle(
            "    Finished `efi` profile [optimized + debuginfo] target(s) in 0.18s"
        ));
        assert!(is_idle(
            "\x1b[1m\x1b[92m    Finished\x1b[0m `efi` profile [optimized] target(s) in 0.18s"
        ));
        assert!(!is_idle("   Compiling seam v0.1.0 (/seamark/seam)"));
        assert!(!is_idle("error[E0425]: cannot find value `Finished`"));
    }

    #[test]
    fn a_build_that_fails_is_named() {
        let mut cargo = Command::new("sh");
        cargo.args(["-c", "exit 3"]);
        let error = build(cargo, "nothing").unwrap_err();
        assert_eq!(error.to_string(), "cargo could not build nothing");
    }
}
