//! Deaths of QEMU by a signal, and the evidence that QEMU itself is to blame.
//!
//! No software inside the machine may kill its emulator, so each such death is a defect of QEMU. A defect of the stub
//! can provoke one too, and would be hidden. A death is therefore excused only if one of two things shows that the
//! guest's instructions caused it:
//!
//! - QEMU's message is one of those that TCG 7.2 is known to print for such an instruction ([`known`]).
//! - QEMU dies without a message by SIGSEGV or by SIGABRT (TCG 7.2 has `abort()` in three of its instructions), and dies
//!   so again when the life with the same seed is repeated on a new machine, as the only TD. All 13 silent deaths in
//!   100,000 steps did so the first time.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{CHAOS, Lives, Tally};
use crate::console::Console;
use crate::scenarios::Bench;
use crate::scenarios::stage::{LIFE, Named, machine};

/// SIGABRT and SIGSEGV.
const SILENT: [i32; 2] = [6, 11];
/// Number of times that a life is repeated: what a page contains at its start may differ.
const REPEATS: u32 = 3;
/// Time limit of a repeated life.
const REPEAT: Duration = Duration::from_secs(600);

/// A death of QEMU by a signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    signal: i32,
    /// The first line of QEMU's messages that says something; empty if there is none.
    message: String,
}

impl Death {
    /// Returns how QEMU has ended, if a signal has ended it. A machine that powers off or resets itself is no death.
    pub fn of(console: &mut Console) -> Result<Option<Self>> {
        const SOON: Duration = Duration::from_secs(2);
        let Ok(status) = console.guest().wait_for_end(SOON) else {
            return Ok(None);
        };
        let Some(signal) = status.signal() else {
            return Ok(None);
        };
        let log = console.guest().directory().join("qemu.log");
        let log = fs::read_to_string(log).context("can't read QEMU's messages")?;
        Ok(Some(Self {
            signal,
            message: message(&log).to_owned(),
        }))
    }

    /// Returns the evidence that QEMU died of the instructions of the life that `tally` describes; `None` if there is
    /// none.
    pub fn evidence(&self, bench: &mut Bench, tally: &Tally) -> Result<Option<String>> {
        if let Some(cause) = known(&self.message) {
            return Ok(Some(format!("signal {}, {cause}", self.signal)));
        }
        if !SILENT.contains(&self.signal) || !self.message.is_empty() {
            return Ok(None);
        }
        for times in 1..=REPEATS {
            if repeat(bench, tally)?.as_ref() == Some(self) {
                let signal = self.signal;
                return Ok(Some(format!("signal {signal}, repetition {times} too")));
            }
        }
        Ok(None)
    }
}

/// Returns the first line of QEMU's messages that says something: GLib's assertions begin with a line of `**`.
fn message(log: &str) -> &str {
    log.lines().find(|&line| line != "**").unwrap_or_default()
}

/// Returns the cause of a message that TCG 7.2 prints before it ends itself because of a guest's instruction.
fn known(message: &str) -> Option<&'static str> {
    let is_assertion =
        message.contains("Assertion `") || message.ends_with(": code should not be reached");
    let gives_up = message.ends_with(": tcg fatal error");
    if message.contains("/target/i386/tcg/") && (is_assertion || gives_up) {
        Some("its decoder asserts on an encoding")
    } else if message.contains("../../tcg/") && (is_assertion || gives_up) {
        Some("its code generator gives up")
    } else if matches!(
        message,
        "qemu: fatal: invalid tss" | "qemu: fatal: invalid tss type"
    ) {
        Some("it ends at an invalid TSS instead of #TS")
    } else {
        None
    }
}

/// Repeats the life of `tally` on a new machine, as the only TD. Returns how QEMU died; `None` if it survived.
fn repeat(bench: &mut Bench, tally: &Tally) -> Result<Option<Death>> {
    let seed = tally.seed_number().context("the life has no seed")?;
    let td = Named::new(CHAOS, "16M", 1).wishing(&[seed]);
    let machine = machine(bench, &[td])?;
    let mut console = bench.console(&machine)?;
    console.succeed(&format!("td start {CHAOS}"), LIFE)?;
    let (mut lives, mut repeated) = (Lives::default(), Tally::default());
    let begin = Instant::now();
    while begin.elapsed() < REPEAT && !repeated.is_over() {
        if lives.look(&mut console, &mut repeated).is_err() {
            return Death::of(&mut console);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_about_instructions_are_known() {
        for message in [
            "qemu-system-x86_64: ../../target/i386/tcg/emit.c.inc:1504: gen_pinsr: Assertion `vec_len == 16' failed.",
            "../../target/i386/tcg/translate.c:2295: tcg fatal error",
            "ERROR:../../target/i386/tcg/translate.c:1296:gen_helper_fp_arith_ST0_FT0: code should not be reached",
            "../../tcg/tcg.c:3243: tcg fatal error",
            "ERROR:../../tcg/optimize.c:823:do_constant_folding_cond: code should not be reached",
            "qemu: fatal: invalid tss",
            "qemu: fatal: invalid tss type",
        ] {
            assert!(known(message).is_some(), "{message}");
        }
        for message in [
            "",
            "qemu-system-x86_64: cannot set up guest memory 'ram': Cannot allocate memory",
            "qemu-system-x86_64: ../../softmmu/physmem.c:1: f: Assertion `x' failed.",
            "ERROR:../../accel/tcg/cputlb.c:1553:load_helper: code should not be reached",
            "qemu: fatal: Trying to execute code outside RAM or ROM at 0x00000000000a0000",
        ] {
            assert_eq!(known(message), None, "{message}");
        }
    }

    #[test]
    fn the_message_is_the_first_line_that_says_something() {
        let glib =
            "**\nERROR:../../x.c:1:f: code should not be reached\nBail out! ERROR:../../x.c:1\n";
        let line = "ERROR:../../x.c:1:f: code should not be reached";
        assert_eq!(message(glib), line);
        assert_eq!(
            message("qemu: fatal: invalid tss\n\nEAX=0\n"),
            "qemu: fatal: invalid tss"
        );
        assert_eq!(message(""), "");
    }
}
