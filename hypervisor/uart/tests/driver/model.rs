//! A serial port and the CPU that owns it, in simulated time.
//!
//! Every register access takes a microsecond. The port receives and sends at 115,200 baud. Its interrupt line is
//! edge-triggered, and is served whenever the CPU is outside of a section.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use uart::{Access, Baud, FIFO, NoPort, Port, Register, Registers};

/// Size of the rings of output and input in bytes.
pub const OUT: usize = 64 << 10;
pub const IN: usize = 16 << 10;

/// Time of one byte at 115,200 baud in nanoseconds.
const BYTE_NS: u64 = 86_806;
const ACCESS_NS: u64 = 1_000;
/// Time to copy a byte into a ring in nanoseconds.
const COPY_NS: u64 = 10;

/// The wiring of the port, and what is wrong with it.
pub struct Wiring {
    /// The interrupt line reaches the CPU.
    pub interrupts: bool,
    /// Received bytes raise the line.
    pub receive_interrupts: bool,
    /// The times in microseconds in which the transmitter sends nothing.
    pub stalled: Range<u64>,
    /// The port exists.
    pub exists: bool,
}

impl Default for Wiring {
    fn default() -> Self {
        Self {
            interrupts: true,
            receive_interrupts: true,
            stalled: 0..0,
            exists: true,
        }
    }
}

/// The hardware.
pub struct Uart {
    wiring: Wiring,
    now_ns: u64,
    transmitter: VecDeque<u8>,
    /// The time at which the first byte of the transmitter is sent.
    sent_at: u64,
    /// Everything that has left the port.
    pub sent: Vec<u8>,
    receiver: VecDeque<u8>,
    arriving: VecDeque<(u64, u8)>,
    overrun: bool,
    /// Received bytes that nobody took in time.
    pub lost_input: usize,
    interrupt_enable: u8,
    line_control: u8,
    divisor: [u8; 2],
    empty_pending: bool,
    line: bool,
    edge: bool,
    /// Bytes written to the transmitter.
    written: usize,
}

impl Uart {
    fn pass(&mut self, ns: u64) {
        self.now_ns += ns;
        let stalled =
            self.wiring.stalled.start * 1000..self.wiring.stalled.end.saturating_mul(1000);
        while !self.transmitter.is_empty() {
            if stalled.contains(&self.sent_at) {
                self.sent_at = stalled.end;
            }
            if self.sent_at > self.now_ns {
                break;
            }
            self.sent.extend(self.transmitter.pop_front());
            self.sent_at = self.sent_at.saturating_add(BYTE_NS);
            self.empty_pending |= self.transmitter.is_empty();
        }
        while let Some(&(at, byte)) = self.arriving.front()
            && at <= self.now_ns
        {
            self.arriving.pop_front();
            if self.receiver.len() < FIFO {
                self.receiver.push_back(byte);
            } else {
                self.overrun = true;
                self.lost_input += 1;
            }
        }
        self.update_line();
    }

    /// Lets everything leave that the transmitter has, unless it is stalled for ever.
    pub fn finish_sending(&mut self) {
        self.pass(FIFO as u64 * BYTE_NS);
    }

    pub fn now_us(&self) -> u64 {
        self.now_ns / 1000
    }

    fn update_line(&mut self) {
        let received = self.wiring.receive_interrupts && !self.receiver.is_empty();
        let sources = u8::from(received) | u8::from(self.empty_pending) << 1;
        let line = self.wiring.interrupts && self.interrupt_enable & sources != 0;
        self.edge |= line && !self.line;
        self.line = line;
    }

    fn is_divisor(&self) -> bool {
        self.line_control & 0x80 != 0
    }
}

/// The driver's handle of the hardware.
#[derive(Clone)]
pub struct Handle(Rc<RefCell<Uart>>);

impl Registers for Handle {
    fn read(&mut self, register: Register) -> u8 {
        let mut uart = self.0.borrow_mut();
        uart.pass(ACCESS_NS);
        if !uart.wiring.exists {
            return 0xFF;
        }
        let value = match register {
            Register::Data if uart.is_divisor() => uart.divisor[0],
            Register::InterruptEnable if uart.is_divisor() => uart.divisor[1],
            Register::Data => uart.receiver.pop_front().unwrap_or(0),
            Register::InterruptEnable => uart.interrupt_enable,
            Register::Fifo => 0xC1,
            Register::LineControl => uart.line_control,
            Register::ModemControl => 0,
            Register::LineStatus => {
                let empty = if uart.transmitter.is_empty() { 0x60 } else { 0 };
                let overrun = u8::from(std::mem::take(&mut uart.overrun)) << 1;
                u8::from(!uart.receiver.is_empty()) | overrun | empty
            }
        };
        uart.update_line();
        value
    }

    fn write(&mut self, register: Register, value: u8) {
        let mut uart = self.0.borrow_mut();
        uart.pass(ACCESS_NS);
        match register {
            Register::Data if uart.is_divisor() => uart.divisor[0] = value,
            Register::InterruptEnable if uart.is_divisor() => uart.divisor[1] = value,
            Register::Data => {
                assert!(uart.transmitter.len() < FIFO, "the transmitter overflows");
                if uart.transmitter.is_empty() {
                    uart.sent_at = uart.now_ns + BYTE_NS;
                }
                uart.transmitter.push_back(value);
                uart.empty_pending = false;
                uart.written += 1;
            }
            Register::InterruptEnable => {
                let news = value & !uart.interrupt_enable & 2 != 0;
                uart.empty_pending |= news && uart.transmitter.is_empty();
                uart.interrupt_enable = value;
            }
            Register::LineControl => uart.line_control = value,
            Register::Fifo | Register::ModemControl | Register::LineStatus => {}
        }
        uart.update_line();
    }
}

