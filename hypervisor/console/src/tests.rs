//! Tests of the console as its users see it: bytes in, bytes out.

mod contract;
mod crash;
mod define;
mod definitions;
mod devices;
mod docs;
mod iommu;
mod lock;
mod machine;
mod noise;
mod pci;
mod report;
mod schema;
mod seeing;
mod td;
mod tds;

use alloc::{
    format,
    string::{String, ToString},
    vec,
    vec::Vec,
};

use serde_json::Value;

use super::{
    Console, MAX_LINE, PROMPT,
    argument::{Arg, Kind},
    commands,
    host::PowerAction,
};
use machine::Machine;

/// A console on a machine, and everything that it sent.
#[derive(Default)]
struct Terminal {
    console: Console,
    machine: Machine,
}

impl Terminal {
    /// Creates a machine on which the command works: `lock` needs a password.
    fn for_command(name: &str) -> Self {
        let mut terminal = Self::default();
        terminal.machine.password = name.ends_with("lock").then_some("open");
        terminal
    }

    /// Sends bytes and returns the output.
    fn send(&mut self, bytes: impl AsRef<[u8]>) -> String {
        let mut out = String::new();
        for byte in bytes.as_ref() {
            self.console.feed(*byte, &mut self.machine, &mut out);
        }
        out
    }

    /// Runs a line as an operator does. Returns the reply without echo and prompt.
    fn run(&mut self, line: &str) -> String {
        let out = self.send(format!("{line}\r"));
        let reply = out
            .strip_prefix(line)
            .and_then(|out| out.strip_prefix("\r\n"))
            .expect("the echo comes first");
        reply
            .strip_suffix(PROMPT)
            .expect("the prompt comes last")
            .to_string()
    }

    /// Runs a line as a script does in JSON mode. The reply must be one object on one line.
    fn json(&mut self, line: &str) -> Value {
        let out = self.send(format!("{line}\n"));
        // Only the reply that ends JSON mode is followed by a prompt.
        let out = if self.console.json() {
            &out[..]
        } else {
            out.strip_suffix(PROMPT).expect("a prompt")
        };
        let object = out.strip_suffix("\r\n").expect("a whole line");
        assert!(!object.contains(['\r', '\n']), "one line: {out:?}");
        let value: Value = serde_json::from_str(object).expect("JSON");
        assert!(value.is_object(), "an object: {out}");
        value
    }
}

#[test]
fn the_console_greets_with_what_went_wrong_and_a_prompt() {
    let (mut console, mut out) = (Console::new(), String::new());
    let mut machine = Machine::default();
    machine.config_problems = ["seamark.toml:3: unknown key \"fred\"; remove it".into()].into();
    console.start(&machine, &mut out);
    assert_eq!(
        out,
        "\r\nSeamark 0.1.0: 3 of 4 CPUs running, TDX ready, 532.001 ms from start to prompt\r\n\
         warning: seamark.toml:3: unknown key \"fred\"; remove it\r\n\
         Type \"help\" for the commands.\r\n\x1b7\x1b[999;999H\x1b[6n\x1b8seamark> "
    );
}

#[test]
fn a_script_may_send_many_lines_at_once_with_any_line_end() {
    for end in ["\r", "\n", "\r\n"] {
        let out = Terminal::default().send(
            ["log", "version", "log"]
                .map(|line| line.to_string() + end)
                .concat(),
        );
        assert_eq!(out.matches("log level info\r\n").count(), 2, "{out}");
        assert_eq!(out.matches(PROMPT).count(), 3, "{out}");
    }
}

#[test]
fn a_blank_line_is_answered_with_a_prompt_alone() {
    assert_eq!(Terminal::default().send("  \r"), "  \r\nseamark> ");
}

#[test]
fn ctrl_c_gives_a_line_up_unrun() {
    let mut terminal = Terminal::default();
    assert_eq!(terminal.send("poweroff\x03"), "poweroff^C\r\nseamark> ");
    assert_eq!(terminal.machine.requested, None);
    assert!(terminal.run("version").contains("0.1.0"));
}

#[test]
fn a_line_can_be_mended_in_its_middle() {
    let mut terminal = Terminal::default();
    let out = terminal.send("xersion\x01\x1b[3~v\x05 \x7f\r");
    assert!(out.contains("seamark   0.1.0\r\n"), "{out}");
}

