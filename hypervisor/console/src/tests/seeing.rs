//! Tests of what the operator sees: filters, pauses, `top`, `host`, rates, and the audit trail.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use super::{PROMPT, Terminal};

#[test]
fn a_bar_shows_the_lines_with_a_word() {
    let mut terminal = Terminal::default();
    assert_eq!(
        terminal.run("cpus | IDLE"),
        "\x20 1     1        0     1       0     0  idle\r\n\
         \x20 2     8        1     0       0     1  idle\r\n"
    );
    assert!(terminal.run("dmesg | cpu0 | never").lines().count() == 1);
    assert_eq!(terminal.run("version | nothing like it"), "");
    assert!(
        terminal
            .run("version |")
            .starts_with("error: a filter needs a word")
    );
    assert!(
        terminal
            .run("versoin | x")
            .contains("did you mean \"version\"")
    );
    assert_eq!(
        terminal.run("td console hello | from"),
        "Hello from a TD\r\n"
    );
    assert_eq!(terminal.console.watched(), None, "it is shown once");
    terminal.send("json on\r");
    assert_eq!(terminal.json("version | 0")["code"], "unexpected-argument");
}

#[test]
fn a_text_is_typed_on_a_td_as_it_is() {
    let mut terminal = Terminal::default();
    assert_eq!(
        terminal.run(r"td type hello  ps  | grep x\r"),
        "Typed 13 bytes on the console of TD hello.\r\n"
    );
    assert_eq!(
        *terminal.machine.tds.typed.borrow(),
        b"ps  | grep x\r".map(|b| b)
    );
}

#[test]
fn long_output_pauses_once_the_size_of_the_screen_is_known() {
    let mut terminal = Terminal::default();
    assert!(
        terminal.send("help\r").ends_with(PROMPT),
        "a script's does not"
    );
    terminal.run("screen 10 200");
    let out = terminal.send("help\r");
    assert!(out.ends_with("q to stop --"), "{out}");
    assert_eq!(
        out.matches("\r\n").count(),
        1 + 9,
        "the echo, and nine rows"
    );
    let mut note = String::new();
    terminal.console.notice("a record", &mut note);
    assert!(note.starts_with("\r\x1b[Ka record\r\n-- more"), "{note:?}");
    assert!(terminal.send("q").ends_with(PROMPT));
    // Lines that are sent at once are all run.
    let out = terminal.send("help\rversion\rcpus\r");
    assert!(
        out.contains("seamark   0.1.0\r\n") && out.ends_with(PROMPT),
        "{out}"
    );
    // JSON never pauses.
    terminal.send("json on\r");
    assert!(terminal.json("help")["commands"].is_array());
    terminal.send("json off\r");
    terminal.run("screen 0");
    assert!(terminal.send("help\r").ends_with(PROMPT));
    assert!(
        terminal
            .run("screen 3 80")
            .starts_with("error: a screen has at least 5")
    );
}

#[test]
fn the_terminal_is_asked_for_its_size() {
    let mut terminal = Terminal::default();
    let out = terminal.send("screen\r");
    assert!(out.contains("\x1b[6n"), "{out:?}");
    let out = terminal.send("\x1b[50;200R");
    assert_eq!(
        out,
        "\r\x1b[K50 rows of 200 columns; longer output pauses\r\nseamark> "
    );
    assert!(
        terminal
            .run("screen 50 200")
            .starts_with("50 rows of 200 columns")
    );
}

#[test]
fn two_hundred_pasted_commands_are_answered_with_two_hundred_prompts() {
    let mut terminal = Terminal::default();
    terminal.run("screen 24 80");
    let out = terminal.send("cpus\r".repeat(200));
    assert_eq!(out.matches(PROMPT).count(), 200);
    assert_eq!(out.matches("3 of 4 CPUs run").count(), 200);
}

/// Lets time pass, and returns what the console shows meanwhile.
fn pass(terminal: &mut Terminal, us: u64) -> String {
    let mut out = String::new();
    let end = terminal.machine.now_us.get() + us;
    while terminal.machine.now_us.get() < end {
        let now = &terminal.machine.now_us;
        now.set((now.get() + 250_000).min(end));
        if terminal.console.has_news(&terminal.machine) {
            terminal.console.refresh(&terminal.machine, &mut out);
        }
    }
    out
}

#[test]
fn top_is_shown_again_and_again_until_a_key() {
    let mut terminal = Terminal::default();
    assert_eq!(pass(&mut terminal, 10_000_000), "");
    let first = terminal.send("top\r");
    assert!(first.starts_with("top\r\n\x1b[2J\x1b[H\x1b7"), "{first:?}");
    assert!(first.contains("TD  NAME "), "{first}");
    assert!(!first.contains(PROMPT));
    let later = pass(&mut terminal, 4_500_000);
    assert_eq!(later.matches("\x1b[H").count(), 2, "{later}");
    assert!(!later.contains(PROMPT));
    let mut out = String::new();
    terminal.console.notice("a record", &mut out);
    assert_eq!(out, "", "it would be in the way");
    assert_eq!(terminal.send("\x1b[A"), format!("\r\x1b[K{PROMPT}"));
    assert_eq!(pass(&mut terminal, 4_500_000), "");
    assert!(terminal.run("version").contains("0.1.0"));
}

