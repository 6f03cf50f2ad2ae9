//! A physical function that asserts the policy: what the model must never do to it, whatever the guest does.

use alloc::{collections::BTreeMap, vec, vec::Vec};
use core::ops::Range;

use sync::Mutex;

use crate::pci::{Identity, Interrupts, Physical, PhysicalBar, Shape};
use crate::{Message, Place};

/// Where its capabilities are.
pub const POWER_AT: u16 = 0x40;
pub const VITAL_DATA_AT: u16 = 0x48;
pub const VENDOR_AT: u16 = 0x50;
pub const VENDOR_BYTES: u8 = 0x10;
pub const AF_AT: u16 = 0x60;
pub const EXPRESS_AT: u16 = 0x70;
/// The physical address of the memory of its base address registers.
pub const MEMORY: [(usize, bool, u64, u64); 4] = [
    // Index, whether it has 64 bits, address, size.
    (0, true, 0xFE00_0000, 0x4000),
    (2, false, 0xFE01_0000, 0x2000),
    (3, false, 0xFE02_0100, 0x100),
    (4, true, 0x40_0000_0000, 0x40_0000),
];
/// The table of its vectors, and the pending bits, in the first memory.
pub const VECTORS: u16 = 9;
pub const TABLE: u64 = 0x2000;
pub const PENDING: u64 = 0x3800;

/// The function.
#[derive(Debug)]
pub struct Fake {
    shape: Shape,
    state: Mutex<State>,
}

/// The calls of the model.
#[derive(Debug, Default)]
pub struct State {
    pub config: Vec<u8>,
    /// The values that were stored, by register and offset.
    pub memory: BTreeMap<(usize, u64), u64>,
    pub is_master: bool,
    pub interrupts_on: bool,
    pub directed: Vec<Option<Message>>,
    /// Calls of `direct`.
    pub directions: u64,
    /// Vectors that may be directed at the same time.
    pub most: usize,
    pub is_away: bool,
    pub resets: u64,
    /// The loads and stores: register and place.
    pub accesses: Vec<(usize, Place)>,
}

impl Fake {
    pub fn with(interrupts: Interrupts) -> Self {
        let vectors = match interrupts {
            Interrupts::None => 0,
            Interrupts::Msi(vectors) | Interrupts::Msix { vectors, .. } => vectors,
        };
        let memory = MEMORY.map(|(index, is_wide, start, bytes)| PhysicalBar {
            index,
            is_wide,
            is_prefetchable: index == 4,
            range: start..start + bytes,
        });
        let mut config: Vec<u8> = (0..=255).map(|byte: u8| byte ^ 0xA5).collect();
        let mut set = |at: u16, bytes: &[u8]| {
            config[usize::from(at)..][..bytes.len()].copy_from_slice(bytes);
        };
        set(POWER_AT, &[0x01, VITAL_DATA_AT as u8, 0xC3, 0xFF]);
        set(VITAL_DATA_AT, &[0x03, VENDOR_AT as u8, 0, 0]);
        set(VENDOR_AT, &[0x09, AF_AT as u8, VENDOR_BYTES]);
        set(AF_AT, &[0x13, EXPRESS_AT as u8, 6, 3]);
        // Version 2, an endpoint, with all that there is; errors are reported, phantom functions are on.
        set(EXPRESS_AT, &[0x10, 0, 0x02, 0x02]);
        set(EXPRESS_AT + 4, &0xFFFF_FFFF_u32.to_le_bytes());
        set(EXPRESS_AT + 8, &0x2F3F_u16.to_le_bytes());
        Self {
            shape: Shape {
                identity: Identity {
                    vendor: 0x1B36,
                    device: 0x0010,
                    class: 0x01_0802,
                    revision: 2,
                    subsystem: 0x1100_1AF4,
                },
                memory: memory.into(),
                interrupts,
                capabilities: [
                    (0x01, POWER_AT),
                    (0x03, VITAL_DATA_AT),
                    (0x09, VENDOR_AT),
                    (0x13, AF_AT),
                    (0x10, EXPRESS_AT),
                ]
                .into(),
                has_reset: true,
            },
            state: Mutex::new(State {
                config,
                directed: vec![None; vectors.into()],
                most: usize::MAX,
                ..State::default()
            }),
        }
    }

