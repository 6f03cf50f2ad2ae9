//! A 16550 serial port. It transmits immediately and receives into a FIFO of 16 bytes.
//!
//! Source: PC16550D data sheet, section 8 (registers).

use core::ops::Range;

use td_base::board;

use crate::{Device, Effect, Now, Place};

/// The first port of COM1.
pub const BASE: u16 = board::SERIAL;
/// The ports of COM1.
pub const PORTS: Range<u64> = BASE as u64..BASE as u64 + 8;
/// COM1's interrupt line.
const LINE: u8 = board::SERIAL_INTERRUPT;

/// Size of the receive FIFO in bytes.
const FIFO: usize = 16;

/// Interrupt enable: data received, transmitter empty.
const ENABLE_RECEIVED: u8 = 1 << 0;
const ENABLE_EMPTY: u8 = 1 << 1;
/// Interrupt identification, with the FIFOs enabled.
const ID_NONE: u8 = 0xC1;
const ID_EMPTY: u8 = 0xC2;
const ID_RECEIVED: u8 = 0xC4;
/// FIFO control: clear the receive FIFO.
const CLEAR_RECEIVER: u8 = 1 << 1;
/// Line control: the divisor latch replaces the first two registers.
const DIVISOR_LATCH: u8 = 1 << 7;
/// Modem control: loopback. Transmitted bytes are received.
const LOOPBACK: u8 = 1 << 4;
/// Line status: data ready, overrun, transmitter empty and idle.
const DATA_READY: u8 = 1 << 0;
const OVERRUN: u8 = 1 << 1;
const TRANSMITTER_EMPTY: u8 = 1 << 5 | 1 << 6;
/// Modem status: data carrier detect, data set ready, clear to send.
const CONNECTED: u8 = 1 << 7 | 1 << 5 | 1 << 4;

/// The serial port.
#[derive(Debug)]
pub struct Uart {
    received: arrayvec::ArrayVec<u8, FIFO>,
    overrun: bool,
    empty_pending: bool,
    enable: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: u16,
    /// Level of the interrupt line that was reported last.
    raised: bool,
}

impl Default for Uart {
    /// Returns the reset state: 9600 baud, all interrupts disabled.
    fn default() -> Self {
        Self {
            received: arrayvec::ArrayVec::new(),
            overrun: false,
            empty_pending: false,
            enable: 0,
            line_control: 3,
            modem_control: 0,
            scratch: 0,
            divisor: 12,
            raised: false,
        }
    }
}

impl Uart {
    /// Returns whether another byte can be received without loss.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.received.len() < FIFO
    }

    /// Receives a byte. It is lost if the FIFO is full.
    pub fn receive(&mut self, byte: u8) {
        if self.received.try_push(byte).is_err() {
            self.overrun = true;
        }
    }

    /// Returns the interrupt line and its level, if the level has changed since the last call.
    pub fn line_change(&mut self) -> Option<(u8, bool)> {
        let raised = self.is_received_pending() || self.is_empty_pending();
        let was_raised = core::mem::replace(&mut self.raised, raised);
        (raised != was_raised).then_some((LINE, raised))
    }

    const fn is_latch_open(&self) -> bool {
        self.line_control & DIVISOR_LATCH != 0
    }

    fn take(&mut self) -> u8 {
        if self.received.is_empty() {
            0
        } else {
            self.received.remove(0)
        }
    }

    fn is_received_pending(&self) -> bool {
        self.enable & ENABLE_RECEIVED != 0 && !self.received.is_empty()
    }

    const fn is_empty_pending(&self) -> bool {
        self.enable & ENABLE_EMPTY != 0 && self.empty_pending
    }

    /// Reads the interrupt identification. This clears the transmitter's request.
    fn identify(&mut self) -> u8 {
        if self.is_received_pending() {
            ID_RECEIVED
        } else if self.is_empty_pending() {
            self.empty_pending = false;
            ID_EMPTY
        } else {
            ID_NONE
        }
    }

    fn line_status(&mut self) -> u8 {
        let overrun = core::mem::take(&mut self.overrun);
        TRANSMITTER_EMPTY
            | if self.received.is_empty() {
                0
            } else {
                DATA_READY
            }
            | if overrun { OVERRUN } else { 0 }
    }

    fn transmit(&mut self, byte: u8) -> Effect {
        self.empty_pending = true;
        if self.modem_control & LOOPBACK != 0 {
            self.receive(byte);
            return Effect::None;
        }
        Effect::Output(byte)
    }
}