/// Returns the rows of `top` on a screen of this size, without control sequences.
fn top(terminal: &mut Terminal, rows: usize, columns: usize) -> Vec<String> {
    terminal.send(format!("screen {rows} {columns}\r"));
    let out = terminal.send("top\r");
    terminal.send("x\x15");
    let (_, view) = out.rsplit_once("\x1b[H").unwrap();
    let lines = view.split("\r\n");
    lines
        .map(|line| line.replace("\x1b[K", "").replace("\x1b[J", ""))
        .collect()
}

#[test]
fn top_fits_80_columns_and_uses_200() {
    let mut terminal = Terminal::default();
    terminal.machine.more_tds = 40;
    pass(&mut terminal, 10_000_000);
    for (rows, columns) in [(24, 80), (50, 200), (10, 40), (60, 132)] {
        let shown = top(&mut terminal, rows, columns);
        assert!(shown.len() <= rows, "{rows}: {shown:#?}");
        for line in &shown {
            assert!(line.chars().count() <= columns, "{columns}: {line}");
        }
    }
    let narrow = top(&mut terminal, 24, 80);
    assert_eq!(
        narrow[0],
        "up 71.000 s, load 19.07, 138320 exits/s, 100000 SEAMCALLs/s"
    );
    let wide = top(&mut terminal, 50, 200);
    assert_eq!(
        narrow[2..7],
        [
            "package 0 of   2 CPUs  50.0 % busy  [||||||||||          ]",
            "package 1 of   1 CPUs   0.0 % busy  [                    ]",
            "",
            "TD  NAME        STATE     VCPUS  RUN %  WAIT %  STEAL %  EXITS/S    PRIVATE",
            " 1  hello       runnable      2   50.0    25.0     12.5     5000  64.03 MiB",
        ]
    );
    assert!(narrow[7].starts_with(" 3  a-td-with~  "), "{}", narrow[7]);
    assert!(wide[2].contains(&"|".repeat(30)), "{}", wide[2]);
    assert!(wide[5].ends_with("LIMIT   EXITS"), "{}", wide[5]);
    assert!(wide[7].contains("a-td-with-a-long-name-0"), "{}", wide[7]);
    assert!(narrow.iter().any(|line| line.ends_with("more TDs")));
}

#[test]
fn rates_are_null_before_there_are_any() {
    let mut terminal = Terminal::default();
    terminal.send("json on\r");
    let first = terminal.json("top");
    for name in ["interval_us", "calls_per_second", "load_permille"] {
        assert_eq!(first[name], serde_json::Value::Null, "{first}");
    }
    pass(&mut terminal, 5_000_000);
    let later = terminal.json("top");
    assert_eq!(later["calls_per_second"], 100_000, "{later}");
    assert_eq!(later["packages"][0]["busy_permille"], 500);
    assert_eq!(later["tds"][0]["rates"]["run_permille"], 500);
    assert_eq!(
        terminal.json("td show hello")["rates"]["exits_per_second"],
        5000
    );
    let stats = terminal.json("stats hello");
    assert_eq!(stats["rates"]["steal_permille"], 125);
    assert_eq!(stats["exits"][0]["what"], "TDVMCALLs");
    assert_eq!(terminal.json("host")["load_permille"], 750);
}

#[test]
fn the_host_says_which_machine_it_is() {
    let mut terminal = Terminal::default();
    pass(&mut terminal, 5_000_000);
    let host = terminal.run("host");
    for line in [
        "UUID           00112233-4455-6677-8899-aabbccddeeff\r\n",
        "serial number  0123456789\r\n",
        "firmware       -\r\n",
        "uptime         00:01:06\r\n",
        "time           2026-11-25 23:59:59 UTC\r\n",
        "load           0.75 on 3 CPUs\r\n",
    ] {
        assert!(host.contains(line), "{line}: {host}");
    }
}

#[test]
fn the_trail_has_every_action_with_its_td_and_outcome_and_no_text() {
    let mut terminal = Terminal::default();
    for line in [
        "version",
        "td list",
        "td pause hello",
        "td dump 1 0x1000",
        "td type hello secret",
        "td destroy smp --dynamic",
        "td start fred",
        "td shrink hello",
        "mem peek 0xfffffffffffc0",
        "log debug",
    ] {
        terminal.run(line);
    }
    let trail = terminal.machine.trail.borrow();
    let said: Vec<String> = trail
        .iter()
        .map(|event| {
            let td = event.td.map(|td| format!("{td}: ")).unwrap_or_default();
            td + &event.what
        })
        .collect();
    assert_eq!(
        said,
        [
            "1: td pause hello",
            "1: td dump 1 4096",
            "1: td type hello ...",
            "2: td destroy smp --dynamic",
            "td start fred: no-such-td",
            "mem peek 4503599627370432: invalid-argument",
            "log debug",
        ]
        .map(|line| line.to_string())
    );
    drop(trail);
    terminal.send("json on\r");
    let events = terminal.json("events 5");
    assert_eq!(events["events"][0]["number"], 6, "{events}");
    assert_eq!(events["last"], 7);
}