#[test]
fn up_brings_the_last_line_back() {
    let mut terminal = Terminal::default();
    terminal.run("log debug");
    terminal.run("log error");
    let out = terminal.send("\x1b[A\x1b[A\r");
    assert!(out.contains("log level debug\r\n"), "{out}");
}

#[test]
fn tab_completes_and_lists_what_is_possible() {
    let mut terminal = Terminal::default();
    assert_eq!(terminal.send("ver\t"), "version ");
    assert_eq!(
        terminal.send("\x03json o\t"),
        "^C\r\nseamark> json o\r\noff  on\r\nseamark> \r\x1b[9Cjson o\x1b[K"
    );
    assert_eq!(terminal.send("\x03zzz\t"), "^C\r\nseamark> zzz\x07");
}

#[test]
fn ctrl_l_clears_the_screen_and_keeps_the_line() {
    let mut terminal = Terminal::default();
    let out = terminal.send("version\x0c");
    assert!(
        out.ends_with("\x1b[2J\x1b[Hseamark> \r\x1b[9Cversion\x1b[K"),
        "{out:?}"
    );
    assert!(terminal.send("\r").contains("0.1.0"));
}

#[test]
fn a_log_line_appears_above_the_line_that_is_being_edited() {
    let mut terminal = Terminal::default();
    terminal.send("vers");
    let mut out = String::new();
    terminal.console.notice("cpu 3 went \x1b[2J away", &mut out);
    assert_eq!(
        out,
        "\r\x1b[Kcpu 3 went \\x1b[2J away\r\nseamark> \r\x1b[9Cvers\x1b[K"
    );
    assert!(terminal.send("ion\r").contains("0.1.0"));
}

#[test]
fn a_line_that_is_too_long_is_refused_and_its_beginning_can_be_recalled() {
    let mut terminal = Terminal::default();
    let out = terminal.send(format!("poweroff {}\r", "x".repeat(MAX_LINE)));
    assert!(
        out.contains("error: the line is longer than 1024 bytes and was not run"),
        "{out}"
    );
    assert_eq!(terminal.machine.requested, None);
    terminal.send("\x10\x01");
    let out = terminal.send("\x1b[1;5C\x0b\r");
    assert!(out.contains("Switching the machine off"), "{out}");
}

#[test]
fn noise_in_a_line_keeps_it_from_being_run() {
    let mut terminal = Terminal::default();
    let out = terminal.send(b"power\xffoff\r");
    assert!(out.contains("error: the line held the byte 0xff"), "{out}");
    assert_eq!(terminal.machine.requested, None);
}

#[test]
fn power_is_requested_only_after_every_check() {
    let mut terminal = Terminal::default();
    assert!(terminal.run("reboot now").starts_with("error: "));
    assert_eq!(terminal.machine.requested, None);
    assert_eq!(
        terminal.run("reboot"),
        "Resetting the machine (ACPI reset register)\r\n"
    );
    assert_eq!(terminal.machine.requested, Some(PowerAction::Reboot));
}

#[test]
fn cpus_are_a_table_with_one_row_each() {
    assert_eq!(
        Terminal::default().run("cpus"),
        "CPU  APIC  PACKAGE  CORE  THREAD  NODE  STATE\r\n\
         \x20 0     0        0     0       0     0  online*\r\n\
         \x20 1     1        0     1       0     0  idle\r\n\
         \x20 2     8        1     0       0     1  idle\r\n\
         \x20 3     9        1     1       0     1  never started   no answer within 1 s\r\n\
         3 of 4 CPUs run, in 2 packages\r\n\
         ATTACK                            STATE         BY\r\n\
         branch target injection           on            enhanced IBRS\r\n\
         microarchitectural data sampling  not-affected  MDS_NO\r\n"
    );
}