    /// Returns a function with MSI-X.
    pub fn new() -> Self {
        Self::with(Interrupts::Msix {
            vectors: VECTORS,
            table: (0, TABLE),
            pending: (0, PENDING),
        })
    }

    pub fn shape_mut(&mut self) -> &mut Shape {
        &mut self.shape
    }

    pub fn state(&self) -> spin::MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Ends a reset.
    pub fn come_back(&self) {
        self.state.lock().is_away = false;
    }

    fn here(&self) -> spin::MutexGuard<'_, State> {
        let state = self.state.lock();
        assert!(!state.is_away, "it is being reset");
        state
    }

    /// Returns the registers of MSI-X in this memory.
    fn own(&self, bar: usize) -> [Range<u64>; 2] {
        match self.shape.interrupts {
            Interrupts::Msix { vectors, .. } if bar == 0 => [
                TABLE..TABLE + u64::from(vectors) * 16,
                PENDING..PENDING + u64::from(vectors).div_ceil(64) * 8,
            ],
            _ => [0..0, 0..0],
        }
    }

    fn check(&self, bar: usize, place: Place) -> Range<u64> {
        let Place { offset, size } = place;
        let memory = MEMORY.iter().find(|(index, ..)| *index == bar);
        let (.., bytes) = memory.expect("there is such memory");
        assert!([1, 2, 4, 8].contains(&size) && offset.is_multiple_of(size.into()));
        assert!(offset + u64::from(size) <= *bytes);
        offset..offset + u64::from(size)
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Physical for Fake {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn read(&self, offset: u16, size: u8) -> u32 {
        let state = self.here();
        assert!([1, 2, 4].contains(&size) && offset.is_multiple_of(size.into()));
        let bytes = &state.config[offset.into()..][..size.into()];
        bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        let mut state = self.here();
        assert_eq!((offset, size), (VITAL_DATA_AT + 2, 2), "no other register");
        assert_eq!(value & 0xFFFF_8000, 0, "no write of vital product data");
        // It answers at once.
        let address = value as u16 | 1 << 15;
        let data = (0x5000_0000 | value).to_le_bytes();
        state.config[usize::from(offset)..][..2].copy_from_slice(&address.to_le_bytes());
        state.config[usize::from(offset) + 2..][..4].copy_from_slice(&data);
    }

    fn load(&self, bar: usize, place: Place) -> u64 {
        let mut state = self.here();
        let range = self.check(bar, place);
        let [table, _] = self.own(bar);
        assert!(!overlap(&range, &table), "the table is the host's");
        state.accesses.push((bar, place));
        let stored = state.memory.get(&(bar, place.offset)).copied();
        stored.unwrap_or(0) & crate::open_bus(place.size)
    }

    fn store(&self, bar: usize, place: Place, value: u64) {
        let mut state = self.here();
        let range = self.check(bar, place);
        for own in self.own(bar) {
            assert!(!overlap(&range, &own), "the table is the host's");
        }
        state.accesses.push((bar, place));
        state.memory.insert((bar, place.offset), value);
    }

    fn set_master(&self, is_on: bool) {
        self.here().is_master = is_on;
    }

    fn set_interrupts(&self, is_on: bool) {
        let mut state = self.here();
        assert_ne!(state.interrupts_on, is_on, "on a change only");
        state.interrupts_on = is_on;
    }

    fn direct(&self, vector: u16, message: Option<Message>) -> bool {
        let mut state = self.here();
        state.directions += 1;
        let others = state.directed.iter().flatten().count();
        let vector = usize::from(vector);
        let is_new = state.directed[vector].is_none();
        state.directed[vector] = message;
        if message.is_some() && is_new && others >= state.most {
            state.directed[vector] = None;
            return false;
        }
        true
    }

    fn reset(&self) {
        let mut state = self.here();
        assert!(!state.is_master && !state.interrupts_on);
        assert!(state.directed.iter().all(Option::is_none));
        state.is_away = true;
        state.resets += 1;
    }

    fn is_away(&self) -> bool {
        self.state.lock().is_away
    }
}
