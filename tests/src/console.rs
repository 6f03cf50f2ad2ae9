//! A driver of the hypervisor's console, at the other end of the serial line.
//!
//! It works as a person does, with line and prompt, or as a script does after `json on`: one line in, one JSON object
//! out.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::qemu::Guest;

/// The prompt, which the console shows at the start of a line when it is ready for a command.
pub const PROMPT: &str = "seamark> ";

/// The end of the line that precedes a TD's output.
const HEAD_END: &str = "detaches.\n";

/// Time limit of an answer to `json on` and `json off`.
const SWITCH: Duration = Duration::from_secs(60);

/// A console that has shown its prompt.
pub struct Console {
    guest: Guest,
    boot_log: String,
    json: bool,
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The lines between the command and the next prompt, or the JSON object.
    pub text: String,
}

impl Console {
    /// Waits for the prompt.
    ///
    /// # Errors
    /// The prompt does not come within `limit`, or the machine lacks the SEAM that it was to have.
    pub fn wait(mut guest: Guest, limit: Duration) -> Result<Self> {
        let boot_log = guest.expect(PROMPT, limit)?;
        Ok(Self {
            guest,
            boot_log,
            json: false,
        })
    }

    /// Returns the output before the first prompt.
    pub fn boot_log(&self) -> &str {
        &self.boot_log
    }

    /// Returns the machine behind the console.
    pub fn guest(&mut self) -> &mut Guest {
        &mut self.guest
    }

    /// Enters a command and waits for the end of its reply.
    ///
    /// # Errors
    /// The reply does not end within `limit`.
    pub fn enter(&mut self, command: &str, limit: Duration) -> Result<Reply> {
        let words: Vec<_> = command.split_whitespace().collect();
        if words.is_empty() {
            bail!("an empty line has no reply");
        }
        let reply = match (self.json, &*words) {
            (true, _) | (false, ["json", "on"]) => self.exchange(command, limit),
            (false, _) => self.converse(command, limit),
        };
        let reply = reply.with_context(|| format!("after the command `{command}`"))?;
        match &*words {
            ["json", "on"] => self.json = true,
            ["json", "off"] => {
                if self.json {
                    self.guest.expect(PROMPT, limit)?;
                }
                self.json = false;
            }
            _ => {}
        }
        Ok(reply)
    }

    /// Enters a command as a script. Returns the object that answers it, whether the command succeeded or not.
    ///
    /// # Errors
    /// No answer comes within `limit`.
    pub fn ask(&mut self, command: &str, limit: Duration) -> Result<Value> {
        if !self.json {
            self.enter("json on", SWITCH)?;
        }
        let reply = self.enter(command, limit)?;
        serde_json::from_str(&reply.text)
            .with_context(|| format!("the reply to `{command}`: {}", reply.text))
    }

    /// Enters a command that must succeed. Returns the object that answers it.
    ///
    /// # Errors
    /// The command fails, or no answer comes within `limit`.
    pub fn succeed(&mut self, command: &str, limit: Duration) -> Result<Value> {
        let answer = self.ask(command, limit)?;
        ensure!(
            answer["ok"] == Value::Bool(true),
            "`{command}` failed: {answer}"
        );
        Ok(answer)
    }

    /// Watches the console of a TD until it has printed `text`, in the output that is kept or later. Returns false if
    /// there is no such TD.
    ///
    /// # Errors
    /// The text does not come within `limit`; the error shows the output.
    pub fn expect_of_td(&mut self, td: &str, text: &str, limit: Duration) -> Result<bool> {
        let json = self.json;
        if json {
            self.enter("json off", SWITCH)?;
        }
        let command = format!("td console {td}");
        self.guest.send(format!("{command}\r").as_bytes())?;
        self.guest.expect(&format!("{command}\n"), limit)?;
        let (answer, _) = self.guest.expect_any(&[HEAD_END, PROMPT], limit)?;
        let is_there = answer == 0;
        if is_there {
            let context = || format!("TD {td} has not said `{text}`");
            self.guest.expect(text, limit).with_context(context)?;
            self.guest.send(b"\x1d")?;
            self.guest.expect(PROMPT, SWITCH)?;
        }
        if json {
            self.enter("json on", SWITCH)?;
        }
        Ok(is_there)
    }

    /// Waits for the prompt of a machine that was reset.
    ///
    /// # Errors
    /// The prompt does not come within `limit`.
    pub fn again(&mut self, limit: Duration) -> Result<()> {
        self.boot_log = self.guest.expect(PROMPT, limit)?;
        self.json = false;
        Ok(())
    }

    /// Discards a partial line and continues as a script, however long the console still processes earlier input.
    ///
    /// # Errors
    /// The console does not answer within `limit`.
    pub fn resume_after_noise(&mut self, limit: Duration) -> Result<()> {
        self.guest.send(b"\r\x03\rjson on\r")?;
        self.guest.expect("{\"cmd\":\"json\",\"ok\":true", limit)?;
        self.guest.expect("\n", limit)?;
        self.json = true;
        Ok(())
    }

    fn converse(&mut self, command: &str, limit: Duration) -> Result<Reply> {
        self.guest.send(command.as_bytes())?;
        self.guest.send(b"\r")?;
        // The hypervisor's own messages are followed by a prompt, too; but after the echo the console only runs the
        // command.
        self.guest.expect(&format!("{command}\n"), limit)?;
        let said = self.guest.expect(PROMPT, limit)?;
        let text = said.strip_suffix(PROMPT).unwrap_or(&said);
        Ok(Reply {
            text: text.trim().to_owned(),
        })
    }

    fn exchange(&mut self, command: &str, limit: Duration) -> Result<Reply> {
        self.guest.send(command.as_bytes())?;
        self.guest.send(b"\r")?;
        self.guest.expect("{", limit)?;
        let rest = self.guest.expect("\n", limit)?;
        Ok(Reply {
            text: format!("{{{}", rest.trim_end()),
        })
    }
}

impl Reply {
    /// Returns true if the command succeeded. A failed one answers with a line that starts with `error:`, or with an
    /// object that has `"ok":false`.
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
