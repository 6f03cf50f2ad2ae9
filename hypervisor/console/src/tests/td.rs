//! Tests of the commands about TDs, on TDs of plain data.

use alloc::{format, string::String};

use super::{PROMPT, Terminal};
use crate::host::td::TdState;

#[test]
fn a_td_is_named_by_its_number_or_its_name() {
    let mut terminal = Terminal::default();
    for line in ["td pause hello", "td pause 1"] {
        assert_eq!(terminal.run(line), "TD 1 hello is paused.\r\n");
    }
    assert_eq!(*terminal.machine.tds.done.borrow(), ["pause 1", "pause 1"]);
    for line in [
        "td pause 0",
        "td pause 3",
        "td pause 4294967297",
        "td pause he",
    ] {
        let reply = terminal.run(line);
        assert!(reply.starts_with("error: there is no TD "), "{reply}");
    }
    assert_eq!(terminal.machine.tds.done.borrow().len(), 2);
}

#[test]
fn the_list_tells_each_td_in_a_line() {
    let reply = Terminal::default().run("td list");
    assert_eq!(
        reply,
        "TD  NAME   STATE     HKID  VCPUS    PRIVATE   LIMIT  PROBLEM\r\n \
         1  hello  runnable    65      2  64.03 MiB  64 MiB\r\n \
         2  smp    created      -      2        0 B  64 MiB\r\n"
    );
}

#[test]
fn a_termination_is_reported_with_pages_phases_and_calls() {
    let mut terminal = Terminal::default();
    let reply = terminal.run("td destroy --dynamic hello");
    assert_eq!(*terminal.machine.tds.done.borrow(), ["destroy --dynamic 1"]);
    for part in [
        "TD 1 hello is reclaimed.\r\nIt had 64.03 MiB of private memory: 31 of 2 MiB, 520 of 4 KiB, 4 of S-EPT.",
        "PHASE        TIME  CPU TIME  SEAMCALLS",
        "reclaim  1.500 ms  2.000 ms          3",
        "clear           -    500 us          0",
        "all      1.500 ms  2.500 ms          3",
        "TDH.MNG.VPFLUSHDONE      1",
    ] {
        assert!(reply.contains(part), "{reply}");
    }
}

#[test]
fn reclaim_tells_how_far_it_is() {
    let mut terminal = Terminal::default();
    assert_eq!(terminal.run("reclaim"), "No memory is being reclaimed.\r\n");
    terminal.run("td terminate hello");
    assert_eq!(
        terminal.run("reclaim"),
        "TD 1 hello: 16 MiB of 64 MiB back (25 %), 1 GiB/s, 8 SEAMCALLs, 15.625 ms so far, 46.875 ms left\r\n"
    );
}

#[test]
fn a_machine_without_tds_says_so() {
    let mut terminal = Terminal::default();
    terminal.machine.without_tdx = true;
    let why = "no TD can run here: TDX is unavailable; \"tdx\" says why";
    let list = terminal.run("td list");
    assert!(
        list.contains("hello  created     -      2      0 B  64 MiB") && list.contains(why),
        "{list}"
    );
    let shown = terminal.run("td show hello");
    assert!(shown.contains(why), "{shown}");
    for command in [
        "create",
        "start",
        "pause",
        "resume",
        "terminate",
        "destroy",
        "retry",
        "reset",
    ] {
        let reply = terminal.run(&format!("td {command} hello"));
        assert_eq!(reply, format!("error: {why}\r\n"), "{command}");
    }
}

#[test]
fn a_td_s_console_is_shown_and_typed_on_until_ctrl_bracket() {
    let mut terminal = Terminal::default();
    let out = terminal.send("td console hello\r");
    assert!(
        out.ends_with("Ctrl-], or Enter ~ . as in ssh, detaches.\r\nHello from a TD\r\n"),
        "{out:?}"
    );
    assert_eq!(terminal.console.watched(), Some(1));
    assert!(!terminal.console.has_news(&terminal.machine));
    assert_eq!(terminal.send("ls\r\x03\x1b[A"), "");
    assert_eq!(*terminal.machine.tds.typed.borrow(), b"ls\r\x03\x1b[A");

    terminal
        .machine
        .tds
        .output
        .borrow_mut()
        .extend(b"more\x1b[m");
    assert!(terminal.console.has_news(&terminal.machine));
    let mut out = String::new();
    terminal.console.notice("a record of the log", &mut out);
    terminal.console.refresh(&terminal.machine, &mut out);
    assert_eq!(out, "more\x1b[m");

    assert_eq!(terminal.send("\x1d"), "\x18\r\nseamark> ");
    assert_eq!(terminal.console.watched(), None);
    assert!(terminal.send("version\r").ends_with(PROMPT));
}

