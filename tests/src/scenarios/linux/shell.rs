//! The shell in a TD, through the hypervisor's console.

use std::time::Duration;

use anyhow::Result;

use crate::console::Console;

/// What the shell says when it waits.
const PROMPT: &str = "td# ";
/// Leads from a TD's console back to the hypervisor's.
const BACK: &[u8] = b"\x1d";
/// For the console itself.
const SWITCH: Duration = Duration::from_secs(30);

/// A TD's console, while it is watched.
pub struct Shell<'a> {
    console: &'a mut Console,
}

impl<'a> Shell<'a> {
    /// Watches a TD's console, from what it wrote lately on.
    pub fn open(console: &'a mut Console, name: &str) -> Result<Self> {
        console.enter("json off", SWITCH)?;
        let command = format!("td console {name}\r");
        console.guest().send(command.as_bytes())?;
        console.guest().expect(command.trim_end(), SWITCH)?;
        Ok(Self { console })
    }

    /// Waits until the TD has said something.
    pub fn wait_for(&mut self, what: &str, limit: Duration) -> Result<String> {
        self.console.guest().expect(what, limit)
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

    /// Types a command at the prompt, and waits for the next one. What was said between.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<String> {
        self.type_line(command)?;
        // The line itself comes back first.
        self.wait_for("\n", limit)?;
        let said = self.wait_for(PROMPT, limit)?;
        Ok(said.trim_end_matches(PROMPT).to_owned())
    }

    /// Back to the hypervisor's console.
    pub fn leave(self) -> Result<()> {
        self.console.guest().send(BACK)?;
        self.console
            .guest()
            .expect(crate::console::PROMPT, SWITCH)
            .map(drop)
    }
}
