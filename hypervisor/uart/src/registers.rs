//! The port's registers and their bits.

/// Size of a 16550's FIFO in bytes.
pub const FIFO: usize = 16;

/// A register, as the number that selects it.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// The next received byte; writes send a byte. With the divisor selected, its low byte.
    Data = 0,
    /// Interrupt enable. With the divisor selected, its high byte.
    InterruptEnable = 1,
    /// Interrupt identification when read, FIFO control when written.
    Fifo = 2,
    /// Line control.
    LineControl = 3,
    /// Modem control.
    ModemControl = 4,
    /// Line status.
    LineStatus = 5,
}

/// Access to the registers of one port.
pub trait Registers {
    /// Reads a register. A port that does not exist reads as 0xFF.
    fn read(&mut self, register: Register) -> u8;
    /// Writes a register.
    fn write(&mut self, register: Register, value: u8);
}

/// Bits of [`Register::InterruptEnable`].
pub mod interrupt_enable {
    /// Received bytes interrupt.
    pub const RECEIVED: u8 = 1 << 0;
    /// An empty transmitter interrupts.
    pub const EMPTY: u8 = 1 << 1;
    /// All four sources.
    pub const ALL: u8 = 0x0F;
}

/// Bits of [`Register::Fifo`].
pub mod fifo {
    /// Written: the FIFOs are used, and 8 received bytes interrupt. Bytes in them are kept.
    pub const ENABLE: u8 = 0x81;
    /// Read: both bits are set if the FIFOs are used and work.
    pub const WORKS: u8 = 0xC0;
}

/// Bits of [`Register::LineControl`].
pub mod line_control {
    /// 8 data bits, no parity, 1 stop bit.
    pub const EIGHT_N_ONE: u8 = 0x03;
    /// The first two registers are the divisor.
    pub const DIVISOR: u8 = 1 << 7;
}

/// Bits of [`Register::ModemControl`].
pub mod modem_control {
    /// Data terminal ready, request to send, and the output that connects the interrupt on a PC.
    pub const READY: u8 = 0x0B;
}

/// Bits of [`Register::LineStatus`].
pub mod line_status {
    /// A received byte waits.
    pub const RECEIVED: u8 = 1 << 0;
    /// Received bytes were lost because nobody took them in time.
    pub const OVERRUN: u8 = 1 << 1;
    /// The transmitter's FIFO is empty.
    pub const EMPTY: u8 = 1 << 5;
    /// The transmitter has sent everything.
    pub const IDLE: u8 = 1 << 6;
    /// The value of a port that does not exist.
    pub const ABSENT: u8 = 0xFF;
}
