//! Reports on the debug console that end a machine for its tests.

use serde_json::Value;

use super::events::{Event, events};

/// A kind of trouble, named as the stub names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `panic`: the monitor has failed, and all processors stop.
    Panic,
    /// `bad_option`: the stub did not understand an option.
    BadOption,
    /// `error`: the stub could not start its monitor.
    Error,
    /// `shutdown`: a triple fault of the software.
    Shutdown,
    /// `module_shutdown`: the TDX module has shut down, and every TD is lost.
    ModuleShutdown,
}

impl Kind {
    /// Returns the kind of an event, or `None` if it is no trouble.
    pub fn of(event: &Event) -> Option<Self> {
        Some(match event.kind() {
            "panic" => Self::Panic,
            "bad_option" => Self::BadOption,
            "error" => Self::Error,
            "shutdown" => Self::Shutdown,
            "module_shutdown" => Self::ModuleShutdown,
            _ => return None,
        })
    }

    /// Returns the stub's name for the kind.
    pub fn name(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::BadOption => "bad_option",
            Self::Error => "error",
            Self::Shutdown => "shutdown",
            Self::ModuleShutdown => "module_shutdown",
        }
    }
}

/// Describes an event of the debug console in words.
pub fn sentence(kind: Kind, event: &Event) -> String {
    let reason = event.text("reason");
    let rest = |told| members(event, told);
    match kind {
        Kind::Panic => format!(
            "the SEAM stub has stopped the machine: {reason}{}",
            rest(&["reason"])
        ),
        Kind::BadOption => {
            let option = event.text("option").trim_start_matches("opt/seamstub/");
            format!("the SEAM stub does not understand its option {option}: {reason}")
        }
        Kind::Error => format!("the machine has no SEAM: {reason}"),
        Kind::Shutdown => format!(
            "a triple fault of the software has reset the machine{}",
            rest(&[])
        ),
        Kind::ModuleShutdown => format!(
            "the TDX module has shut down, and every TD is lost{}",
            rest(&[])
        ),
    }
}

/// Formats the members of an event in parentheses, except those in `told`.
fn members(event: &Event, told: &[&str]) -> String {
    let members = event.0.as_object().into_iter().flatten();
    let shown: Vec<_> = members
        .filter(|(name, _)| *name != "stub" && !told.contains(&name.as_str()))
        .map(|(name, value)| match value {
            Value::String(text) => format!("{name} {text}"),
            other => format!("{name} {other}"),
        })
        .collect();
    if shown.is_empty() {
        return String::new();
    }
    format!(" ({})", shown.join(", "))
}

/// A search for trouble in the debug console's output.
#[derive(Clone, Debug, Default)]
pub struct Watcher {
    provoked: Vec<Kind>,
    /// The beginning of an incomplete line.
    begun: Vec<u8>,
}

impl Watcher {
    /// Creates a watcher that ignores trouble of the kinds `provoked`.
    pub fn new(provoked: &[Kind]) -> Self {
        Self {
            provoked: provoked.to_owned(),
            begun: Vec::new(),
        }
    }

    /// Takes output of the debug console, split at any point. Returns the first trouble in it, in words.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<String> {
        self.begun.extend(bytes);
        let complete = self.begun.iter().rposition(|&b| b == b'\n')? + 1;
        let lines: Vec<u8> = self.begun.drain(..complete).collect();
        events(&lines).iter().find_map(|event| {
            let kind = Kind::of(event).filter(|kind| !self.provoked.contains(kind))?;
            Some(sentence(kind, event))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(line: &str) -> Option<String> {
        Watcher::default().feed(format!("{line}\n").as_bytes())
    }

    #[test]
    fn each_kind_has_a_sentence() {
        for (line, words) in [
            (
                r#"{"stub":"panic","reason":"memory allocation of 1048576 bytes failed at a.rs:1","lp":3,"rip":"0x10"}"#,
                "the SEAM stub has stopped the machine: memory allocation of 1048576 bytes failed at a.rs:1 (lp 3, rip 0x10)",
            ),
            (
                r#"{"stub":"bad_option","option":"opt/seamstub/tdx","reason":"tdx is on or off, not maybe"}"#,
                "the SEAM stub does not understand its option tdx: tdx is on or off, not maybe",
            ),
            (
                r#"{"stub":"error","reason":"no memory map"}"#,
                "the machine has no SEAM: no memory map",
            ),
            (
                r#"{"stub":"shutdown","lp":0,"exit":"0x7f"}"#,
                "a triple fault of the software has reset the machine (exit 0x7f, lp 0)",
            ),
            (
                r#"{"stub":"module_shutdown","lp":1,"check":"exit","reason":"0xa","qualification":"0x0","rip":"0xfff0","length":0}"#,
                "the TDX module has shut down, and every TD is lost (check exit, length 0, lp 1, qualification 0x0, reason 0xa, rip 0xfff0)",
            ),
        ] {
            assert_eq!(told(line).as_deref(), Some(words));
        }
    }

    #[test]
    fn reports_of_progress_are_no_trouble() {
        for line in [
            r#"{"stub":"start","cpus":4}"#,
            r#"{"stub":"violation","class":"keyid_alias"}"#,
            r#"{"stub":"td_entry_failed","rip":"0x0"}"#,
            r#"{"kernel":"panic"}"#,
            "panic",
            "",
        ] {
            assert_eq!(told(line), None, "{line}");
        }
    }

    #[test]
    fn a_line_may_come_in_pieces() {
        let mut watcher = Watcher::default();
        assert_eq!(watcher.feed(b"{\"stub\":\"start\"}\n{\"stub\":\"er"), None);
        assert_eq!(watcher.feed(b"ror\",\"reason\":\"a\"}"), None);
        assert_eq!(
            watcher.feed(b"\n").as_deref(),
            Some("the machine has no SEAM: a")
        );
    }

    #[test]
    fn provoked_reports_are_no_trouble() {
        let mut watcher = Watcher::new(&[Kind::BadOption]);
        let line = b"{\"stub\":\"bad_option\"}\n{\"stub\":\"error\",\"reason\":\"a\"}\n";
        assert_eq!(
            watcher.feed(line).as_deref(),
            Some("the machine has no SEAM: a")
        );
    }
}
