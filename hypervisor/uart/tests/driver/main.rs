//! The driver against a modelled port of 115,200 baud, in simulated time.

mod model;

use model::{Cpu, IN, OUT, Wiring};
use uart::{Access, FIFO, Patience, finish, settle, write};

/// The shortest time in nanoseconds in which a CPU must answer another's call, by default.
const CALL_TIMEOUT_NS: u64 = 2_000_000_000;

/// Checks what holds of every run: sections are short, and none sends more than a FIFO.
fn check_sections(cpu: &Cpu) {
    assert!(cpu.most_sent.get() <= FIFO, "{} bytes", cpu.most_sent.get());
    // A call that arrives at the start of a section waits for its end.
    assert!(
        cpu.longest.get() < CALL_TIMEOUT_NS / 1000,
        "{} ns",
        cpu.longest.get()
    );
}

/// Runs the console's loop until `done`: each line of input is answered with `reply`. Returns the received bytes.
fn serve_console(
    cpu: &Cpu,
    reply: &dyn Fn(&[u8]) -> Vec<u8>,
    done: &dyn Fn(&Cpu, &[u8]) -> bool,
) -> Vec<u8> {
    let (mut received, mut line) = (Vec::new(), Vec::new());
    while !done(cpu, &received) {
        match cpu.has_room().then(|| cpu.receive()).flatten() {
            Some(b'\r') => {
                received.push(b'\r');
                write(cpu, &reply(&std::mem::take(&mut line)));
            }
            Some(byte) => {
                received.push(byte);
                line.push(byte);
            }
            None => cpu.halt(1_000),
        }
        assert!(cpu.now_us() < 600_000_000, "the console stands still");
    }
    received
}

/// A text of `len` bytes.
fn text(len: usize) -> Vec<u8> {
    (0..len).map(|i| b'a' + (i % 26) as u8).collect()
}

/// Returns the sum of the marks in the output, and the number of all other bytes.
fn marks(sent: &[u8]) -> (u64, usize) {
    let text = String::from_utf8_lossy(sent);
    let (mut lost, mut rest, mut left) = (0, text.len(), &*text);
    while let Some(start) = left.find("\r\n[") {
        let end = start + left[start..].find("]\r\n").expect("a whole mark") + 3;
        let number = left[start..end].trim_start_matches("\r\n[");
        let number: u64 = number.split(' ').next().unwrap().parse().unwrap();
        (lost, rest) = (lost + number, rest - (end - start));
        left = &left[end..];
    }
    (lost, rest)
}

#[test]
fn replies_of_64_cpus_keep_no_call_waiting_and_lose_no_input() {
    let cpu = Cpu::boot(Wiring::default()).unwrap();
    // The lengths of `cpus` as JSON with 64 CPUs, and of `dmesg` with a full ring of 128 KiB.
    let reply = |line: &[u8]| match line {
        b"json on" => text(30),
        b"cpus" => text(34 << 10),
        _ => text(200 << 10),
    };
    let script: Vec<u8> = [
        b"json on\rcpus\rdmesg\r".as_slice(),
        &b"x".repeat(IN / 2),
        b"\r",
    ]
    .concat();
    cpu.type_bytes(&script);
    let all = 30 + (34 << 10) + 2 * (200 << 10);
    let done = |cpu: &Cpu, _: &[u8]| cpu.uart.borrow().sent.len() == all;
    let received = serve_console(&cpu, &reply, &done);
    check_sections(&cpu);
    assert_eq!(received, script);
    assert_eq!((cpu.uart.borrow().lost_input, cpu.lost()), (0, 0));
    // The line is the limit: 115,200 baud is 11,520 bytes a second.
    assert!(
        cpu.now_us() < all as u64 * 1_000_000 / 11_500 + 200_000,
        "{} us",
        cpu.now_us()
    );
}

#[test]
fn a_transmitter_that_stalls_for_a_minute_comes_back() {
    let stalled = 2_000_000..62_000_000;
    let cpu = Cpu::boot(Wiring {
        stalled: stalled.clone(),
        ..Wiring::default()
    })
    .unwrap();
    // A request every 100 ms, answered with 1 KiB: far more than the ring holds.
    let requests = 400;
    for _ in 0..requests {
        cpu.type_bytes(b"r\r");
        let end = cpu.now_us() + 100_000;
        let done = |cpu: &Cpu, _: &[u8]| cpu.now_us() >= end;
        let received = serve_console(&cpu, &|_| text(1024), &done);
        assert_eq!(received, b"r\r");
    }
    assert!(stalled.contains(&cpu.now_us()), "{}", cpu.now_us());
    cpu.idle(stalled.end - cpu.now_us() + 10_000_000);
    check_sections(&cpu);
    let uart = cpu.uart.borrow();
    let (lost, kept) = marks(&uart.sent);
    assert!(lost > 0 && lost == cpu.lost());
    assert_eq!(lost + kept as u64, requests * 1024);
    assert_eq!((uart.lost_input, cpu.backlog()), (0, 0));
    drop(uart);
    write(&cpu, b"alive");
    cpu.idle(10_000);
    assert!(cpu.uart.borrow().sent.ends_with(b"alive"));
}