#[test]
fn hardware_errors_are_counted_by_cpu_and_the_last_ones_are_shown() {
    assert_eq!(
        Terminal::default().run("mca"),
        "CPU  CORRECTED  UNCORRECTED  CHECKS  SIGNALS  SIGNALLING BANKS  LOCAL\r\n\
         \x20 0          0            0       0        0                20  yes\r\n\
         \x20 1          3            0       0        3                20  yes\r\n\
         Firmware's source 7 (polled): 1 corrected, 0 recoverable, 0 fatal\r\n\
         Foreign NMIs, source serr: 1\r\n\
         CPU 3 did not answer; its counts may be old.\r\n\
         \x20  TIME  CPU  BANK  VERDICT                STATUS         ADDRESS  ERROR\r\n\
         5.000 s    1     7  corrected  0x8c0000c000000090  0x123456700000  memory controller (0x0090)\r\n"
    );
    let mut terminal = Terminal::default();
    terminal.send("json on\r");
    let json = terminal.json("mca");
    assert_eq!(json["cpus"][1]["corrected"], 3, "{json}");
    assert_eq!(json["last"][0]["address"], "0x123456700000", "{json}");
    assert_eq!(json["last"][0]["misc"], Value::Null, "{json}");
    assert_eq!(json["nmis"][0]["source"], "serr", "{json}");
}

#[test]
fn the_ledger_says_when_it_does_not_balance() {
    let mut terminal = Terminal::default();
    assert!(terminal.run("mem").contains("ledger       balanced\r\n"));
    terminal.machine.lost_bytes = 4096;
    assert!(terminal.run("mem").contains("DOES NOT BALANCE"));
}

#[test]
fn peek_shows_the_cache_line_around_the_address() {
    let mut terminal = Terminal::default();
    let dump = terminal.run("mem peek 0x100f");
    assert!(dump.starts_with(
        "0000000001000  40 41 42 43 44 45 46 47  48 49 4a 4b 4c 4d 4e 4f  @ABCDEFGHIJKLMNO\r\n"
    ));
    assert_eq!(dump.lines().count(), 4);
    assert!(
        terminal
            .run("mem peek 0xfffffffffffc0")
            .starts_with("error: ")
    );
}

#[test]
fn tdx_says_what_is_missing() {
    let mut terminal = Terminal::default();
    assert!(
        terminal
            .run("tdx")
            .contains("module             1.5.05 build 577 of 20240129\r\n")
    );
    let reply = terminal.run("tdx");
    assert!(
        reply.contains(
            "microcode          0x2b000643 on CPUs 0 to 2\r\n                   0x2b000603 on CPU 3\r\n"
        ),
        "{reply}"
    );
    terminal.send("json on\r");
    assert_eq!(
        terminal.json("tdx")["microcode"],
        serde_json::json!([
            { "revision": "0x2b000643", "cpus": [0, 1, 2] },
            { "revision": "0x2b000603", "cpus": [3] }
        ])
    );
    terminal.send("json off\r");
    terminal.machine.without_tdx = true;
    let reply = terminal.run("tdx");
    assert!(
        reply.starts_with("TDX        unavailable\r\nmissing    "),
        "{reply}"
    );
}

#[test]
fn dmesg_shows_records_up_to_a_level() {
    let mut terminal = Terminal::default();
    let all = terminal.run("dmesg");
    assert!(all.starts_with(
        "(lost: 2 older records)\r\n[    0.000012] cpu0 info  hypervisor::boot: hello\r\n"
    ));
    let errors = terminal.run("dmesg warn");
    assert!(
        !errors.contains("hello") && errors.contains("cpu 3 never started"),
        "{errors}"
    );
}

#[test]
fn json_mode_sends_objects_and_nothing_else() {
    let mut terminal = Terminal::default();
    let on = terminal.send("json on\r");
    assert_eq!(
        on,
        "json on\r\n{\"cmd\":\"json\",\"ok\":true,\"protocol\":1,\"json\":true}\r\n"
    );
    assert_eq!(terminal.json("log debug")["level"], "debug");
    let mut out = String::new();
    terminal.console.notice("a log record", &mut out);
    out += &terminal.send("\r\n\r\n \r\n\x0c\x1b[A\x03half\x03");
    assert_eq!(out, "");
    assert_eq!(terminal.json("mem\tpeek 64")["address"], "0x40");
    let off = terminal.send("json off\r");
    assert_eq!(
        off,
        "{\"cmd\":\"json\",\"ok\":true,\"protocol\":1,\"json\":false}\r\nseamark> "
    );
}

