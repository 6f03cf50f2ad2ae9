//! Virtual functions that firmware has left enabled.

use alloc::vec::Vec;

use crate::{
    Address, Bar, Capabilities, Defect, Space,
    bar::{self, Place},
    extended,
};

/// The virtual functions of a physical one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Virtual {
    /// The capability's offset.
    offset: u16,
    /// Number of virtual functions that are enabled.
    pub enabled: u16,
    /// The device id of each.
    pub device: u16,
    /// Distance of the first one's requester id from the physical function's.
    first: u16,
    /// Distance from one to the next.
    stride: u16,
}

/// In the control register: the virtual functions exist.
const ENABLE: u16 = 1 << 0;
/// In the control register: their memory is decoded.
const MEMORY_SPACE: u16 = 1 << 3;
const CONTROL: u16 = 8;
const BARS: u16 = 0x24;

impl Virtual {
    pub fn read(space: &impl Space, at: Address, capabilities: &Capabilities) -> Option<Self> {
        let offset = capabilities.extended(extended::SR_IOV)?;
        let is_enabled = space.read16(at, offset + CONTROL) & ENABLE != 0;
        let enabled = if is_enabled {
            space.read16(at, offset + 0x10)
        } else {
            0
        };
        Some(Self {
            offset,
            enabled: if enabled == u16::MAX { 0 } else { enabled },
            device: space.read16(at, offset + 0x1A),
            first: space.read16(at, offset + 0x14),
            stride: space.read16(at, offset + 0x16),
        })
    }

    /// Returns the address of the virtual function with this number, if it is inside the segment.
    pub fn address(self, physical: Address, number: u16) -> Option<Address> {
        // One that would be the physical function itself, or another virtual one, makes no sense.
        if self.first == 0 || self.stride == 0 && number > 0 {
            return None;
        }
        let distance = self.stride.checked_mul(number)?.checked_add(self.first)?;
        let id = physical.requester().checked_add(distance)?;
        Some(Address::of_requester(physical.segment, id))
    }

    /// Measures the base address registers that all virtual functions share: each has a slice of its own.
    pub fn measure(self, space: &impl Space, at: Address, defects: &mut Vec<Defect>) -> Vec<Bar> {
        let control = space.read16(at, self.offset + CONTROL);
        space.write16(at, self.offset + CONTROL, control & !MEMORY_SPACE);
        let place = Place {
            at,
            first: self.offset + BARS,
            count: 6,
        };
        let bars = bar::measure(space, place, defects);
        space.write16(at, self.offset + CONTROL, control);
        bars
    }

    /// Returns the slices of `bars` that the virtual function at `address` has.
    pub fn slice(self, bars: &[Bar], physical: Address, address: Address) -> Vec<Bar> {
        let distance = address.requester().wrapping_sub(physical.requester());
        let number = distance.wrapping_sub(self.first).checked_div(self.stride);
        let number = u64::from(number.unwrap_or(0));
        let slice = |bar: &Bar| {
            let offset = bar.size?.checked_mul(number)?;
            let address = bar.address.checked_add(offset)?;
            Some(Bar { address, ..*bar })
        };
        bars.iter().filter_map(slice).collect()
    }
}
