//! The serial console on COM1: bounded writes, and a queue of received bytes.
//!
//! A missing or stuck port never blocks: output is dropped after a bound. The interrupt handler moves received bytes
//! into a queue. When the queue is full, bytes stay in the port, and flow control is the sender's task.
#![expect(
    unsafe_code,
    reason = "the port's I/O addresses are claimed for this driver"
)]

use core::fmt;

use sync::{IrqGuard, IrqLock};
use uart_16550::{BaudRate, Config, Uart16550, backend::PioBackend, spec::registers::IER};

/// I/O address of COM1.
const COM1: u16 = 0x3F8;
/// The ISA interrupt of COM1.
pub const COM1_IRQ: u8 = 4;
/// Number of polls of a full transmitter before the output is dropped: about 0.1 s at 1 us a port read.
const SEND_POLLS: u32 = 100_000;
const QUEUE: usize = 4096;

static PORT: IrqLock<Port> = IrqLock::new(Port {
    uart: None,
    queue: [0; QUEUE],
    head: 0,
    len: 0,
});

/// The port and its received bytes.
pub struct Port {
    uart: Option<Uart16550<PioBackend>>,
    queue: [u8; QUEUE],
    head: usize,
    len: usize,
}

impl Port {
    /// Sends all of `bytes`, or as many as the port takes in bounded time.
    pub fn send(&mut self, mut bytes: &[u8]) {
        let Some(uart) = &mut self.uart else { return };
        let mut polls = 0;
        while !bytes.is_empty() && polls < SEND_POLLS {
            let sent = uart.send_bytes(bytes);
            bytes = &bytes[sent..];
            polls = if sent == 0 { polls + 1 } else { 0 };
            core::hint::spin_loop();
        }
        if !bytes.is_empty() {
            // Nothing drains this port: later lines do not wait for it again.
            self.uart = None;
        }
    }

    fn drain(&mut self) {
        let Some(uart) = &mut self.uart else { return };
        while self.len < QUEUE {
            let Ok(byte) = uart.try_receive_byte() else {
                return;
            };
            self.queue[(self.head + self.len) % QUEUE] = byte;
            self.len += 1;
        }
    }
}

impl fmt::Write for Port {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for line in s.split_inclusive('\n') {
            match line.strip_suffix('\n') {
                Some(text) => {
                    self.send(text.as_bytes());
                    self.send(b"\r\n");
                }
                None => self.send(line.as_bytes()),
            }
        }
        Ok(())
    }
}

/// Finds the port and sets it to 115200 baud, 8N1. Without a port, output is discarded.
pub fn init() {
    // SAFETY: nothing else in this program uses these I/O addresses.
    let uart = unsafe { Uart16550::new_port(COM1) };
    let mut port = PORT.lock();
    port.uart = uart.ok().and_then(|mut uart| {
        let config = Config {
            baud_rate: BaudRate::Baud115200,
            ..Config::DEFAULT
        };
        uart.init(config).ok().map(|()| uart)
    });
}

/// Locks the port for a whole line.
pub fn port() -> IrqGuard<'static, Port> {
    PORT.lock()
}

/// Locks the port if it is free, for handlers that may have interrupted its holder.
pub fn try_port() -> Option<IrqGuard<'static, Port>> {
    PORT.try_lock()
}

/// Enables the interrupt for received bytes.
pub fn enable_receive_interrupt() {
    if let Some(uart) = &mut port().uart {
        uart.enable_interrupts(IER::DATA_READY);
    }
}

/// Moves received bytes into the queue. The interrupt handler calls it.
pub fn on_interrupt() {
    port().drain();
}

/// Returns true if received bytes are waiting.
pub fn has_input() -> bool {
    let mut port = port();
    port.drain();
    port.len != 0
}

/// The port for bytes that go to a terminal unchanged.
pub struct Terminal;

impl fmt::Write for Terminal {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        port().send(s.as_bytes());
        Ok(())
    }
}

/// Takes the next received byte.
pub fn receive() -> Option<u8> {
    let mut port = port();
    if port.len == 0 {
        port.drain();
    }
    if port.len == 0 {
        return None;
    }
    let byte = port.queue[port.head];
    port.head = (port.head + 1) % QUEUE;
    port.len -= 1;
    Some(byte)
}

/// The port without its lock, for a crash report whose CPU can't get it.
pub struct Raw;

impl fmt::Write for Raw {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        // SAFETY: the port's holder no longer runs; at worst its last bytes are mixed with these.
        let Ok(mut uart) = (unsafe { Uart16550::new_port(COM1) }) else {
            return Ok(());
        };
        for byte in s.bytes() {
            let mut polls = 0;
            while uart.try_send_byte(byte).is_err() && polls < SEND_POLLS {
                polls += 1;
            }
        }
        Ok(())
    }
}
