//! Writes to the interrupt command register: the requested IPI and its destinations.

/// The delivery mode of an IPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The vector goes to every destination.
    Fixed(u8),
    /// The vector goes to one of the destinations.
    LowestPriority(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// A start-up IPI. The processor starts at this page.
    Startup(u8),
    /// A mode that this machine drops: SMI, or a reserved one.
    Other,
}

/// The set of destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Destination {
    Me,
    All,
    Others,
    Physical(u32),
    Logical(u32),
}

/// One inter-processor interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipi {
    /// The delivery mode.
    pub delivery: Delivery,
    destination: Destination,
    /// Ids in the command of an xAPIC are 8 bits wide.
    narrow: bool,
}

impl Ipi {
    /// Decodes the 64-bit ICR of x2APIC mode. Returns `None` if nothing is sent (INIT level de-assert).
    pub(super) fn from_x2apic(icr: u64) -> Option<Self> {
        Self::decode(icr as u32, (icr >> 32) as u32, false)
    }

    /// Decodes the ICR of xAPIC mode, high half in bits 63:32.
    pub(super) fn from_xapic(icr: u64) -> Option<Self> {
        Self::decode(icr as u32, (icr >> 56) as u32, true)
    }

    /// Returns a fixed interrupt to the sender itself.
    pub(super) fn to_self(vector: u8) -> Option<Self> {
        Some(Self {
            delivery: Delivery::Fixed(vector),
            destination: Destination::Me,
            narrow: false,
        })
    }

    fn decode(low: u32, id: u32, narrow: bool) -> Option<Self> {
        const LOGICAL: u32 = 1 << 11;
        const ASSERT: u32 = 1 << 14;
        const LEVEL: u32 = 1 << 15;
        let vector = low as u8;
        let delivery = match low >> 8 & 7 {
            0 => Delivery::Fixed(vector),
            1 => Delivery::LowestPriority(vector),
            4 => Delivery::Nmi,
            5 if low & (ASSERT | LEVEL) == LEVEL => return None,
            5 => Delivery::Init,
            6 => Delivery::Startup(vector),
            _ => Delivery::Other,
        };
        let destination = match low >> 18 & 3 {
            1 => Destination::Me,
            2 => Destination::All,
            3 => Destination::Others,
            _ if low & LOGICAL != 0 => Destination::Logical(id),
            _ => Destination::Physical(id),
        };
        Some(Self {
            delivery,
            destination,
            narrow,
        })
    }

    /// Returns whether an APIC can't deliver the vector.
    #[must_use]
    pub fn has_illegal_vector(&self) -> bool {
        matches!(
            self.delivery,
            Delivery::Fixed(0..16) | Delivery::LowestPriority(0..16)
        )
    }

    /// Returns whether this IPI goes to every processor, or to all but the sender.
    #[must_use]
    pub fn is_for_all(&self) -> bool {
        matches!(self.destination, Destination::All | Destination::Others)
    }

    /// Returns whether this IPI reaches the APIC at `station`, which is the sender's own if `is_sender`.
    #[must_use]
    pub fn reaches(&self, station: Station, is_sender: bool) -> bool {
        let broadcast = if self.narrow { 0xFF } else { u32::MAX };
        match self.destination {
            Destination::Me => is_sender,
            Destination::All => true,
            Destination::Others => !is_sender,
            Destination::Physical(id) => id == broadcast || id == station.id,
            Destination::Logical(id) => id == broadcast || station.has_logical_id(id),
        }
    }
}

/// The ids by which an APIC can be addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Station {
    id: u32,
    logical: Logical,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Logical {
    /// xAPIC flat model: one bit of 8.
    Flat(u8),
    /// xAPIC cluster model: cluster number and one bit of 4.
    Cluster(u8),
    /// x2APIC: cluster number in the upper half, one bit of 16 in the lower half.
    Wide(u32),
}

impl Station {
    /// Returns the station of an APIC in x2APIC mode.
    #[must_use]
    pub fn x2apic(id: u32) -> Self {
        Self {
            id,
            logical: Logical::Wide(id >> 4 << 16 | 1 << (id & 0xF)),
        }
    }

    /// Returns the station of an APIC in xAPIC mode, with its LDR and DFR.
    #[must_use]
    pub fn xapic(id: u32, ldr: u32, dfr: u32) -> Self {
        let ldr = (ldr >> 24) as u8;
        let logical = if dfr >> 28 == 0xF {
            Logical::Flat(ldr)
        } else {
            Logical::Cluster(ldr)
        };
        Self { id, logical }
    }

    /// Returns the logical id as the LDR of x2APIC mode holds it.
    #[must_use]
    pub fn logical_id(&self) -> u32 {
        match self.logical {
            Logical::Flat(id) | Logical::Cluster(id) => u32::from(id) << 24,
            Logical::Wide(id) => id,
        }
    }

    fn has_logical_id(&self, id: u32) -> bool {
        match self.logical {
            Logical::Flat(own) => u32::from(own) & id != 0,
            Logical::Cluster(own) => {
                let own = u32::from(own);
                (own >> 4 == id >> 4 || id >> 4 == 0xF) && own & id & 0xF != 0
            }
            Logical::Wide(own) => own >> 16 == id >> 16 && own & id & 0xFFFF != 0,
        }
    }
}
