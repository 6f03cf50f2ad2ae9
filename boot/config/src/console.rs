//! `host.console`: the serial port of the console.

use core::fmt;

/// The serial port of the console, on the ISA bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsolePort {
    /// The first I/O port.
    pub port: u16,
    /// The ISA interrupt, if it is known.
    pub irq: Option<u8>,
    /// The speed in bits per second.
    pub baud: u32,
}

/// Speed in bits per second of a port whose speed is not stated.
const BAUD: u32 = 115_200;

/// The values that the key takes.
pub(crate) const FORM: &str = "COM1 to COM4 or an I/O port such as \"0x3e8\", and a speed that divides 115200 if it is \
                               another, such as \"COM2,9600\"";

/// The ports with names: name, I/O port, ISA interrupt.
const NAMED: [(&str, u16, u8); 4] = [
    ("COM1", 0x3F8, 4),
    ("COM2", 0x2F8, 3),
    ("COM3", 0x3E8, 4),
    ("COM4", 0x2E8, 3),
];

impl ConsolePort {
    /// Parses a port such as `COM1`, `0x3e8` or `COM2,9600`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (name, baud) = match text.split_once(',') {
            Some((name, baud)) => (name, baud.parse().ok()?),
            None => (text, BAUD),
        };
        let named = NAMED.iter().find(|n| n.0.eq_ignore_ascii_case(name));
        let (port, irq) = match named {
            Some(&(_, port, irq)) => (port, Some(irq)),
            None => (
                u16::from_str_radix(name.strip_prefix("0x")?, 16).ok()?,
                None,
            ),
        };
        // A port has 8 registers, and a divisor of 16 bits divides the highest speed.
        let right = (0x100..=0xFFF8).contains(&port) && (2..=BAUD).contains(&baud);
        (right && BAUD.is_multiple_of(baud)).then_some(Self { port, irq, baud })
    }
}

impl fmt::Display for ConsolePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMED
            .iter()
            .find(|n| (n.1, Some(n.2)) == (self.port, self.irq))
        {
            Some((name, ..)) => f.write_str(name)?,
            None => write!(f, "{:#x}", self.port)?,
        }
        if self.baud == BAUD {
            return Ok(());
        }
        write!(f, ",{}", self.baud)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_named_or_numbered() {
        let port = |port, irq, baud| Some(ConsolePort { port, irq, baud });
        assert_eq!(ConsolePort::parse("com2"), port(0x2F8, Some(3), BAUD));
        assert_eq!(ConsolePort::parse("COM4,9600"), port(0x2E8, Some(3), 9600));
        assert_eq!(
            ConsolePort::parse("0xE010,57600"),
            port(0xE010, None, 57_600)
        );
    }

    #[test]
    fn anything_else_is_refused() {
        for wrong in [
            "",
            "COM5",
            "ttyS0",
            "3f8",
            "0x10",
            "0xfffe",
            "COM1,",
            "COM1,0",
            "COM1,110000",
        ] {
            let text = format!("[host]\nconsole = {wrong:?}\n");
            let e = crate::parse(text.as_bytes()).unwrap_err();
            assert!(e.starts_with("seamark.toml:2: console is "), "{e}");
        }
    }
}
