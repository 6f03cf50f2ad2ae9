//! Tests that every command's answer agrees with the state afterwards, in every state of a TD, and that every command
//! that any answer names is one that the console takes.
//!
//! The commands are those that `help` lists, so that a new one is tested, too.

use std::collections::BTreeSet;

use super::advice::{CASES, Case, with};
use serde_json::Value;

/// The states in which a TD may be after a command that succeeded.
fn effect(command: &str) -> Option<&'static [&'static str]> {
    Some(match command {
        "td create" | "td pause" => &["paused"],
        "td start" | "td resume" => &["runnable"],
        "td terminate" => &["teardown", "reclaimed", "created"],
        "td destroy" => &["reclaimed", "created"],
        "td retry" => &["reclaimed", "paused", "runnable"],
        "td reset" => &["runnable", "paused"],
        _ => return None,
    })
}

/// Words that take the place of an argument.
fn argument(usage: &str) -> Vec<&'static str> {
    match usage.trim_matches(['[', ']']) {
        "TD" => vec!["one"],
        "SIZE" => vec!["12M", "16M", "1G"],
        "--dynamic" => vec!["", "--dynamic"],
        "GPA" | "FROM" | "VCPU" | "BYTES" => vec!["", "8"],
        other if other.starts_with("--") => vec!["", Box::leak(other.to_owned().into_boxed_str())],
        _ => vec![""],
    }
}

/// Returns every command about a TD that `help` lists, with arguments: name and line.
fn lines(help: &Value) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for command in help["commands"].as_array().unwrap() {
        let usage = command["usage"].as_str().unwrap();
        let is_argument =
            |word: &&str| word.starts_with(['[', '-']) || word.chars().all(|c| !c.is_lowercase());
        let words: Vec<&str> = usage.split(' ').collect();
        let name: Vec<&str> = words
            .iter()
            .copied()
            .take_while(|word| !is_argument(word))
            .collect();
        let arguments = &words[name.len()..];
        if !arguments.contains(&"TD") {
            continue;
        }
        let name = name.join(" ");
        let mut calls = vec![name.clone()];
        for word in arguments.iter().map(|word| argument(word)) {
            let with = |call: &String| -> Vec<String> {
                word.iter()
                    .map(|word| format!("{call} {word}").trim_end().to_owned())
                    .collect()
            };
            calls = calls.iter().flat_map(with).collect();
        }
        all.extend(calls.into_iter().map(|call| (name.clone(), call)));
    }
    all
}

fn help() -> Value {
    let mut help = Value::Null;
    with(Case::Created, |_, operator| help = operator.succeed("help"));
    help
}

#[test]
fn every_answer_agrees_with_the_state_afterwards() {
    let lines = lines(&help());
    let names: BTreeSet<&str> = lines.iter().map(|(name, _)| name.as_str()).collect();
    for known in [
        "td create",
        "td retry",
        "td shrink",
        "td console",
        "td dump",
    ] {
        assert!(names.contains(known), "{known} is not in {names:?}");
    }
    for case in CASES {
        for (name, line) in &lines {
            with(case, |site, operator| {
                let before = site.state();
                let answer = operator.ask(line);
                let after = site.state();
                let told = format!("{case:?}: {line}: {before} -> {after}: {answer}");
                if answer["ok"] == true {
                    if let Some(states) = effect(name) {
                        assert!(states.contains(&&*after), "{told}");
                    }
                    if let Some(state) = answer["state"].as_str() {
                        assert_eq!(state, after, "{told}");
                    }
                    if name == "td shrink" {
                        let shown = operator.succeed("td show one");
                        assert_eq!(shown["memory_bytes"], answer["memory_bytes"], "{told}");
                    }
                    if answer["already"] == true {
                        assert_eq!(before, after, "{told}");
                    }
                } else {
                    assert_eq!(before, after, "an error has no effect: {told}");
                    assert!(!answer["error"].as_str().unwrap().is_empty(), "{told}");
                    // A second attempt is no success either, unless it was only too early.
                    if answer["code"] == "wrong-state" {
                        let again = operator.ask(line);
                        assert_eq!(again["ok"], false, "{told}, then {again}");
                    }
                }
            });
        }
    }
}

