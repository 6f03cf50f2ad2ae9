//! Tests of definitions and files as the operator handles them: texts that are pasted, and what a script sends.

use alloc::{format, string::String, vec::Vec};

use super::Terminal;
use crate::PROMPT;

const TOML: &str = "name = \"new\"\nmemory = \"64M\"\nkernel = \"linux\"\n";

fn done(terminal: &Terminal) -> Vec<String> {
    terminal.machine.definitions.done.take()
}

#[test]
fn a_definition_is_pasted_until_a_dot() {
    let mut terminal = Terminal::default();
    let asked = terminal.send("td define\r");
    assert!(asked.ends_with("Ctrl-C discards it.\r\n"), "{asked:?}");
    let out = terminal.send(TOML.replace('\n', "\r"));
    assert!(!out.contains(PROMPT), "{out:?}");
    assert!(done(&terminal).is_empty(), "not before the dot");
    let out = terminal.send(".\r");
    assert!(
        out.ends_with(&format!(
            "TD 3 new is defined; \"td start new\" starts it.\r\n{PROMPT}"
        )),
        "{out:?}"
    );
    assert_eq!(done(&terminal), ["define new"]);
    assert!(terminal.run("history").contains("td define"));
    assert!(
        !terminal.run("history").contains("memory"),
        "the text is no history"
    );
}

#[test]
fn all_mistakes_of_a_definition_are_reported() {
    let mut terminal = Terminal::default();
    terminal.send("td define\r");
    let text = TOML.replace("64M", "64").replace("linux", "gone");
    let out = terminal.send(text.replace('\n', "\r") + ".\r");
    assert!(out.contains("error: line 2: memory is \"64\""), "{out:?}");
    assert!(out.contains("; line 3: kernel is \"gone\""), "{out:?}");
    assert!(out.ends_with(PROMPT));
    assert!(done(&terminal).is_empty());
}

#[test]
fn a_text_is_left_by_ctrl_c_and_bounded() {
    let mut terminal = Terminal::default();
    terminal.send("td define\r");
    let out = terminal.send(format!("{}\x03", TOML.replace('\n', "\r")));
    assert!(out.ends_with(&format!("^C\r\n{PROMPT}")), "{out:?}");
    assert!(
        terminal.run("version").contains("0.1.0"),
        "commands run again"
    );
    for (line, why) in [
        (
            "x".repeat(1025),
            "error: line 2 is longer than 1024 bytes; nothing was done",
        ),
        (
            "\u{e9}".into(),
            "error: line 2 has the byte 0xc3, which is not printable ASCII; nothing was done",
        ),
    ] {
        terminal.send("td define\r");
        let out = terminal.send(format!("# a\r{line}\r# b\r.\r"));
        assert!(out.contains(why), "{out:?}");
    }
    terminal.send("config check\r");
    terminal.send(format!("{}\r", "# ".repeat(500)).repeat(70));
    let out = terminal.send(".\r");
    assert!(
        out.contains("goes beyond 64 KiB, the most that can be pasted; nothing was done"),
        "{out:?}"
    );
    assert!(done(&terminal).is_empty());
}

#[test]
fn a_tab_in_a_text_is_a_blank_and_the_log_does_not_disturb_it() {
    let mut terminal = Terminal::default();
    terminal.send("td define\r");
    terminal.send("name\t=\t\"new\"\r");
    let mut out = String::new();
    terminal.console.notice("a record of the log", &mut out);
    assert!(!out.contains(PROMPT), "{out:?}");
    terminal.send("memory = \"64M\"\rkernel = \"linux\"\r.\r");
    assert_eq!(done(&terminal), ["define new"]);
}

#[test]
fn a_script_gives_a_text_as_one_string() {
    let mut terminal = Terminal::default();
    terminal.send("json on\r");
    let text = serde_json::to_string(TOML).unwrap();
    let reply = terminal.json(&format!("td define {text}"));
    assert_eq!((&reply["id"], &reply["name"]), (&3.into(), &"new".into()));
    assert_eq!(done(&terminal), ["define new"]);
    assert_eq!(terminal.json("td define")["code"], "missing-argument");
    assert_eq!(
        terminal.json("td define \"open")["code"],
        "invalid-argument"
    );
    let many = text.replace("name =", "vcpus = 1000\\nname =");
    let warned = terminal.json(&format!("td define {many}"));
    assert!(
        warned["warnings"][0]
            .as_str()
            .unwrap()
            .contains("the machine has 4 CPUs")
    );
    let wrong = terminal.json("td define \"name = 5\"");
    assert_eq!(wrong["code"], "invalid-definition");
    let checked = terminal.json("config check \"[host]\\ncolour = 3\\nslice_ms = 0\\n\"");
    assert_eq!(checked["mistakes"][0]["line"], 2);
    assert_eq!(checked["mistakes"][1]["line"], 3);
}

#[test]
fn a_value_is_the_rest_of_the_line() {
    let mut terminal = Terminal::default();
    let out = terminal.run("td set hello cmdline console=ttyS0  quiet");
    assert_eq!(
        out,
        "TD 1 hello is runnable; cmdline is set for the next time that it is built.\r\n"
    );
    assert_eq!(
        terminal.run("td set 1 cap 50"),
        "TD 1 hello is runnable; cap is set.\r\n"
    );
    assert_eq!(
        done(&terminal),
        ["set 1 cmdline console=ttyS0  quiet", "set 1 cap 50"]
    );
    assert!(terminal.run("td set hello cap").contains("needs VALUE"));
    assert!(
        terminal
            .run("td set nobody cap 1")
            .contains("there is no TD \"nobody\"")
    );
}