#[test]
fn a_td_s_console_is_left_without_ctrl_bracket_too() {
    let mut terminal = Terminal::default();
    terminal.send("td console hello\r");
    terminal.send("cd ~.\r~~x\r~y\r");
    assert_eq!(terminal.console.watched(), Some(1));
    assert_eq!(*terminal.machine.tds.typed.borrow(), b"cd ~.\r~x\r~y\r");
    assert_eq!(terminal.send("~."), "\x18\r\nseamark> ");
    assert_eq!(terminal.console.watched(), None);
}

#[test]
fn the_console_of_a_td_that_does_not_run_says_that_it_takes_no_input() {
    for state in TdState::ALL {
        let mut terminal = Terminal::default();
        terminal.machine.tds.state.replace(state);
        let out = terminal.send("td console hello\r");
        let says = format!(
            "TD hello, which is {} and takes no input; Ctrl-]",
            state.in_words()
        );
        assert_eq!(!out.contains(&says), state == TdState::Runnable, "{out}");
    }
}

#[test]
fn arguments_are_checked_before_the_td() {
    let mut terminal = Terminal::default();
    let too_many = "error: BYTES must be 1 to 4096, but is 5000\r\n";
    assert_eq!(terminal.run("td dump hello 0 5000"), too_many);
    assert_eq!(terminal.run("td dump nobody 0 5000"), too_many);
    assert!(
        terminal
            .run("td dump hello 0 0")
            .starts_with("error: BYTES must be 1 to 4096")
    );
    terminal.machine.without_tdx = true;
    assert_eq!(terminal.run("td dump hello 0 5000"), too_many);
}

#[test]
fn one_of_a_thing_is_not_several() {
    let mut terminal = Terminal::default();
    terminal.machine.tds.batches.set(1);
    assert!(
        terminal
            .run("td shrink hello 4M")
            .contains(", in 1 batch, ")
    );
    terminal.machine.tds.batches.set(3);
    assert!(
        terminal
            .run("td shrink hello 4M")
            .contains(", in 3 batches, ")
    );
}

#[test]
fn the_beginning_of_a_character_is_news_once() {
    let mut terminal = Terminal::default();
    terminal.send("td console hello\r");
    let write = |terminal: &Terminal, bytes: &[u8]| {
        terminal.machine.tds.output.borrow_mut().extend(bytes);
    };
    let refresh = |terminal: &mut Terminal| {
        assert!(terminal.console.has_news(&terminal.machine));
        let mut out = String::new();
        terminal.console.refresh(&terminal.machine, &mut out);
        assert!(!terminal.console.has_news(&terminal.machine));
        out
    };
    write(&terminal, b"caf\xC3");
    assert_eq!(refresh(&mut terminal), "caf");
    write(&terminal, b"\xA9");
    assert_eq!(refresh(&mut terminal), "\u{e9}");
}

#[test]
fn a_script_reads_a_td_s_console_piece_by_piece() {
    let mut terminal = Terminal::default();
    terminal.send("json on\r");
    let first = terminal.json("td console hello");
    assert_eq!(first["output"], "Hello from a TD\r\n");
    assert_eq!(first["next"], 17);
    assert_eq!(first["began"], 0);
    assert_eq!(terminal.json("td console 1 11")["output"], "a TD\r\n");
    assert_eq!(terminal.console.watched(), None);
}

#[test]
fn the_port_for_scripts_has_bytes_of_its_own() {
    let mut terminal = Terminal::default();
    terminal.send("json on\r");
    assert_eq!(terminal.json("td script hello")["output"], "scripts");
    assert_eq!(terminal.json(r"td send hello uptime\n")["bytes"], 7);
    assert_eq!(*terminal.machine.tds.sent.borrow(), b"uptime\n");
    assert!(terminal.machine.tds.typed.borrow().is_empty());
    terminal.send("json off\r");
    let out = terminal.send("td script hello\r");
    assert!(out.contains("Script port of TD hello"), "{out}");
}

#[test]
fn a_script_can_tell_what_a_td_said_in_its_present_life() {
    let mut terminal = Terminal::default();
    terminal.send("json on\r");
    let tds = &terminal.machine.tds;
    tds.output
        .borrow_mut()
        .extend(b"\r\n[started anew]\r\nHello again\r\n");
    tds.began.set(17);
    let all = terminal.json("td console hello");
    assert_eq!((&all["began"], &all["from"]), (&17.into(), &0.into()));
    let now = terminal.json("td console hello 17");
    assert_eq!((&now["began"], &now["from"]), (&17.into(), &17.into()));
    assert_eq!(now["output"], "\r\n[started anew]\r\nHello again\r\n");
}

#[test]
fn tab_knows_the_tds() {
    let mut terminal = Terminal::default();
    assert_eq!(terminal.send("td sta\thel\t"), "td start hello ");
}
