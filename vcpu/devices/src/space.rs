//! The address spaces of a TD: the devices behind its ports, and those behind memory-mapped registers.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::ops::Range;

use sync::Mutex;

use crate::Device;

/// A device, shared by the address spaces in which it has registers.
pub type Shared = Arc<Mutex<dyn Device>>;

/// A table of address ranges and their devices. It does not change once the TD runs, so finding a device takes no lock.
#[derive(Debug, Default)]
pub struct Space {
    /// Ascending and disjoint.
    ranges: Vec<(Range<u64>, Mapping)>,
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
                let device = device.clone();
                self.ranges
                    .insert(next, (at..end, Mapping { base, device }));
            }
            at = if end == range.end { end } else { skip };
        }
        self
    }

    /// Returns the device at an address, and the offset from its first register.
    #[must_use]
    pub fn find(&self, at: u64) -> Option<(&Mutex<dyn Device>, u64)> {
        let next = self.ranges.partition_point(|(range, _)| range.end <= at);
        let (range, mapping) = self.ranges.get(next)?;
        (range.start <= at).then(|| (&*mapping.device, at - mapping.base))
    }
}

/// Number of ports.
const PORTS: usize = 1 << 16;
const BITS: usize = u64::BITS as usize;

/// The space of the ports. It knows at once that no device has a port, which guests often ask for.
#[derive(Debug)]
pub struct PortSpace {
    space: Space,
    /// One bit for each port: set where a device is.
    taken: Box<[u64; PORTS / BITS]>,
}

impl Default for PortSpace {
    /// Returns a space without devices.
    fn default() -> Self {
        Self {
            space: Space::default(),
            taken: Box::new([0; PORTS / BITS]),
        }
    }
}

impl PortSpace {
    /// Adds a device as [`Space::with`] does.
    ///
    /// # Panics
    /// `range` reaches beyond the last port.
    #[must_use]
    pub fn with(mut self, range: Range<u64>, device: Shared) -> Self {
        for port in range.clone() {
            self.taken[port as usize / BITS] |= 1 << (port as usize % BITS);
        }
        self.space = self.space.with(range, device);
        self
    }

    /// Returns whether a device has a port.
    #[inline]
    #[must_use]
    pub fn has(&self, port: u16) -> bool {
        let bit = usize::from(port);
        self.taken[bit / BITS] >> (bit % BITS) & 1 != 0
    }

    /// Returns the device at a port, and the offset from its first register.
    #[must_use]
    pub fn find(&self, port: u16) -> Option<(&Mutex<dyn Device>, u64)> {
        self.space.find(port.into())
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
            base in proptest::sample::select([0, PORTS as u64 - 128, 1 << 32].to_vec()),
        ) {
            let ranges: Vec<_> = ranges.iter().map(|(start, bytes)| (base + start, *bytes)).collect();
            let mut space = Space::default();
            let mut ports = PortSpace::default();
            for (number, (start, bytes)) in (0..).zip(&ranges) {
                let (range, device) = (*start..start + bytes, Arc::new(Mutex::new(Number(number))));
                space = space.with(range.clone(), device.clone());
                if range.end <= PORTS as u64 {
                    ports = ports.with(range, device);
                }
            }
            let read = |(device, offset): (&Mutex<dyn Device>, u64)| {
                (device.lock().read(Place { offset, size: 1 }, Now::default()), offset)
            };
            for at in base..base + 128 {
                let mut all = (0..).zip(&ranges);
                let expected = all.find(|(_, (start, bytes))| (*start..start + bytes).contains(&at));
                let expected = expected.map(|(number, (start, _))| (number, at - start));
                prop_assert_eq!(space.find(at).map(read), expected);
                if let Ok(port) = u16::try_from(at) {
                    prop_assert_eq!(ports.has(port), expected.is_some());
                    prop_assert_eq!(ports.find(port).map(read), expected);
                }
            }
        }
    }
}