impl Device for Uart {
    fn read(&mut self, place: Place, _: Now) -> u64 {
        let [low, high] = self.divisor.to_le_bytes();
        u64::from(match place.offset {
            0 if self.is_latch_open() => low,
            1 if self.is_latch_open() => high,
            0 => self.take(),
            1 => self.enable,
            2 => self.identify(),
            3 => self.line_control,
            4 => self.modem_control,
            5 => self.line_status(),
            6 => CONNECTED,
            _ => self.scratch,
        })
    }

    fn write(&mut self, place: Place, value: u64, _: Now) -> Effect {
        let value = value as u8;
        let [low, high] = self.divisor.to_le_bytes();
        match place.offset {
            0 if self.is_latch_open() => self.divisor = u16::from_le_bytes([value, high]),
            1 if self.is_latch_open() => self.divisor = u16::from_le_bytes([low, value]),
            0 => return self.transmit(value),
            1 => {
                // Enabling the interrupt requests it at once, because the transmitter is always empty.
                self.empty_pending |= value & !self.enable & ENABLE_EMPTY != 0;
                self.enable = value & 0xF;
            }
            2 if value & CLEAR_RECEIVER != 0 => self.received.clear(),
            3 => self.line_control = value,
            4 => self.modem_control = value & 0x1F,
            7 => self.scratch = value,
            _ => {}
        }
        Effect::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(uart: &mut Uart, offset: u64) -> u8 {
        uart.read(Place { offset, size: 1 }, Now::default()) as u8
    }

    fn write(uart: &mut Uart, offset: u64, value: u8) -> Effect {
        uart.write(Place { offset, size: 1 }, value.into(), Now::default())
    }

    #[test]
    fn what_is_written_goes_out_at_once() {
        let mut uart = Uart::default();
        assert_eq!(read(&mut uart, 5), 0x60);
        assert_eq!(write(&mut uart, 0, b'x'), Effect::Output(b'x'));
        assert_eq!(read(&mut uart, 5), 0x60);
    }

    #[test]
    fn the_divisor_hides_the_data_register() {
        let mut uart = Uart::default();
        write(&mut uart, 3, 0x83);
        assert_eq!(write(&mut uart, 0, 1), Effect::None);
        write(&mut uart, 1, 2);
        assert_eq!((read(&mut uart, 0), read(&mut uart, 1)), (1, 2));
        write(&mut uart, 3, 3);
        assert_eq!((read(&mut uart, 0), read(&mut uart, 1)), (0, 0));
    }

    #[test]
    fn a_received_byte_raises_the_line_until_it_is_read() {
        let mut uart = Uart::default();
        uart.receive(b'a');
        assert_eq!(uart.line_change(), None, "it is down");
        write(&mut uart, 1, 1);
        assert_eq!(uart.line_change(), Some((4, true)));
        assert_eq!(uart.line_change(), None, "it stays up");
        assert_eq!(read(&mut uart, 2), 0xC4);
        assert_eq!(read(&mut uart, 5) & 1, 1);
        assert_eq!(read(&mut uart, 0), b'a');
        assert_eq!(
            (uart.line_change(), read(&mut uart, 2)),
            (Some((4, false)), 0xC1)
        );
    }

    #[test]
    fn the_transmitter_asks_once_for_more() {
        let mut uart = Uart::default();
        write(&mut uart, 1, 2);
        assert_eq!(read(&mut uart, 2), 0xC2);
        assert_eq!(read(&mut uart, 2), 0xC1);
        write(&mut uart, 0, b'x');
        assert_eq!(uart.line_change(), Some((4, true)));
    }

    #[test]
    fn the_seventeenth_byte_is_lost_and_that_is_told_once() {
        let mut uart = Uart::default();
        for byte in 0..17 {
            assert_eq!(uart.has_room(), byte < 16);
            uart.receive(byte);
        }
        assert_eq!(read(&mut uart, 5), 0x63);
        assert_eq!(read(&mut uart, 5), 0x61);
        for byte in 0..16 {
            assert_eq!(read(&mut uart, 0), byte);
        }
        assert_eq!(read(&mut uart, 5), 0x60);
    }

    #[test]
    fn in_loopback_the_guest_hears_itself() {
        let mut uart = Uart::default();
        write(&mut uart, 4, 0x10);
        assert_eq!(write(&mut uart, 0, b'x'), Effect::None);
        assert_eq!(read(&mut uart, 0), b'x');
    }
}