/// CPU 0 with the port, and what the test measures of it.
pub struct Cpu {
    pub uart: Rc<RefCell<Uart>>,
    port: RefCell<Port<Handle, OUT, IN>>,
    /// The time in nanoseconds of the next poll.
    poll_at: Cell<u64>,
    /// The longest section in nanoseconds.
    pub longest: Cell<u64>,
    /// The most bytes sent in one section.
    pub most_sent: Cell<usize>,
    /// Interrupts that were served.
    pub interrupts: Cell<u64>,
}

impl Cpu {
    /// Attaches the driver and finds out whether the interrupt comes, as the boot path does.
    pub fn boot(wiring: Wiring) -> Result<Self, NoPort> {
        let cpu = Self::new(wiring);
        cpu.port
            .borrow_mut()
            .attach(Handle(Rc::clone(&cpu.uart)), Baud::Rate(115_200), 0)?;
        cpu.section(Port::test_interrupt);
        (0..50_000).for_each(|_| cpu.pause());
        let works = cpu.interrupts.get() != 0;
        cpu.section(|port| port.use_interrupts(works, 0));
        cpu.poll_at.set(cpu.now_ns());
        Ok(cpu)
    }

    fn new(wiring: Wiring) -> Self {
        Self {
            uart: Rc::new(RefCell::new(Uart {
                wiring,
                now_ns: 0,
                transmitter: VecDeque::new(),
                sent_at: 0,
                sent: Vec::new(),
                receiver: VecDeque::new(),
                arriving: VecDeque::new(),
                overrun: false,
                lost_input: 0,
                interrupt_enable: 0,
                line_control: 3,
                divisor: [1, 0],
                empty_pending: false,
                line: false,
                edge: false,
                written: 0,
            })),
            port: RefCell::new(Port::new()),
            poll_at: Cell::new(u64::MAX),
            longest: Cell::new(0),
            most_sent: Cell::new(0),
            interrupts: Cell::new(0),
        }
    }

    pub fn now_ns(&self) -> u64 {
        self.uart.borrow().now_ns
    }

    /// Types `bytes` at the speed of the line.
    pub fn type_bytes(&self, bytes: &[u8]) {
        let mut uart = self.uart.borrow_mut();
        let mut at = uart.arriving.back().map_or(uart.now_ns, |last| last.0);
        for &byte in bytes {
            at += BYTE_NS;
            uart.arriving.push_back((at, byte));
        }
    }

    pub fn receive(&self) -> Option<u8> {
        self.section(|port| port.receive(self.now_us()))
    }

    pub fn has_room(&self) -> bool {
        self.section(|port| port.has_room(self.now_us()))
    }

    pub fn lost(&self) -> u64 {
        self.port.borrow().lost()
    }

    pub fn backlog(&self) -> usize {
        self.port.borrow().backlog()
    }

    /// Halts until something may have happened, for at most `us`.
    pub fn halt(&self, us: u64) {
        let end = self.now_ns() + us * 1000;
        while self.now_ns() < end && !self.serve_events() {
            // The next event of the port or the timer; a byte's time is short enough to miss none.
            let step = BYTE_NS / 4;
            self.uart.borrow_mut().pass(step);
        }
    }

    /// Runs the console's loop on an idle CPU for a time.
    pub fn idle(&self, us: u64) {
        let end = self.now_us() + us;
        while self.now_us() < end {
            self.halt(end - self.now_us());
        }
    }

    /// Serves the interrupt and the timer. Returns true if there was one.
    fn serve_events(&self) -> bool {
        let edge = std::mem::take(&mut self.uart.borrow_mut().edge);
        let poll = self.now_ns() >= self.poll_at.get();
        if edge {
            self.interrupts.set(self.interrupts.get() + 1);
        }
        if edge || poll {
            let us = self.section(|port| {
                port.serve(self.now_us());
                port.poll_us()
            });
            if self.poll_at.get() != u64::MAX {
                self.poll_at.set(self.now_ns() + us * 1000);
            }
        }
        edge || poll
    }
}

impl Access<Handle, OUT, IN> for Cpu {
    fn section<T>(&self, work: impl FnOnce(&mut Port<Handle, OUT, IN>) -> T) -> T {
        let (start, written) = (self.now_ns(), self.uart.borrow().written);
        let mut port = self.port.borrow_mut();
        let before = port.backlog();
        let result = work(&mut port);
        let copied = port.backlog().saturating_sub(before) as u64;
        self.uart.borrow_mut().pass(copied * COPY_NS);
        let sent = self.uart.borrow().written - written;
        self.longest
            .set(self.longest.get().max(self.now_ns() - start));
        self.most_sent.set(self.most_sent.get().max(sent));
        result
    }

    fn now_us(&self) -> u64 {
        self.now_ns() / 1000
    }

    fn pause(&self) {
        self.uart.borrow_mut().pass(ACCESS_NS);
        self.serve_events();
    }
}
