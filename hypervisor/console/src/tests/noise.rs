//! Noise on the line: any bytes, keys and words.

use alloc::vec;

use proptest::prelude::*;

use super::{PROMPT, Terminal};

/// Checks that Ctrl-C and Enter lead back to a working prompt in either mode, whatever was sent before.
fn still_works(terminal: &mut Terminal) {
    terminal.send("\x1d\x03\r");
    let out = terminal.send("json off\rversion\r");
    assert!(
        out.ends_with(PROMPT) && out.contains("\r\nseamark   0.1.0\r\n"),
        "{out:?}"
    );
}

#[test]
fn a_hundred_thousand_random_bytes_leave_a_working_prompt() {
    let mut terminal = Terminal::default();
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    for _ in 0..100_000 {
        // xorshift64: the same bytes in every run.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        terminal.send([state.to_le_bytes()[3]]);
    }
    still_works(&mut terminal);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_leave_a_working_prompt(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let mut terminal = Terminal::default();
        terminal.send(bytes);
        still_works(&mut terminal);
    }

    #[test]
    fn any_words_and_keys_leave_a_working_prompt(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "json on", "json off", "td console hello", "\x1d", "mem", " peek", " 0x40", "help", "\t", "\r", "\n", "\x1b[A", "\x1b[B", "\x1b[D",
                "\x1b[", "\x1b", "\x03", "\x0c", "\x15", "\x17", "\x01", "\x7f", "history", "clear", "dmesg", "é", "0",
            ]),
            0..300,
        )
    ) {
        let mut terminal = Terminal::default();
        terminal.send(parts.concat());
        still_works(&mut terminal);
    }

    #[test]
    fn in_json_mode_every_line_is_answered_by_one_object(lines in prop::collection::vec("[ -~]{0,60}[!-~]", 0..40)) {
        let mut terminal = Terminal::default();
        terminal.send("json on\r");
        for line in lines {
            terminal.json(&line);
        }
    }
}
