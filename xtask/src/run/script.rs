//! The script of `--exec`: console commands, and two commands of its own that wait.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use seamark_tests::console::Console;

/// One step of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// A command of the console.
    Command(String),
    /// `wait SECONDS`.
    Wait(Duration),
    /// `expect TD TEXT`.
    Expect { td: String, text: String },
}

/// The steps of a script, each with its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script(Vec<(String, Step)>);

impl Script {
    /// Parses commands that are separated by semicolons and take `limit` together.
    ///
    /// # Errors
    /// The command that is malformed or would never end, with what to write instead.
    pub fn parse(text: &str, limit: Duration) -> Result<Self> {
        let mut json = false;
        let mut waits = Duration::ZERO;
        let mut steps = Vec::new();
        for command in text.split(';').map(str::trim).filter(|c| !c.is_empty()) {
            let step = parse(command).with_context(|| format!("--exec: `{command}`"))?;
            match &step {
                Step::Wait(time) => waits += *time,
                Step::Command(command) => {
                    let words: Vec<_> = command.split_whitespace().collect();
                    match *words {
                        ["json", "on"] => json = true,
                        ["json", "off"] => json = false,
                        ["td", "console", td, ..] if !json => bail!(
                            "--exec: `{command}` never ends: `expect {td} TEXT` shows what the TD says until it has said TEXT"
                        ),
                        _ => {}
                    }
                }
                Step::Expect { .. } => {}
            }
            steps.push((command.to_owned(), step));
        }
        ensure!(!steps.is_empty(), "--exec: there is no command in {text:?}");
        ensure!(
            waits < limit,
            "--exec waits for {} s, and the whole run may take {} s: give it a longer --timeout",
            waits.as_secs(),
            limit.as_secs()
        );
        Ok(Self(steps))
    }

    /// Runs the steps one after the other. Returns those that failed.
    ///
    /// # Errors
    /// A step does not end before `deadline`, or the machine has failed.
    pub fn run(&self, console: &mut Console, deadline: Instant) -> Result<Vec<&str>> {
        let mut failed = Vec::new();
        for (text, step) in &self.0 {
            let left = deadline.saturating_duration_since(Instant::now());
            let succeeded = match step {
                Step::Command(command) => console.enter(command, left)?.succeeded(),
                Step::Wait(time) => {
                    ensure!(
                        *time <= left,
                        "`{text}`: only {} s are left of --timeout",
                        left.as_secs()
                    );
                    console.guest().pause(*time)?;
                    true
                }
                Step::Expect { td, text } => console.expect_of_td(td, text, left)?,
            };
            if !succeeded {
                failed.push(&**text);
            }
        }
        Ok(failed)
    }
}

fn parse(command: &str) -> Result<Step> {
    let (name, rest) = match command.split_once(char::is_whitespace) {
        Some((name, rest)) => (name, rest.trim()),
        None => (command, ""),
    };
    Ok(match name {
        "wait" => {
            let seconds: f64 = rest.parse().unwrap_or(-1.0);
            let time = Duration::try_from_secs_f64(seconds);
            Step::Wait(time.context("write `wait SECONDS`, such as `wait 5`")?)
        }
        "expect" => {
            let (td, text) = rest
                .split_once(char::is_whitespace)
                .context("write `expect TD TEXT`, such as `expect hello MRTD`")?;
            Step::Expect {
                td: td.to_owned(),
                text: text.trim().to_owned(),
            }
        }
        _ => Step::Command(command.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(120);

    fn refusal(text: &str) -> String {
        format!("{:#}", Script::parse(text, LIMIT).unwrap_err())
    }

    #[test]
    fn commands_and_waits_are_told_apart() {
        let script = Script::parse("boot ; wait 2.5;expect linux  Please press Enter;", LIMIT);
        let steps: Vec<_> = script
            .unwrap()
            .0
            .into_iter()
            .map(|(_, step)| step)
            .collect();
        assert_eq!(
            steps,
            [
                Step::Command("boot".to_owned()),
                Step::Wait(Duration::from_millis(2500)),
                Step::Expect {
                    td: "linux".to_owned(),
                    text: "Please press Enter".to_owned()
                },
            ]
        );
    }

    #[test]
    fn what_can_not_be_understood_is_refused_with_what_to_write() {
        for (text, words) in [
            ("wait", "write `wait SECONDS`"),
            ("wait -1", "write `wait SECONDS`"),
            ("wait soon", "write `wait SECONDS`"),
            ("expect hello", "write `expect TD TEXT`"),
            ("boot; expect", "write `expect TD TEXT`"),
            (" ; ", "there is no command"),
            ("wait 60; wait 60", "give it a longer --timeout"),
            ("wait 1e30", "write `wait SECONDS`"),
        ] {
            assert!(refusal(text).contains(words), "{}", refusal(text));
        }
    }

    #[test]
    fn a_console_that_would_never_end_is_refused_where_it_would_not() {
        assert!(refusal("td console hello").contains("`expect hello TEXT`"));
        assert!(refusal("json on; json off; td console hello").contains("expect"));
        assert!(Script::parse("json on; td console hello", LIMIT).is_ok());
    }
}
