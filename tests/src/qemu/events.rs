//! The SEAM stub's messages on the debug console (port 0xE9): one JSON object a line.

use serde_json::Value;

/// One object of the debug console.
#[derive(Clone, Debug, PartialEq)]
pub struct Event(pub Value);

impl Event {
    /// Returns the kind of the event: `violation`, `error` and so on.
    pub fn kind(&self) -> &str {
        self.text("stub")
    }

    /// Returns the field `name` as text; empty if it is missing or no string.
    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).and_then(Value::as_str).unwrap_or_default()
    }
}

/// Returns the events in the debug console's output so far. Lines that are no JSON objects come from other sources,
/// and the last line may be incomplete; both are skipped.
pub fn events(log: &[u8]) -> Vec<Event> {
    let complete = log
        .iter()
        .rposition(|&b| b == b'\n')
        .map_or(0, |end| end + 1);
    log[..complete]
        .split(|&b| b == b'\n')
        .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
        .filter(Value::is_object)
        .map(Event)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_objects_are_events() {
        let log = b"{\"stub\":\"a\"}\nnoise\n42\n{\"stub\":\"b\"}\r\n{\"stub\":\"c\"";
        let names: Vec<_> = events(log).iter().map(|e| e.kind().to_owned()).collect();
        assert_eq!(names, ["a", "b"]);
    }
}