#[test]
fn a_short_stall_loses_nothing() {
    let cpu = Cpu::boot(Wiring {
        stalled: 1_000_000..1_900_000,
        ..Wiring::default()
    })
    .unwrap();
    write(&cpu, &text(OUT * 2));
    cpu.idle(20_000_000);
    assert_eq!(cpu.uart.borrow().sent, text(OUT * 2));
    assert_eq!(cpu.lost(), 0);
}

#[test]
fn a_transmitter_that_never_comes_stops_neither_the_boot_nor_the_keyboard() {
    let cpu = Cpu::boot(Wiring {
        stalled: 0..u64::MAX,
        ..Wiring::default()
    })
    .unwrap();
    let before = cpu.now_us();
    for _ in 0..100 {
        write(&cpu, b"a line of the log\r\n");
        settle(&cpu);
    }
    assert!(
        cpu.now_us() - before < 200_000,
        "{} us",
        cpu.now_us() - before
    );
    cpu.idle(2_000_000);
    let script = b"reboot\r".repeat(1000);
    cpu.type_bytes(&script);
    let wanted = script.len();
    let done = |_: &Cpu, received: &[u8]| received.len() == wanted;
    let received = serve_console(&cpu, &|_| text(1000), &done);
    check_sections(&cpu);
    assert_eq!((received, cpu.uart.borrow().lost_input), (script, 0));
    assert!(cpu.lost() > 0);
}

#[test]
fn a_receive_interrupt_that_never_comes_is_polled_for() {
    for wiring in [
        Wiring {
            interrupts: false,
            ..Wiring::default()
        },
        // The transmitter's interrupt comes at boot; the backstop finds what is received.
        Wiring {
            receive_interrupts: false,
            ..Wiring::default()
        },
    ] {
        let all_lost = !wiring.interrupts;
        let cpu = Cpu::boot(wiring).unwrap();
        assert_eq!(cpu.interrupts.get() == 0, all_lost);
        // A whole script at the speed of the line needs the polling timer; a person is slower than the backstop.
        let script = if all_lost { text(5000) } else { text(FIFO) };
        cpu.type_bytes(&script);
        let wanted = script.len();
        let done = |_: &Cpu, received: &[u8]| received.len() == wanted;
        let received = serve_console(&cpu, &|_| Vec::new(), &done);
        assert_eq!((received, cpu.uart.borrow().lost_input), (script, 0));
        write(&cpu, &text(3000));
        cpu.idle(3000 * 100 + 500_000);
        assert_eq!(cpu.uart.borrow().sent, text(3000));
        check_sections(&cpu);
    }
}

#[test]
fn a_port_that_does_not_exist_is_refused() {
    let absent = Wiring {
        exists: false,
        ..Wiring::default()
    };
    assert!(Cpu::boot(absent).is_err());
}

/// Writes a crash report of 4,000 bytes behind a full ring. Returns what was sent, and the time that it took in
/// microseconds.
fn crash(stalled: std::ops::Range<u64>) -> (String, u64) {
    let cpu = Cpu::boot(Wiring {
        stalled,
        ..Wiring::default()
    })
    .unwrap();
    cpu.section(|port| port.push(&text(OUT), 0));
    let start = cpu.now_us();
    let patience = Patience {
        silence_us: 2_000_000,
        total_us: 60_000_000,
    };
    let clock = cpu.uart.clone();
    cpu.section(|port| {
        let mut now_us = || clock.borrow().now_us();
        finish(port, patience, &mut now_us, |out| {
            let _ = writeln!(out, "\ncrash: begin");
            for _ in 0..100 {
                let _ = writeln!(out, "crash: a line of about forty bytes");
            }
            let _ = writeln!(out, "crash: end");
        });
    });
    let took = cpu.now_us() - start;
    cpu.uart.borrow_mut().finish_sending();
    let sent = String::from_utf8_lossy(&cpu.uart.borrow().sent).into_owned();
    (sent, took)
}

#[test]
fn a_crash_report_is_complete_when_the_transmitter_is_slow() {
    for stalled in [0..0, 60_000..1_900_000] {
        let (sent, _) = crash(stalled);
        assert!(sent.contains("bytes of output lost]\r\n"));
        let report = &sent[sent.find("crash: begin").expect("the report")..];
        assert_eq!(report.lines().count(), 102);
        assert!(report.ends_with("crash: end\r\n"));
    }
}

#[test]
fn a_crash_report_ends_when_the_transmitter_is_dead() {
    let (sent, took) = crash(0..u64::MAX);
    assert_eq!(sent, "");
    assert!(took < 3_000_000, "{took} us");
}
