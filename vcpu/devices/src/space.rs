//! An address space of a TD: the devices behind its ports, or behind memory-mapped registers.

use alloc::{boxed::Box, sync::Arc, vec, vec::Vec};
use core::ops::Range;

use spin::Mutex;

use crate::Device;

/// A device, shared by the address spaces in which it has registers.
pub type Shared = Arc<Mutex<dyn Device>>;

/// A table of address ranges and their devices. It does not change once the TD runs, so finding a device takes no lock.
#[derive(Debug)]
pub struct Space {
    /// Ascending and disjoint.
    ranges: Vec<(Range<u64>, Mapping)>,
    /// One bit for each of the first 64 Ki addresses, the ports: set where a device is.
    ports: Box<[u64]>,
}

/// Number of ports.
const PORTS: u64 = 1 << 16;

impl Default for Space {
    /// Returns a space without devices.
    fn default() -> Self {
        Self {
            ranges: Vec::new(),
            ports: vec![0; (PORTS / 64) as usize].into(),
        }
    }
}

#[derive(Clone, Debug)]
struct Mapping {
    /// The address of the device's first register.
    base: u64,
    device: Shared,
}

impl Space {
    /// Adds a device whose registers are at `range`. Addresses that another device has already stay that device's; the
    /// others keep their offsets.
    #[must_use]
    pub fn with(mut self, range: Range<u64>, device: Shared) -> Self {
        let base = range.start;
        let mut at = range.start;
        while at < range.end {
            let next = self.ranges.partition_point(|(there, _)| there.end <= at);
            let (end, skip) = match self.ranges.get(next) {
                Some((there, _)) if there.start <= at => (at, there.end),
                Some((there, _)) => (there.start.min(range.end), there.end),
                None => (range.end, range.end),
            };
            if at < end {
                for port in at..end.min(PORTS) {
                    self.ports[(port / 64) as usize] |= 1 << (port % 64);
                }
                let device = device.clone();
                self.ranges
                    .insert(next, (at..end, Mapping { base, device }));
            }
            at = if end == range.end { end } else { skip };
        }
        self
    }

    /// Returns the device at an address, and the offset from its first register.
    #[inline]
    #[must_use]
    pub fn find(&self, at: u64) -> Option<(&Mutex<dyn Device>, u64)> {
        let ports = self.ports.get((at / 64) as usize);
        if ports.is_some_and(|ports| ports >> (at % 64) & 1 == 0) {
            return None;
        }
        let next = self.ranges.partition_point(|(range, _)| range.end <= at);
        let (range, mapping) = self.ranges.get(next)?;
        (range.start <= at).then(|| (&*mapping.device, at - mapping.base))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Effect, Now, Place};
    use proptest::prelude::*;

    /// A device that reads as its number.
    #[derive(Debug)]
    struct Number(u64);

    impl Device for Number {
        fn read(&mut self, _: Place, _: Now) -> u64 {
            self.0
        }

        fn write(&mut self, _: Place, _: u64, _: Now) -> Effect {
            Effect::None
        }
    }

    proptest! {
        #[test]
        fn the_first_device_at_an_address_keeps_it(
            ranges in proptest::collection::vec((0u64..64, 0u64..32), 0..8),
            base in proptest::sample::select(vec![0, PORTS - 64, 1 << 32]),
        ) {
            let ranges: Vec<_> = ranges.iter().map(|(start, bytes)| (base + start, *bytes)).collect();
            let mut space = Space::default();
            for (number, (start, bytes)) in (0..).zip(&ranges) {
                space = space.with(*start..start + bytes, Arc::new(Mutex::new(Number(number))));
            }
            for at in base..base + 128 {
                let mut all = (0..).zip(&ranges);
                let expected = all.find(|(_, (start, bytes))| (*start..start + bytes).contains(&at));
                let found = space.find(at).map(|(device, offset)| {
                    (device.lock().read(Place { offset, size: 1 }, Now::default()), offset)
                });
                prop_assert_eq!(found, expected.map(|(number, (start, _))| (number, at - start)));
            }
        }
    }
}
