//! The memory-mapped configuration space.
//!
//! Source: Intel 3 Series Express Chipset Family data sheet, section 5.1 (PCIEXBAR).

use core::ops::Range;

/// Location of the memory-mapped configuration space: the value of PCIEXBAR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window(pub u64);

impl Window {
    /// Returns the addresses of the window, or `None` if it is off.
    pub const fn range(self) -> Option<Range<u64>> {
        const ON: u64 = 1 << 0;
        /// Bytes of configuration space for each bus.
        const BUS_BYTES: u64 = 1 << 20;
        let buses = match self.0 >> 1 & 3 {
            0 => 256,
            1 => 128,
            2 => 64,
            _ => return None,
        };
        let bytes = buses * BUS_BYTES;
        // The size determines which address bits count. The register has none beyond bit 35.
        let base = self.0 & !(bytes - 1);
        match base.checked_add(bytes) {
            Some(end) if self.0 & ON != 0 => Some(base..end),
            _ => None,
        }
    }

    /// Returns the offset of `gpa` in the window, or `None` if it is outside.
    pub fn offset(self, gpa: u64) -> Option<u64> {
        let range = self.range()?;
        range.contains(&gpa).then(|| gpa - range.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_has_the_size_that_the_guest_wants() {
        for (size, mib) in [(0, 256), (1, 128), (2, 64)] {
            let window = Window(0xE_0400_0001 | size << 1);
            let bytes = mib << 20;
            let base = 0xE_0400_0000 / bytes * bytes;
            assert_eq!(window.offset(base), Some(0));
            assert_eq!(window.offset(base + bytes - 1), Some(bytes - 1));
            assert_eq!(window.offset(base + bytes), None);
        }
        assert_eq!(Window(0xB000_0007).offset(0xB000_0000), None, "reserved");
        assert_eq!(Window(0xB000_0000).offset(0xB000_0000), None, "off");
    }
}
