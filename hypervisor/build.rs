//! Tells the program what it is built from: the commit and the compiler, where they are known.

use std::{env, process::Command};

fn main() {
    let compiler = env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    tell("SEAMARK_COMPILER", output(&compiler, &["--version"]));
    tell(
        "SEAMARK_COMMIT",
        output("git", &["rev-parse", "--short=12", "HEAD"]),
    );
    // The log of HEAD grows with every commit and checkout.
    if let Some(log) = output("git", &["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
}

fn tell(name: &str, value: Option<String>) {
    if let Some(value) = value {
        println!("cargo::rustc-env={name}={value}");
    }
}

/// The first line that a program prints; `None` when it can't be run or fails.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().next()?;
    output.status.success().then(|| line.to_owned())
}
