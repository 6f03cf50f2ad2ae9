//! Detection and setup of a port. Nothing here waits without bound, and no scratch register is needed.

use core::fmt;

use crate::registers::{
    FIFO, Register, Registers, fifo, interrupt_enable, line_control, line_status, modem_control,
};

/// Frequency in Hz that a divisor of 1 stands for.
const CLOCK: u32 = 115_200;
/// Number of reads of the line status for which a transmitter may take to become idle before the speed changes: about
/// 20 ms at 1 us a read, longer than a FIFO takes at 9600 baud.
const IDLE_READS: u32 = 20_000;

/// The speed of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baud {
    /// The speed that the firmware has set.
    AsIs,
    /// Bits per second.
    Rate(u32),
}

impl fmt::Display for Baud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AsIs => write!(f, "the firmware's speed"),
            Self::Rate(rate) => write!(f, "{rate} baud"),
        }
    }
}

/// The registers do not behave as a serial port's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPort;

/// Returns true if the registers behave as a serial port's. The interrupts that were enabled are enabled again.
pub fn is_present(registers: &mut impl Registers) -> bool {
    if registers.read(Register::LineStatus) == line_status::ABSENT {
        return false;
    }
    let before = registers.read(Register::InterruptEnable);
    registers.write(Register::InterruptEnable, 0);
    let none = registers.read(Register::InterruptEnable);
    registers.write(Register::InterruptEnable, interrupt_enable::ALL);
    let all = registers.read(Register::InterruptEnable);
    registers.write(Register::InterruptEnable, before & interrupt_enable::ALL);
    none & interrupt_enable::ALL == 0 && all & interrupt_enable::ALL == interrupt_enable::ALL
}

/// Sets the port up for 8N1 without interrupts. Returns the number of bytes that an empty transmitter takes, and the
/// time in microseconds that it needs for them.
///
/// # Errors
/// [`NoPort`].
pub fn set_up(registers: &mut impl Registers, baud: Baud) -> Result<(usize, u64), NoPort> {
    if !is_present(registers) {
        return Err(NoPort);
    }
    registers.write(Register::InterruptEnable, 0);
    let divisor = set_speed(registers, baud);
    registers.write(Register::Fifo, fifo::ENABLE);
    registers.write(Register::ModemControl, modem_control::READY);
    let works = registers.read(Register::Fifo) & fifo::WORKS == fifo::WORKS;
    let depth = if works { FIFO } else { 1 };
    // 10 bits a byte: start, data, stop.
    let us = depth as u64 * 10 * 1_000_000 * u64::from(divisor) / u64::from(CLOCK);
    Ok((depth, us))
}

/// Sets the speed and the format, and returns the divisor. A divisor that is right already is not touched, since bytes
/// on the way would suffer.
fn set_speed(registers: &mut impl Registers, baud: Baud) -> u16 {
    registers.write(
        Register::LineControl,
        line_control::DIVISOR | line_control::EIGHT_N_ONE,
    );
    let low = registers.read(Register::Data);
    let high = registers.read(Register::InterruptEnable);
    registers.write(Register::LineControl, line_control::EIGHT_N_ONE);
    let current = u16::from_le_bytes([low, high]);
    let Baud::Rate(rate) = baud else {
        return current.max(1);
    };
    let wanted = u16::try_from(CLOCK / rate.clamp(1, CLOCK)).unwrap_or(u16::MAX);
    if current == wanted {
        return wanted;
    }
    let mut reads = 0;
    while registers.read(Register::LineStatus) & line_status::IDLE == 0 && reads < IDLE_READS {
        reads += 1;
    }
    let [low, high] = wanted.to_le_bytes();
    registers.write(
        Register::LineControl,
        line_control::DIVISOR | line_control::EIGHT_N_ONE,
    );
    registers.write(Register::Data, low);
    registers.write(Register::InterruptEnable, high);
    registers.write(Register::LineControl, line_control::EIGHT_N_ONE);
    wanted
}
