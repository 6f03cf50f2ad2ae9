//! PCI configuration space in memory: the MCFG.
//!
//! Source: PCI Firmware Specification 3.3, section 4.1.2.

use alloc::vec::Vec;

/// A range of buses of one segment whose configuration space is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Physical address of bus 0's configuration space, even if bus 0 is outside the range.
    pub base: u64,
    /// The PCI segment.
    pub number: u16,
    /// The first bus.
    pub first_bus: u8,
    /// The last bus.
    pub last_bus: u8,
}

const ENTRIES: usize = 44;
/// Maximum number of segments that are read.
const MAX_SEGMENTS: usize = 1024;

/// Parses the MCFG.
#[must_use]
pub fn parse(table: &[u8]) -> Vec<Segment> {
    const BUS_BYTES: u64 = 1 << 20;
    let rows = table.get(ENTRIES..).unwrap_or(&[]).chunks_exact(16);
    rows.map(|row| Segment {
        base: u64::from_le_bytes(core::array::from_fn(|i| row[i])),
        number: u16::from_le_bytes([row[8], row[9]]),
        first_bus: row[10],
        last_bus: row[11],
    })
    .filter(|s| s.base != 0 && s.base.is_multiple_of(BUS_BYTES) && s.base < 1 << 52)
    .filter(|s| s.first_bus <= s.last_bus)
    .take(MAX_SEGMENTS)
    .collect()
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn segments_are_listed_and_odd_ones_left_out() {
        let mut table = vec![0; ENTRIES];
        for (base, first, last) in [
            (0xB000_0000u64, 0, 255),
            (0, 0, 255),
            (0x1234, 0, 255),
            (u64::MAX << 20, 0, 255),
            (0xC000_0000, 9, 8),
        ] {
            table.extend(base.to_le_bytes());
            table.extend([0, 0, first, last, 0, 0, 0, 0]);
        }
        table.push(1);
        let segment = Segment {
            base: 0xB000_0000,
            number: 0,
            first_bus: 0,
            last_bus: 255,
        };
        assert_eq!(parse(&table), [segment]);
        assert!(parse(&[]).is_empty());
    }
}
