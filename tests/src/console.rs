//! The hypervisor's console, from the other end of the serial line.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::qemu::Guest;

/// What the console shows when it takes a command. It stands at the start of a line.
pub const PROMPT: &str = "seamark> ";

/// What follows the Enter that ends a command, when its reply is over.
const NEXT_PROMPT: &str = "\nseamark> ";

/// A console that has shown its prompt.
pub struct Console {
    guest: Guest,
    boot_log: String,
}

/// What a command answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The lines between the command and the next prompt.
    pub text: String,
}

impl Console {
    /// Waits until the prompt is there.
    ///
    /// # Errors
    /// When it does not come within `limit`.
    pub fn wait(mut guest: Guest, limit: Duration) -> Result<Self> {
        let boot_log = guest.expect(PROMPT, limit)?;
        Ok(Self { guest, boot_log })
    }

    /// Everything said before the first prompt.
    pub fn boot_log(&self) -> &str {
        &self.boot_log
    }

    /// The machine behind it.
    pub fn guest(&mut self) -> &mut Guest {
        &mut self.guest
    }

    /// Enters a command and waits for the prompt after it.
    ///
    /// # Errors
    /// When the prompt does not come back within `limit`.
    pub fn enter(&mut self, command: &str, limit: Duration) -> Result<Reply> {
        let context = || format!("after the command `{command}`");
        self.guest.send(command.as_bytes()).with_context(context)?;
        self.guest.send(b"\r").with_context(context)?;
        let said = self.guest.expect(NEXT_PROMPT, limit);
        Ok(Reply::between(&said.with_context(context)?))
    }

    /// Enters a command that has to succeed, and gives its reply.
    ///
    /// # Errors
    /// When it fails, or the prompt does not come back within `limit`.
    pub fn succeed(&mut self, command: &str, limit: Duration) -> Result<String> {
        let reply = self.enter(command, limit)?;
        ensure!(reply.succeeded(), "`{command}` failed:\n{}", reply.text);
        Ok(reply.text)
    }

    /// Ends the conversation and gives the machine back.
    pub fn into_guest(self) -> Guest {
        self.guest
    }
}

impl Reply {
    /// Cuts the echo of the command off the front and the prompt off the end.
    fn between(said: &str) -> Self {
        let said = said.strip_suffix(PROMPT).unwrap_or(said);
        let text = said.split_once('\n').map_or("", |(_echo, text)| text);
        Self {
            text: text.trim_end().to_owned(),
        }
    }

    /// Whether the command succeeded: a failed one says so in a line that starts with `error:`, or in an object with
    /// `"ok":false` after `json on`.
    pub fn succeeded(&self) -> bool {
        !self.text.lines().map(str::trim_start).any(|line| {
            line.starts_with("error:")
                || serde_json::from_str::<Value>(line)
                    .is_ok_and(|object| object.get("ok") == Some(&Value::Bool(false)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_is_what_stands_between_echo_and_prompt() {
        let reply = Reply::between("version\nSeamark 0.1.0\nbuilt today\n\nseamark> ");
        assert_eq!(reply.text, "Seamark 0.1.0\nbuilt today");
    }

    #[test]
    fn a_command_may_say_nothing() {
        assert_eq!(Reply::between("json off\nseamark> ").text, "");
    }

    #[test]
    fn failures_are_recognised_in_both_modes() {
        let reply = |text: &str| Reply {
            text: text.to_owned(),
        };
        assert!(reply("3 CPUs\nno error: 0").succeeded());
        assert!(reply("{\"ok\":true,\"cpus\":[]}").succeeded());
        assert!(!reply("some\nerror: no such command").succeeded());
        assert!(!reply("{\"ok\":false,\"error\":\"no such command\"}").succeeded());
    }
}