/// Returns the quoted parts of a text that begin with the first word of a command.
fn quoted<'a>(text: &'a str, firsts: &BTreeSet<&str>) -> Vec<&'a str> {
    let parts = text.split('"').skip(1).step_by(2);
    parts
        .filter(|part| {
            part.split(' ')
                .next()
                .is_some_and(|first| firsts.contains(first))
        })
        .collect()
}

/// Checks that the console takes a command that was quoted, once every TD in it has a name.
fn assert_taken(
    operator: &mut super::operator::Operator<'_, '_, super::rig::Rig>,
    quoted: &str,
    from: &str,
) {
    // "help NAME" decodes the name of a command without running it.
    let words: Vec<&str> = quoted.split(' ').collect();
    let known = (1..=words.len())
        .rev()
        .any(|count| operator.ask(&format!("help {}", words[..count].join(" ")))["ok"] == true);
    assert!(known, "{quoted:?} is no command; it is in {from:?}");
}

#[test]
fn every_command_that_an_answer_names_exists() {
    let help = help();
    let lines = lines(&help);
    let usages: Vec<&str> = help["commands"]
        .as_array()
        .unwrap()
        .iter()
        .map(|command| command["usage"].as_str().unwrap())
        .collect();
    let firsts: BTreeSet<&str> = usages
        .iter()
        .filter_map(|usage| usage.split(' ').next())
        .collect();
    let mut texts: Vec<String> = Vec::new();
    for case in CASES {
        for (_, line) in &lines {
            with(case, |_, operator| texts.push(operator.read(line)));
        }
        with(case, |_, operator| {
            let reports = ["td list", "td show one", "reclaim", "hkids"];
            texts.extend(reports.map(|report| operator.read(report)));
        });
    }
    for command in help["commands"].as_array().unwrap() {
        texts.push(command["help"].as_str().unwrap().to_owned());
        texts.push(command["summary"].as_str().unwrap().to_owned());
    }
    with(Case::Created, |_, operator| {
        for wrong in [
            "foo",
            "td",
            "td foo",
            "exit",
            "?",
            "ls",
            "stop",
            "td show two",
            "version --x",
            "a;b",
        ] {
            texts.push(operator.read(wrong));
        }
        let mut seen = 0;
        for text in &texts {
            for command in quoted(text, &firsts) {
                seen += 1;
                assert_taken(operator, command, text);
            }
        }
        assert!(seen > 100, "{seen}");
    });
}

#[test]
fn a_start_with_the_host_that_fails_is_shown_until_one_succeeds() {
    use super::kit::{Server, no_hypercall};
    use super::operator::Operator;
    use host::sched::Scheduler;

    const TDS: &str = "[[td]]\nname = \"one\"\nmemory = \"16M\"\nautostart = true\n\
                       [[td]]\nname = \"large\"\nmemory = \"64G\"\nautostart = true\n";
    let server = Server::new("");
    let scheduler = Scheduler::new(&server.rig, &super::kit::config(TDS).host, no_hypercall);
    let tds = server.tds_on(&server.rig, TDS, &scheduler);
    let failed: Vec<_> = tds
        .autostart()
        .into_iter()
        .filter_map(|(id, started)| Some((id, started.err()?.to_string())))
        .collect();
    let [(2, why)] = &failed[..] else {
        panic!("{failed:?}");
    };
    let mut operator = Operator::with(&tds, &scheduler);
    let list = operator.succeed("td list");
    assert_eq!(list["tds"][0]["problem"], Value::Null, "{list}");
    assert_eq!(list["tds"][1]["problem"], **why, "{list}");
    let shown = operator.succeed("td show large");
    assert_eq!(shown["problem"], **why, "{shown}");
    let start: String = why.chars().take(30).collect();
    assert!(operator.read("td show large").contains(&start));
    assert!(operator.read("td list").contains(&start));
    operator.succeed("td destroy one");
}
