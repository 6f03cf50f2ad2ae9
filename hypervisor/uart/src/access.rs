//! Operations that consist of several sections.

use core::fmt;

use crate::{port::Port, registers::Registers};

/// Number of bytes that one section copies into the ring.
const CHUNK: usize = 1024;
/// Time in microseconds without progress after which [`settle`] stops waiting.
const SETTLE_US: u64 = 100_000;

/// A [`Port`] behind its owner's lock, and the clock.
pub trait Access<R, const OUT: usize, const IN: usize> {
    /// Runs `work` with exclusive access to the port and with interrupts off.
    fn section<T>(&self, work: impl FnOnce(&mut Port<R, OUT, IN>) -> T) -> T;
    /// Returns the time in microseconds.
    fn now_us(&self) -> u64;
    /// Lets a moment pass outside of any section. Interrupts that are on are served.
    fn pause(&self);
}

/// Writes all of `bytes`. A full ring is waited for while the port makes progress. Output that a stalled port does not
/// take is lost and counted.
pub fn write<R: Registers, const OUT: usize, const IN: usize>(
    access: &impl Access<R, OUT, IN>,
    mut bytes: &[u8],
) {
    while !bytes.is_empty() {
        let now_us = access.now_us();
        let (taken, stalled) = access.section(|port| {
            let taken = port.offer(&bytes[..bytes.len().min(CHUNK)], now_us);
            port.serve(now_us);
            (taken, port.is_stalled(now_us))
        });
        bytes = &bytes[taken..];
        if taken != 0 {
            continue;
        }
        if stalled {
            access.section(|port| port.push(bytes, now_us));
            return;
        }
        access.pause();
    }
}

/// Sends the waiting output, for as long as nothing else drains the ring. It stops when nothing is left, or when the
/// port has made no progress for 0.1 s; a port that stalled before costs no time.
pub fn settle<R: Registers, const OUT: usize, const IN: usize>(access: &impl Access<R, OUT, IN>) {
    loop {
        let now_us = access.now_us();
        let done = access.section(|port| {
            port.serve(now_us);
            port.backlog() == 0 || port.idle_us(now_us) >= SETTLE_US
        });
        if done {
            return;
        }
        access.pause();
    }
}

/// The bounds of a crash report, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Time without progress after which no more is sent.
    pub silence_us: u64,
    /// Time for the whole report.
    pub total_us: u64,
}

/// Size in bytes of the waiting output that a crash report sends before itself.
const KEPT: usize = 4096;

/// Sends the newest waiting output and then the text that `report` writes, without interrupts and without another
/// CPU's help. `now_us` is the clock. The report ends within its bounds whatever the port does.
pub fn finish<R: Registers, const OUT: usize, const IN: usize>(
    port: &mut Port<R, OUT, IN>,
    patience: Patience,
    now_us: &mut dyn FnMut() -> u64,
    report: impl FnOnce(&mut dyn fmt::Write),
) {
    port.cut(KEPT.min(OUT / 4));
    let end_us = now_us().saturating_add(patience.total_us);
    let mut last = Last {
        port,
        silence_us: patience.silence_us,
        end_us,
        now_us,
        given_up: false,
    };
    last.drain();
    report(&mut last);
    last.drain();
}

/// The text of a crash report on its way to the port, line by line.
struct Last<'a, R, const OUT: usize, const IN: usize> {
    port: &'a mut Port<R, OUT, IN>,
    silence_us: u64,
    end_us: u64,
    now_us: &'a mut dyn FnMut() -> u64,
    given_up: bool,
}

impl<R: Registers, const OUT: usize, const IN: usize> Last<'_, R, OUT, IN> {
    fn drain(&mut self) {
        let mut last_us = (self.now_us)();
        let mut left = self.port.backlog();
        while left != 0 && !self.given_up {
            let now_us = (self.now_us)();
            self.port.serve(now_us);
            if self.port.backlog() != left {
                (left, last_us) = (self.port.backlog(), now_us);
            }
            let silent = now_us.saturating_sub(last_us) >= self.silence_us;
            self.given_up = silent || now_us >= self.end_us;
        }
    }
}

impl<R: Registers, const OUT: usize, const IN: usize> fmt::Write for Last<'_, R, OUT, IN> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for line in text.split_inclusive('\n') {
            let (text, end) = match line.strip_suffix('\n') {
                Some(text) => (text, "\r\n"),
                None => (line, ""),
            };
            for part in text.as_bytes().chunks(OUT / 4).chain([end.as_bytes()]) {
                let now_us = (self.now_us)();
                self.port.push(part, now_us);
                self.drain();
            }
        }
        Ok(())
    }
}
