//! `cargo xtask password`: makes the value of `host.console_lock`.

use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Read, Write};

use anyhow::{Context, Result, bail, ensure};
use config::lock::PasswordHash;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

/// The work that checking a password costs.
#[derive(clap::Args)]
pub struct Options {
    /// Memory in KiB; the hypervisor sets it aside
    #[arg(long, value_name = "KIB", default_value_t = *config::lock::MEMORY.end())]
    memory: u32,
    /// Passes over the memory
    #[arg(long, value_name = "N", default_value_t = 8)]
    passes: u32,
}

/// Reads a password, twice from a terminal and once from anything else, and prints the line for `seamark.toml`.
pub fn run(options: &Options) -> Result<()> {
    let password = if io::stdin().is_terminal() {
        let first = ask("Password: ")?;
        ensure!(first == ask("Again: ")?, "the two passwords differ");
        first
    } else {
        line()?
    };
    let mut salt = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut salt))
        .context("there is no randomness for the salt (/dev/urandom)")?;
    println!("{}", setting(&password, &salt, options)?);
    Ok(())
}

/// Returns the line for `seamark.toml`.
fn setting(password: &str, salt: &[u8], options: &Options) -> Result<String> {
    if password.is_empty() || !password.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        bail!(
            "a password consists of printable ASCII characters, which every serial terminal can type"
        );
    }
    ensure!(
        password.len() <= 1024,
        "a password has at most 1024 characters"
    );
    let hash = PasswordHash::new(password.as_bytes(), salt, options.memory, options.passes);
    let hash = hash.map_err(anyhow::Error::msg)?;
    Ok(format!("console_lock = \"{hash}\""))
}

fn ask(prompt: &str) -> Result<String> {
    eprint!("{prompt}");
    io::stderr().flush()?;
    let stdin = io::stdin();
    let before = tcgetattr(&stdin)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &silent)?;
    let password = line();
    tcsetattr(&stdin, OptionalActions::Now, &before)?;
    eprintln!();
    password
}

fn line() -> Result<String> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Options, setting};

    const OPTIONS: Options = Options {
        memory: 8,
        passes: 1,
    };

    #[test]
    fn the_line_is_one_that_the_hypervisor_reads() {
        let line = setting("correct horse", b"saltsaltsaltsalt", &OPTIONS).unwrap();
        let config = config::parse(format!("[host]\n{line}\n").as_bytes()).unwrap();
        let hash = config.host.console_lock.unwrap();
        assert_eq!(format!("console_lock = \"{hash}\""), line);
    }

    #[test]
    fn a_password_that_no_terminal_types_and_too_much_work_are_refused() {
        for wrong in ["", "caf\u{e9}", "a\tb"] {
            assert!(setting(wrong, b"saltsalt", &OPTIONS).is_err(), "{wrong:?}");
        }
        let greedy = Options {
            memory: 1 << 20,
            ..OPTIONS
        };
        assert!(setting("x", b"saltsalt", &greedy).is_err());
    }
}
