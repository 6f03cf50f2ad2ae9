//! Tests of the console's lock: nobody gets in without the password, and nobody keeps its owner out.

use alloc::{format, string::String, vec::Vec};

use super::{PROMPT, Terminal};
use crate::{
    host::PowerAction,
    lock::{FREE, IDLE_US, LONGEST_US},
};

const RIGHT: &str = "correct horse";

fn locked() -> Terminal {
    let mut terminal = Terminal::default();
    terminal.machine.password = Some(RIGHT);
    terminal
}

fn unlock(terminal: &mut Terminal, password: &str) -> String {
    terminal.send(format!("unlock\r{password}\r"))
}

#[test]
fn without_the_password_reading_works_and_nothing_else() {
    let mut terminal = locked();
    for line in ["version", "td list", "dmesg", "top | memory", "history"] {
        assert!(!terminal.run(line).contains("error: "), "{line}");
    }
    for line in [
        "reboot",
        "td start hello",
        "td console hello",
        "log debug",
        "td type hello x",
    ] {
        assert_eq!(
            terminal.run(line),
            "error: the console is locked; \"unlock\" takes the password\r\n",
            "{line}"
        );
    }
    assert_eq!(terminal.machine.requested, None);
    assert_eq!(*terminal.machine.tds.done.borrow(), [""; 0]);
    assert_eq!(*terminal.machine.tds.typed.borrow(), b"");
}

#[test]
fn the_password_opens_the_console_until_it_is_locked_again() {
    let mut terminal = locked();
    let out = unlock(&mut terminal, RIGHT);
    assert_eq!(
        out,
        "unlock\r\nPassword: \r\nThe console is open.\r\nseamark> "
    );
    assert!(!terminal.run("td pause hello").contains("error: "));
    terminal.run("lock");
    assert!(terminal.run("reboot").contains("is locked"));
    unlock(&mut terminal, RIGHT);
    terminal.run("reboot");
    assert_eq!(terminal.machine.requested, Some(PowerAction::Reboot));
}

#[test]
fn a_password_is_shown_and_kept_nowhere() {
    let mut terminal = locked();
    let mut all = String::new();
    for password in ["hunter2", "hunter2\x7f3", RIGHT] {
        all += &unlock(&mut terminal, password);
    }
    all += &terminal.send("unlock\rhun");
    let mut out = String::new();
    terminal.console.notice("a record of the log", &mut out);
    all += &out;
    assert!(
        all.ends_with("a record of the log\r\nPassword: "),
        "{all:?}"
    );
    all += &terminal.send("\x03");
    all += &terminal.run("history");
    all += &terminal.send("\x1b[A\x1b[A\x03");
    all += &terminal.run("events");
    assert!(!all.contains("hun") && !all.contains("horse"), "{all}");
    assert!(all.contains("  unlock: wrong-password\r\n"), "{all}");
}

#[test]
fn a_script_unlocks_with_two_lines_and_gets_two_answers() {
    let mut terminal = locked();
    terminal.send("json on\r");
    assert_eq!(terminal.json("reboot")["code"], "locked");
    assert_eq!(terminal.json("unlock")["state"], "asks");
    let wrong = terminal.json("nonsense");
    assert_eq!(
        (&wrong["cmd"], &wrong["code"]),
        (&"unlock".into(), &"wrong-password".into())
    );
    assert_eq!(terminal.json("unlock")["state"], "asks");
    assert_eq!(terminal.send("\r\n"), "", "a blank line has no reply");
    assert_eq!(terminal.json(RIGHT)["state"], "open");
    assert_eq!(terminal.json("reboot")["ok"], true);
}

#[test]
fn a_console_without_a_password_is_not_locked() {
    let mut terminal = Terminal::default();
    assert!(terminal.run("unlock").contains("has no password"));
    assert!(!terminal.run("td pause hello").contains("error: "));
}

#[test]
fn a_console_that_is_left_open_locks_itself() {
    let mut terminal = locked();
    unlock(&mut terminal, RIGHT);
    terminal.send("td console hello\r");
    let now = &terminal.machine.now_us;
    now.set(now.get() + IDLE_US);
    assert_eq!(
        terminal.send("rm -r /\r"),
        format!(
            "\x18\r\n{PROMPT}m -r /\r\nerror: unknown command \"m\"; \"help\" lists the commands\r\n{PROMPT}"
        )
    );
    assert_eq!(*terminal.machine.tds.typed.borrow(), b"");
    assert!(terminal.run("reboot").contains("is locked"));
}

/// A guesser gets one of ten thousand passwords compared in half a minute; the host answers all the while, and
/// the owner, whenever he comes, waits half a minute at most.
#[test]
fn ten_thousand_wrong_passwords_let_nobody_in_and_keep_the_owner_out_for_half_a_minute() {
    let mut terminal = locked();
    terminal.send("json on\r");
    let start = terminal.machine.now_us.get();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut longest = 0;
    for guess in 0..10_000_u32 {
        terminal.json("unlock");
        let reply = terminal.json(&format!("guess {guess}"));
        assert_eq!(reply["ok"], false, "{reply}");
        assert!(
            ["wrong-password", "too-early"].contains(&reply["code"].as_str().unwrap()),
            "{reply}"
        );
        assert_eq!(terminal.json("reboot")["code"], "locked");
        assert_eq!(terminal.json("td list")["ok"], true, "the host goes on");
        // He tries again after up to 8 s, sometimes at once.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let now = &terminal.machine.now_us;
        now.set(now.get() + state % 8_000_000 * (state >> 63));
        // The owner comes, on a copy of this console.
        let wait = terminal.console.session.lock.delay_us(now.get());
        longest = longest.max(wait);
    }
    assert_eq!(longest, LONGEST_US);
    assert_eq!(terminal.machine.requested, None);
    let passed = terminal.machine.now_us.get() - start;
    let compared = u64::from(terminal.machine.compared);
    assert!(
        compared <= u64::from(FREE) + 6 + passed / LONGEST_US,
        "{compared} compared in {passed} us"
    );
    // And now he waits as long as he is told.
    let wait = terminal
        .console
        .session
        .lock
        .delay_us(terminal.machine.now_us.get());
    let now = &terminal.machine.now_us;
    now.set(now.get() + wait);
    terminal.json("unlock");
    assert_eq!(terminal.json(RIGHT)["state"], "open");
    assert_eq!(terminal.json("reboot")["ok"], true);
}

#[test]
fn twenty_wrong_passwords_at_once_are_compared_only_while_they_cost_nothing() {
    let mut terminal = locked();
    let out: Vec<String> = (0..20).map(|_| unlock(&mut terminal, "wrong")).collect();
    assert_eq!(terminal.machine.compared, FREE + 1);
    let said = |at: usize| out[at].split("\r\n").nth(2).unwrap();
    assert_eq!(
        said(0),
        "error: the password is wrong; \"unlock\" takes another one"
    );
    assert_eq!(
        said(3),
        "error: the password is wrong; \"unlock\" takes another one in 1 s"
    );
    assert_eq!(
        said(19),
        "error: the password was not read, because others were wrong; try again in 1 s"
    );
}