#[test]
fn functions_are_attached_and_detached() {
    let mut terminal = Terminal::default();
    assert_eq!(
        terminal.run("td attach hello 0000:01:00.0"),
        "TD 1 hello is runnable; it has PCI function 0000:01:00.0 from its next start on.\r\n"
    );
    assert_eq!(
        terminal.run("td attach 1 8086:0a54"),
        "warning: TD hello can't start with it now\r\n\
         TD 1 hello is runnable; it has PCI function 0000:01:00.0 from its next start on.\r\n"
    );
    assert_eq!(
        terminal.run("td detach hello 8086:0a54"),
        "TD 1 hello is runnable; it starts without PCI function 0000:01:00.0.\r\n\
         The function may hold data of the TD; \"pci release 0000:01:00.0\" frees it for others.\r\n"
    );
    assert_eq!(
        done(&terminal),
        [
            "attach 1 0000:01:00.0",
            "attach 1 8086:0a54",
            "detach 1 8086:0a54"
        ]
    );
    assert!(terminal.run("td attach hello").contains("needs DEVICE"));
    assert!(
        terminal
            .run("td attach nobody 1:0.0")
            .contains("there is no TD \"nobody\"")
    );
}

#[test]
fn a_guest_has_a_time_to_shut_down() {
    let mut terminal = Terminal::default();
    let out = terminal.run("td shutdown hello");
    assert_eq!(
        out,
        "TD 1 hello is runnable. Its power button was pressed; it has 60 s to power off, then nothing more happens.\r\n"
    );
    let out = terminal.run("td shutdown hello 5 --force");
    assert!(
        out.starts_with("warning: the guest does not listen"),
        "{out}"
    );
    assert!(
        out.contains("it has 5 s to power off, then it is terminated"),
        "{out}"
    );
    assert_eq!(
        done(&terminal),
        ["shutdown 1 60 false", "shutdown 1 5 true"]
    );
    assert!(
        terminal
            .run("td shutdown hello 86401")
            .contains("must be 0 to 86400, but is 86401")
    );
    assert!(done(&terminal).is_empty());
}

#[test]
fn what_is_shown_is_a_configuration() {
    let mut terminal = Terminal::default();
    terminal.send("json on\r");
    let shown = terminal.json("config show");
    let toml = shown["toml"].as_str().unwrap();
    // The file that is not complete is none.
    assert!(!toml.contains("initrd"), "{toml}");
    let read = config::read(toml.as_bytes());
    assert_eq!(
        read.problems.len(),
        1,
        "the fake host has no [[file]]: {:?}",
        read.problems
    );
    terminal.machine.without_tdx = true;
    let shown = terminal.json("config show");
    assert!(
        shown["toml"].as_str().unwrap().contains("name = \"hello\""),
        "also without TDX"
    );
}

#[test]
fn a_file_is_put_in_pieces() {
    let mut terminal = Terminal::default();
    terminal.send("json on\r");
    terminal.json("file begin initrd 8");
    let reply = terminal.json("file put initrd 0 QUJDRA==");
    assert_eq!(
        (&reply["arrived_bytes"], &reply["bytes"]),
        (&4.into(), &8.into())
    );
    terminal.json("file put initrd 4 RUZHSA==");
    let hash = format!("a1{}b2", "00".repeat(30));
    terminal.json(&format!("file end initrd {hash}"));
    terminal.json("file drop initrd");
    assert_eq!(
        done(&terminal),
        [
            "begin initrd 8",
            "put initrd 0 ABCD",
            "put initrd 4 EFGH",
            "end initrd a1b2",
            "drop initrd"
        ]
    );
    for wrong in [
        "file put initrd 0 QUJDRA",
        "file put initrd 0 %%",
        "file end initrd 12",
        "file end initrd \u{2b}1",
    ] {
        assert_eq!(terminal.json(wrong)["ok"], false, "{wrong}");
    }
    assert!(done(&terminal).is_empty());
    assert_eq!(terminal.json("file show gone")["code"], "no-such-file");
    assert_eq!(terminal.json("file list")["files"][0]["arrived_bytes"], 4);
}

#[test]
fn a_line_of_a_script_has_room_for_64_kib_of_a_file() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let mut terminal = Terminal::default();
    let line = format!("file put initrd 0 {}", STANDARD.encode([7; 64 << 10]));
    assert!(
        terminal
            .send(format!("{line}\r"))
            .contains("longer than 1024 bytes")
    );
    terminal.send("json on\r");
    assert_eq!(terminal.json(&line)["ok"], true);
    assert_eq!(done(&terminal), ["put initrd 0 65536 bytes"]);
    let beyond = terminal.json(&format!("file put initrd 0 {}", "A".repeat(96 << 10)));
    assert_eq!(beyond["code"], "line-too-long");
    terminal.send("json off\r");
    assert!(
        terminal.run("history").len() < 2000,
        "what a script sends is no history"
    );
}

#[test]
fn files_are_listed_for_people() {
    let mut terminal = Terminal::default();
    let list = terminal.run("file list");
    assert!(list.contains("initrd        8 B  put   4 B"), "{list}");
    assert!(
        list.contains("Files that are put have 8 B of 1 GiB."),
        "{list}"
    );
    let shown = terminal.run("file show linux");
    assert!(
        shown.contains("0f0f0f") && shown.contains("hello"),
        "{shown}"
    );
}
