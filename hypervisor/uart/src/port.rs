//! The port: what one section with interrupts off does.

use crate::{
    output::Output,
    registers::{FIFO, Register, Registers, fifo, interrupt_enable, line_status},
    ring::Ring,
    setup::{Baud, NoPort, set_up},
};

/// Time in microseconds without progress after which a transmitter counts as stalled. Writers do not wait for it then.
const STALL_US: u64 = 1_000_000;
/// Bounds in microseconds of the polling interval: a shorter one would take too much of a CPU, a longer one would be
/// felt at the keyboard.
const POLL_US: core::ops::RangeInclusive<u64> = 500..=10_000;
/// Interval in microseconds at which a port is polled although its interrupts come, in case one is lost.
const BACKSTOP_US: u64 = 250_000;

/// A serial port with rings of `OUT` bytes of output and `IN` bytes of input. Output may be added before there is a
/// port.
#[derive(Debug)]
pub struct Port<R, const OUT: usize, const IN: usize> {
    wire: Option<Wire<R>>,
    output: Output<OUT>,
    input: Ring<IN>,
    /// The time of the last byte sent, or at which output began to wait.
    progress_us: u64,
    overruns: u64,
}

#[derive(Debug)]
struct Wire<R> {
    registers: R,
    /// Number of bytes that an empty transmitter takes.
    depth: usize,
    /// Time in microseconds that the transmitter needs for them.
    fifo_us: u64,
    /// True if the port's interrupts are used.
    interrupts: bool,
}

impl<R, const OUT: usize, const IN: usize> Default for Port<R, OUT, IN> {
    fn default() -> Self {
        Self::new()
    }
}

impl<R, const OUT: usize, const IN: usize> Port<R, OUT, IN> {
    /// Creates the rings, without a port.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            wire: None,
            output: Output::new(),
            input: Ring::new(),
            progress_us: 0,
            overruns: 0,
        }
    }

    /// Returns the number of bytes that wait to be sent.
    #[must_use]
    pub const fn backlog(&self) -> usize {
        self.output.len()
    }

    /// Returns the number of output bytes that were lost.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.output.lost()
    }

    /// Returns how often received bytes were lost because nobody took them in time.
    #[must_use]
    pub const fn overruns(&self) -> u64 {
        self.overruns
    }

    /// Returns true if output waits, and the port does not take any: it has not for a second, or there is no port.
    #[must_use]
    pub fn is_stalled(&self, now_us: u64) -> bool {
        !self.output.is_empty()
            && (self.wire.is_none() || now_us.saturating_sub(self.progress_us) >= STALL_US)
    }

    /// Returns true if more work that produces output may begin: at most half of the ring is in use, or the port is
    /// stalled, and what does not fit is lost.
    #[must_use]
    pub fn has_room(&self, now_us: u64) -> bool {
        self.output.len() <= OUT / 2 || self.is_stalled(now_us)
    }

    /// Returns the microseconds since the last progress.
    pub(crate) const fn idle_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.progress_us)
    }

    /// Adds output. What does not fit is lost.
    pub fn push(&mut self, bytes: &[u8], now_us: u64) {
        self.begin(now_us);
        self.output.push(bytes);
    }

    /// Adds as much of the output as fits, and returns the number of bytes.
    pub fn offer(&mut self, bytes: &[u8], now_us: u64) -> usize {
        self.begin(now_us);
        self.output.offer(bytes)
    }

    /// Drops the oldest waiting output but `keep` bytes.
    pub fn cut(&mut self, keep: usize) {
        self.output.cut(keep);
    }

    const fn begin(&mut self, now_us: u64) {
        if self.output.is_empty() {
            self.progress_us = now_us;
        }
    }
}

impl<R: Registers, const OUT: usize, const IN: usize> Port<R, OUT, IN> {
    /// Takes a port into use, at first without its interrupts.
    ///
    /// # Errors
    /// [`NoPort`]; nothing is attached then.
    pub fn attach(&mut self, mut registers: R, baud: Baud, now_us: u64) -> Result<(), NoPort> {
        let (depth, fifo_us) = set_up(&mut registers, baud)?;
        self.progress_us = now_us;
        self.wire = Some(Wire {
            registers,
            depth,
            fifo_us,
            interrupts: false,
        });
        Ok(())
    }

