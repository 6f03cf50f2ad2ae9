//! Interrupt messages: what the I/O APIC and PCI functions send to local APICs.

/// The delivery type of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// An interrupt with the message's vector.
    Fixed,
    /// An NMI.
    Nmi,
}

/// A message to local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Delivery type.
    pub trigger: Trigger,
    /// Interrupt vector.
    pub vector: u8,
    /// An APIC id, or a set of eight when `is_logical`.
    pub destination: u8,
    /// True if the destination is a set.
    pub is_logical: bool,
}

impl Trigger {
    /// Decodes a delivery mode. Returns `None` for one that devices do not send: SMI, INIT, ExtINT and reserved ones.
    #[must_use]
    pub const fn of_mode(mode: u64) -> Option<Self> {
        match mode {
            // Fixed, or lowest priority, which is delivered like fixed.
            0 | 1 => Some(Self::Fixed),
            4 => Some(Self::Nmi),
            _ => None,
        }
    }
}

impl Message {
    /// Decodes a write of a function's MSI or MSI-X. Returns `None` if it is no write to local APICs, or one that they
    /// ignore.
    ///
    /// Source: Intel SDM volume 3, section 11.11 (message signalled interrupts).
    #[must_use]
    pub const fn of_write(address: u64, data: u32) -> Option<Self> {
        const APICS: u64 = 0xFEE;
        const LOGICAL: u64 = 1 << 2;
        const REDIRECTION: u64 = 1 << 3;
        const VECTOR: u32 = 0xFF;
        /// The CPU reserves the lower vectors.
        const FIRST_VECTOR: u8 = 16;
        if address >> 20 != APICS {
            return None;
        }
        let Some(trigger) = Trigger::of_mode((data >> 8 & 7) as u64) else {
            return None;
        };
        let vector = (data & VECTOR) as u8;
        if matches!(trigger, Trigger::Fixed) && vector < FIRST_VECTOR {
            return None;
        }
        Some(Self {
            trigger,
            vector,
            destination: (address >> 12) as u8,
            // Without the redirection hint, the destination mode is ignored.
            is_logical: address & REDIRECTION != 0 && address & LOGICAL != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_to_the_apics_is_a_message() {
        let fixed = Message {
            trigger: Trigger::Fixed,
            vector: 0x41,
            destination: 3,
            is_logical: false,
        };
        assert_eq!(Message::of_write(0xFEE0_3000, 0x4041), Some(fixed));
        assert_eq!(Message::of_write(0xFEE0_3004, 0x41), Some(fixed));
        let logical = Message {
            is_logical: true,
            ..fixed
        };
        assert_eq!(Message::of_write(0xFEE0_300C, 0x41), Some(logical));
        let nmi = Message {
            trigger: Trigger::Nmi,
            vector: 2,
            ..fixed
        };
        assert_eq!(Message::of_write(0xFEE0_3000, 0x402), Some(nmi));
    }

    #[test]
    fn other_writes_are_none() {
        for (address, data) in [
            (0, 0x41),
            (0xFED0_3000, 0x41),
            (0x1_FEE0_3000, 0x41),
            // SMI, INIT, ExtINT, and a vector that is an exception's.
            (0xFEE0_0000, 0x200),
            (0xFEE0_0000, 0x500),
            (0xFEE0_0000, 0x700),
            (0xFEE0_0000, 0x0E),
        ] {
            assert_eq!(
                Message::of_write(address, data),
                None,
                "{address:#x} {data:#x}"
            );
        }
    }
}