#[test]
fn json_errors_name_the_command() {
    let mut terminal = Terminal::default();
    terminal.send("json on\r");
    let unknown = terminal.json("a\"b c");
    assert_eq!(
        (&unknown["cmd"], &unknown["ok"]),
        (&"a\"b".into(), &false.into())
    );
    assert!(
        unknown["error"]
            .as_str()
            .expect("a sentence")
            .starts_with("unknown command")
    );
    let long = terminal.json(&"z".repeat(100_000));
    assert!(
        long["error"]
            .as_str()
            .expect("a sentence")
            .contains("longer than")
    );
}

#[test]
fn every_command_of_the_table_answers_in_json_and_in_text() {
    for command in commands::ALL.all() {
        for arguments in every_way_to_call(command.args) {
            let line = [command.name, &arguments].join(" ").trim_end().to_string();
            let mut terminal = Terminal::for_command(command.name);
            let text = terminal.send(format!("{line}\r"));
            assert!(!text.contains("error: "), "{line}: {text}");

            let mut terminal = Terminal::for_command(command.name);
            terminal.send("json on\r");
            let value = terminal.json(&line);
            assert_eq!(
                (&value["cmd"], &value["ok"]),
                (&command.name.into(), &true.into()),
                "{line}: {value}"
            );
            assert_eq!(value.get("error"), None, "{line}");
        }
        // Each command also refuses what it does not take, without any effect.
        let mut terminal = Terminal::default();
        terminal.send("json on\r");
        if command.name == "config check" {
            // It finds the mistakes in any text.
            continue;
        }
        let value = terminal.json(&format!("{} \u{7e} ~ ~ ~", command.name));
        assert_eq!(value["ok"], false, "{value}");
        assert!(
            value["error"].is_string() && terminal.machine.requested.is_none(),
            "{value}"
        );
    }
}

const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Returns every choice of the arguments, with and without optional ones.
fn every_way_to_call(args: &[Arg]) -> Vec<String> {
    let [first, rest @ ..] = args else {
        return vec![String::new()];
    };
    let ends = match first.kind {
        Kind::Range(least, most) => [least, most],
        _ => [0; 2],
    }
    .map(|end| end.to_string());
    let words: Vec<&str> = match &first.kind {
        Kind::Range(..) => ends.iter().map(String::as_str).collect(),
        Kind::Address | Kind::Number => vec!["0", "0x12340"],
        Kind::Size => vec!["4M"],
        Kind::Td => vec!["2", "hello"],
        Kind::PciFunction => vec!["0000:01:00.0", "00:1f.2"],
        Kind::Network => vec!["lan", "wan"],
        Kind::Flag => vec![first.name],
        Kind::Choice(choices) => choices.to_vec(),
        Kind::Command => commands::ALL.all().map(|command| command.name).collect(),
        Kind::Word if first.name == "SHA256" => vec![ZEROS],
        Kind::Word => vec!["linux"],
        Kind::Text if first.name == "TOML" => {
            vec![r#""name = \"a\"\nkernel = \"linux\"\nmemory = \"2M\"""#]
        }
        Kind::Text if first.name == "DATA" => vec!["QUJD"],
        Kind::Text => vec!["a | b\\r"],
        Kind::Value => vec!["1"],
    };
    let mut ways = match first.kind {
        Kind::Flag => every_way_to_call(rest),
        // Without it, the command asks for a text.
        Kind::Text => Vec::new(),
        _ if first.optional => vec![String::new()],
        _ => Vec::new(),
    };
    for word in words {
        ways.extend(
            every_way_to_call(rest)
                .iter()
                .map(|more| format!("{word} {more}")),
        );
    }
    ways
}

#[test]
fn the_table_is_in_good_order() {
    let mut names: Vec<&str> = commands::ALL.all().map(|command| command.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "names are unique");
    for command in commands::ALL.all() {
        assert!(
            !command.summary.ends_with('.') && command.summary.len() < 60,
            "{}",
            command.summary
        );
        assert!(command.help.ends_with('.'), "{}", command.help);
        let indexed = command
            .args
            .iter()
            .filter(|arg| !matches!(arg.kind, Kind::Flag));
        let optional: Vec<bool> = indexed.map(|arg| arg.optional).collect();
        assert!(
            optional.is_sorted(),
            "{}: optional arguments come last",
            command.name
        );
        let before_last = command.args.iter().rev().skip(1);
        assert!(
            !before_last
                .into_iter()
                .any(|arg| matches!(arg.kind, Kind::Command)),
            "{}",
            command.name
        );
    }
}