    /// Takes a port into use that is set up already, for a crash report whose CPU can't get the port's owner.
    pub fn take_over(&mut self, mut registers: R, now_us: u64) {
        let works = registers.read(Register::Fifo) & fifo::WORKS == fifo::WORKS;
        self.progress_us = now_us;
        self.wire = Some(Wire {
            registers,
            depth: if works { FIFO } else { 1 },
            fifo_us: 0,
            interrupts: false,
        });
    }

    /// Makes a working port interrupt once, without further effect. A port whose interrupt then does not come must be
    /// polled.
    pub fn test_interrupt(&mut self) {
        if let Some(wire) = &mut self.wire {
            wire.interrupt_on(interrupt_enable::EMPTY);
        }
    }

    /// Uses the port's interrupts from now on, or does not.
    pub fn use_interrupts(&mut self, on: bool, now_us: u64) {
        if let Some(wire) = &mut self.wire {
            wire.interrupts = on;
        }
        self.serve(now_us);
    }

    /// Returns the time in microseconds after which the port must be served although no interrupt came. Until then a
    /// port without interrupts receives less than its FIFO holds.
    #[must_use]
    pub fn poll_us(&self) -> u64 {
        match &self.wire {
            Some(wire) if !wire.interrupts => {
                (wire.fifo_us * 3 / 4).clamp(*POLL_US.start(), *POLL_US.end())
            }
            _ => BACKSTOP_US,
        }
    }

    /// Takes all received bytes and gives an empty transmitter its next bytes, at most [`FIFO`]. Returns true if
    /// received bytes are waiting for [`Self::receive`].
    pub fn serve(&mut self, now_us: u64) -> bool {
        if let Some(wire) = &mut self.wire {
            let status = wire.receive(&mut self.input, &mut self.overruns);
            if status & line_status::EMPTY != 0 && wire.send(&mut self.output) {
                self.progress_us = now_us;
            }
            let mut sources = 0;
            if wire.interrupts && self.input.free() != 0 {
                sources |= interrupt_enable::RECEIVED;
            }
            if wire.interrupts && !self.output.is_empty() {
                sources |= interrupt_enable::EMPTY;
            }
            wire.interrupt_on(sources);
        }
        !self.input.is_empty()
    }

    /// Takes the next received byte.
    pub fn receive(&mut self, now_us: u64) -> Option<u8> {
        if self.input.is_empty() || self.input.free() == 0 {
            // A full ring may have left bytes, and the interrupt for more, in the port.
            let byte = self.input.pop();
            self.serve(now_us);
            return byte.or_else(|| self.input.pop());
        }
        self.input.pop()
    }
}

impl<R: Registers> Wire<R> {
    /// Moves received bytes into `input` while there is room. Returns the last line status, or 0 without a port.
    fn receive<const N: usize>(&mut self, input: &mut Ring<N>, overruns: &mut u64) -> u8 {
        loop {
            let status = self.registers.read(Register::LineStatus);
            if status == line_status::ABSENT {
                return 0;
            }
            if status & line_status::OVERRUN != 0 {
                *overruns += 1;
            }
            if status & line_status::RECEIVED == 0 || input.free() == 0 {
                return status;
            }
            input.push(&[self.registers.read(Register::Data)]);
        }
    }

    /// Fills an empty transmitter. Returns true if it got anything.
    fn send<const N: usize>(&mut self, output: &mut Output<N>) -> bool {
        let mut sent = 0;
        while sent < self.depth
            && let Some(byte) = output.pop()
        {
            self.registers.write(Register::Data, byte);
            sent += 1;
        }
        sent != 0
    }

    /// Sets the sources that interrupt. The line goes down in between: it is edge-triggered on a PC, and a source that
    /// is active already would otherwise never interrupt again.
    fn interrupt_on(&mut self, sources: u8) {
        self.registers.write(Register::InterruptEnable, 0);
        if sources != 0 {
            self.registers.write(Register::InterruptEnable, sources);
        }
    }
}
