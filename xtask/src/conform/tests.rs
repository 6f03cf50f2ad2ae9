//! Replays the recordings that travel with the project, and checks the replay itself.

use std::collections::BTreeSet;

use serde_json::Value;

use super::number::Number;
use super::*;

/// Returns the folder of the recordings.
fn recordings() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors")
}

/// Replays the recordings of the project whose names `wanted` accepts.
fn replay(wanted: impl Fn(&str) -> bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors");
    let mut files = Vec::new();
    collect(&folder, &mut files).unwrap();
    files.retain(|file| {
        file.file_name()
            .is_some_and(|name| wanted(&name.to_string_lossy()))
    });
    assert!(files.len() > 70, "{} recordings", files.len());
    let mut told = Vec::new();
    for Replayed { outcome, .. } in replay_all(&files) {
        let (name, outcome) = outcome.unwrap();
        assert!(outcome.steps >= 5, "{name}: {} steps", outcome.steps);
        let mut say = Vec::new();
        Conform {
            paths: Vec::new(),
            all: false,
            verbose: false,
        }
        .tell(&mut say, &name, &outcome)
        .unwrap();
        told.append(&mut say);
    }
    assert!(told.is_empty(), "{}", String::from_utf8_lossy(&told));
}

#[test]
fn the_host_is_answered_as_intels_module_answers() {
    replay(|name| !name.starts_with("g_"));
}

#[test]
fn guests_see_what_they_see_of_intels_module() {
    replay(|name| name.starts_with("g_") && name.ends_with(".jsonl.zst"));
}

#[test]
fn a_difference_is_found_and_told() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors");
    let mut scenario = Scenario::load(&folder.join("c_sys_busy.jsonl.zst")).unwrap();
    scenario.config.lp_to_package = vec![0; scenario.config.lp_to_package.len()];
    let outcome = replay::replay(scenario);
    let mut say = Vec::new();
    let terse = Conform {
        paths: Vec::new(),
        all: false,
        verbose: false,
    };
    terse.tell(&mut say, "one package", &outcome).unwrap();
    let say = String::from_utf8(say).unwrap();
    assert!(
        say.starts_with("one package: step ") && say.lines().count() == 1,
        "{say}"
    );
    assert!(
        say.contains("expected 0x") && say.contains("got 0x"),
        "{say}"
    );
}

/// Returns a recorded value changed in a way that every comparison notices.
fn altered(value: &Value) -> Value {
    match value {
        Value::Bool(truth) => Value::Bool(!truth),
        Value::Number(number) => Value::from(number.as_u64().unwrap_or(0) ^ 1 << 40),
        Value::String(text) => match text.strip_prefix("0x") {
            Some(digits) => {
                let number = u64::from_str_radix(digits, 16).unwrap();
                Value::from(format!("{:#x}", number ^ 1 << 40))
            }
            None if text.bytes().all(|digit| digit.is_ascii_hexdigit()) => {
                let first = u8::from_str_radix(&text[..1], 16).unwrap();
                Value::from(format!("{:x}{}", first ^ 1, &text[1..]))
            }
            None => Value::from(format!("{text}?")),
        },
        _ => Value::Null,
    }
}

/// Alters every value of a tree, and collects their paths.
fn alter(tree: &mut Value, path: &str, into: &mut BTreeSet<String>) {
    if let Value::Object(fields) = tree {
        for (name, value) in fields {
            alter(value, &format!("{path}/{name}"), into);
        }
    } else {
        *tree = altered(tree);
        into.insert(path.to_owned());
    }
}

/// Alters everything that a step states of the module's answer. Returns the fields whose differences a replay reports.
fn alter_step(step: &mut Value) -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    let volatile = step.get("volatile").cloned();
    let runs = step["repeat"].as_u64().is_none() && step.get("reload").is_none();
    if runs && step.get("shutdown").is_none() {
        for (name, value) in step["out"].as_object_mut().unwrap() {
            // The interruption of a repeated call would change the steps that follow.
            *value = altered(value);
            fields.insert(name.clone());
        }
    }
    if let Some(exits) = step.get_mut("guest").and_then(Value::as_array_mut) {
        for (number, exit) in exits.iter_mut().enumerate() {
            if let Some(after) = exit.get_mut("after") {
                alter(after, &format!("guest/{number}/after"), &mut fields);
            }
        }
    }
    if let Some(entry) = step.get_mut("entry").filter(|entry| !entry.is_null()) {
        alter(entry, "entry", &mut fields);
    }
    if let Some(xmm) = step.get_mut("xmm_out") {
        alter(xmm, "xmm_out", &mut fields);
    }
    if let Some(icr) = step.get_mut("icr") {
        alter(icr, "icr", &mut fields);
    }
    let dumps = step.get_mut("mem_out").and_then(Value::as_array_mut);
    for dump in dumps.into_iter().flatten() {
        dump["hex"] = altered(&dump["hex"]);
        let pa = Number::parse(dump["pa"].as_str().unwrap()).unwrap().0;
        fields.insert(format!("mem_out {pa:#x}"));
    }
    let volatile: Vec<_> = volatile
        .iter()
        .flat_map(|paths| paths.as_array().unwrap())
        .collect();
    fields.retain(|field| {
        volatile.iter().all(|path| {
            let path = path.as_str().unwrap();
            let path = path.strip_prefix("out/").unwrap_or(path);
            !field.starts_with(path)
        })
    });
    fields
}

#[test]
fn a_replay_reports_every_value_that_a_recording_states_otherwise() {
    let mut files = Vec::new();
    collect(&recordings(), &mut files).unwrap();
    let mut compared = 0;
    for file in files {
        let text = scenario::read(&file).unwrap();
        let mut expected = Vec::new();
        let mut lines = text.lines().map(str::to_owned);
        let mut changed = lines.next().unwrap();
        for line in lines {
            let mut step: Value = serde_json::from_str(&line).unwrap();
            expected.push(alter_step(&mut step));
            changed.push('\n');
            changed.push_str(&step.to_string());
        }
        let scenario = Scenario::parse(changed.as_bytes(), "altered").unwrap();
        let outcome = replay::replay(scenario);
        let mut told: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
        for mismatch in outcome.mismatches {
            let fields = mismatch.differences.into_iter();
            told.entry(mismatch.line)
                .or_default()
                .extend(fields.map(|found| found.field));
        }
        for (line, fields) in (2..).zip(expected) {
            let told = told.remove(&line).unwrap_or_default();
            let silent: Vec<_> = fields.difference(&told).collect();
            assert!(
                silent.is_empty(),
                "{}, line {line}: {silent:?}",
                file.display()
            );
            compared += fields.len();
        }
    }
    assert!(compared > 200_000, "{compared} values");
}
