//! The shell in a TD, accessed through the hypervisor's console.

use std::time::Duration;

use anyhow::{Result, bail};

use super::STALE;
use crate::console::Console;
use crate::scenarios::stage::{NOTHING, output};

/// The shell's prompt.
pub const PROMPT: &str = "td# ";
/// The key that leaves a TD's console.
const BACK: &[u8] = b"\x1d";
/// The host's line in the console of a TD that has died.
const DEAD: &str = "[triple fault on vCPU";
/// Time limit of the console's own commands.
const SWITCH: Duration = Duration::from_secs(120);

/// A TD's console, while it is watched.
pub struct Shell<'a> {
    console: &'a mut Console,
}

impl<'a> Shell<'a> {
    /// Watches a TD's console, from the beginning of its present life, as far as that is kept.
    pub fn open(console: &'a mut Console, name: &str) -> Result<Self> {
        let began = output(console, name, NOTHING, SWITCH)?.began;
        Self::open_from(console, name, began)
    }

    /// Watches the console of a TD that waits at its prompt, without its earlier output.
    pub fn reopen(console: &'a mut Console, name: &str) -> Result<Self> {
        let next = output(console, name, NOTHING, SWITCH)?.next;
        let mut shell = Self::open_from(console, name, next)?;
        shell.type_line("")?;
        shell.wait_for_prompt(SWITCH)?;
        Ok(shell)
    }

    fn open_from(console: &'a mut Console, name: &str, from: u64) -> Result<Self> {
        console.enter("json off", SWITCH)?;
        let command = format!("td console {name} {from}");
        console.guest().send(command.as_bytes())?;
        console.guest().send(b"\r")?;
        console.guest().expect(&command, SWITCH)?;
        Ok(Self { console })
    }

    /// Waits for output of the TD while it boots. Returns `false` if QEMU executed code that had been patched.
    pub fn wait_while_booting(&mut self, what: &str, limit: Duration) -> Result<bool> {
        let patterns = [what, STALE, DEAD];
        match self.console.guest().expect_any(&patterns, limit)? {
            (2, said) => bail!("the TD has died:\n{said}"),
            (index, _) => Ok(index == 0),
        }
    }

    /// Waits for output of the TD. Returns it with everything that the TD said before.
    ///
    /// # Errors
    /// If the time is over, or the TD has died.
    pub fn wait_for(&mut self, what: &str, limit: Duration) -> Result<String> {
        match self.console.guest().expect_any(&[what, DEAD], limit)? {
            (0, said) => Ok(said),
            (_, said) => bail!("the TD has died:\n{said}"),
        }
    }

    /// Waits until the shell takes a command.
    pub fn wait_for_prompt(&mut self, limit: Duration) -> Result<()> {
        self.wait_for(PROMPT, limit).map(drop)
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        self.console.guest().send(line.as_bytes())?;
        self.console.guest().send(b"\r")
    }

    /// Types a command at the prompt, and waits for the next prompt. Returns the output in between.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<String> {
        self.type_line(command)?;
        // The echo of the line comes first.
        self.wait_for("\n", limit)?;
        let said = self.wait_for(PROMPT, limit)?;
        Ok(said.trim_end_matches(PROMPT).to_owned())
    }

    /// Returns to the hypervisor's console.
    pub fn leave(self) -> Result<()> {
        self.console.guest().send(BACK)?;
        self.console
            .guest()
            .expect(crate::console::PROMPT, SWITCH)
            .map(drop)
    }
}
