//! The choice of the console's port.

use core::fmt;

use config::ConsolePort;
use uart::Baud;

use crate::firmware::spcr::{Interrupt, Place, Spcr};

/// A port that can be the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The place of its registers.
    pub place: Place,
    /// Its speed.
    pub baud: Baud,
    /// Its interrupt, if it is known.
    pub interrupt: Option<Interrupt>,
    /// The reason for the choice.
    pub source: Source,
}

/// The reason for the choice of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// ACPI's SPCR names it.
    Firmware,
    /// `host.console` names it.
    Config,
    /// PCs have it.
    Usual,
}

impl Choice {
    const fn com(port: u16, irq: u8) -> Self {
        Self {
            place: Place::Io(port),
            baud: Baud::Rate(115_200),
            interrupt: Some(Interrupt::Isa(irq)),
            source: Source::Usual,
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Io(0x3F8) => write!(f, "COM1 (I/O port 0x3f8")?,
            Place::Io(0x2F8) => write!(f, "COM2 (I/O port 0x2f8")?,
            Place::Io(port) => write!(f, "a serial port (I/O port {port:#x}")?,
            Place::Memory { pa, .. } => write!(f, "a serial port (memory at {pa:#x}")?,
        }
        let source = match self.source {
            Source::Firmware => "as the firmware's SPCR says",
            Source::Config => "as host.console says",
            Source::Usual => "the first port that exists",
        };
        write!(f, ", {}, {source})", self.baud)
    }
}

/// Returns the ports that may be the console, the best first: the firmware's, the operator's, COM1, COM2.
pub fn candidates(spcr: Option<Spcr>, config: Option<ConsolePort>) -> impl Iterator<Item = Choice> {
    let firmware = spcr.map(|spcr| Choice {
        place: spcr.place,
        baud: spcr.baud,
        interrupt: spcr.interrupt,
        source: Source::Firmware,
    });
    let config = config.map(|port| Choice {
        place: Place::Io(port.port),
        baud: Baud::Rate(port.baud),
        interrupt: port.irq.map(Interrupt::Isa),
        source: Source::Config,
    });
    let usual = [Choice::com(0x3F8, 4), Choice::com(0x2F8, 3)];
    firmware.into_iter().chain(config).chain(usual)
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString, vec::Vec};

    use super::*;

    #[test]
    fn the_firmware_comes_first_and_the_usual_ports_last() {
        let spcr = Spcr {
            place: Place::Memory {
                pa: 0xFE00_0000,
                step: 4,
            },
            baud: Baud::AsIs,
            interrupt: None,
        };
        let config = ConsolePort {
            port: 0x3E8,
            irq: Some(4),
            baud: 9600,
        };
        let names: Vec<_> = candidates(Some(spcr), Some(config))
            .map(|choice| choice.to_string())
            .collect();
        let expected = [
            "a serial port (memory at 0xfe000000, the firmware's speed, as the firmware's SPCR says)",
            "a serial port (I/O port 0x3e8, 9600 baud, as host.console says)",
            "COM1 (I/O port 0x3f8, 115200 baud, the first port that exists)",
            "COM2 (I/O port 0x2f8, 115200 baud, the first port that exists)",
        ];
        assert_eq!(names, expected);
        assert_eq!(candidates(None, None).count(), 2);
    }
}
