//! The configuration space that the guest sees of a physical function.
//!
//! Capabilities that are shown stay at their offsets. Shown are PCI Express, power management, vital product data and
//! those of the vendor; the one of interrupts is virtual, and goes where there is room. All others are hidden: a guest
//! that used them could reach beyond its function (SR-IOV, ATS, ACS) or change what the host relies on (resizable base
//! address registers). So are the extended configuration space and all registers outside of capabilities.

use alloc::vec::Vec;
use core::ops::Range;

use super::vectors::Vectors;
use crate::pci::{Bar, Capability, Config, Physical, PhysicalBar};

/// Ids of capabilities.
const POWER: u8 = 0x01;
const VITAL_DATA: u8 = 0x03;
const VENDOR: u8 = 0x09;
const EXPRESS: u8 = 0x10;
/// The first byte that capabilities can have, and the end.
const FIRST: usize = 0x40;
const END: usize = 0x100;
/// Power management: version; a reset does not come with leaving the low-power state, which is virtual; power state.
const POWER_VERSION: u32 = 7;
const NO_SOFT_RESET: u8 = 1 << 3;
const POWER_STATE: u8 = 3;
/// Vital product data: offsets of the address and of the end; the address's bit that tells a write.
const DATA_ADDRESS: usize = 2;
const DATA_END: usize = 8;
const DATA_WRITE: u16 = 1 << 15;
/// PCI Express: offsets of the device's capabilities, control and status.
const DEVICE_CAPABILITIES: usize = 4;
const DEVICE_CONTROL: usize = 8;
/// Bytes of the capability in its versions.
const EXPRESS_BYTES: [usize; 2] = [0x14, 0x3C];
/// A function of the root complex: the guest sees neither the link nor the port.
const INTEGRATED: u16 = 9 << 4;
/// Of the device's capabilities: payload, extended tags, latencies, and role-based error reporting, but no phantom
/// functions. The function level reset.
const SHOWN_CAPABILITIES: u32 = 0x8FE7;
const HAS_RESET: u32 = 1 << 28;
/// Of the device's control, which is fixed: ordering, payload, extended tags, snooping, and read requests. The request of a
/// reset.
const SHOWN_CONTROL: u16 = 0x79F0;
const RESET: u16 = 1 << 15;

/// The configuration space.
#[derive(Debug)]
pub struct Space {
    /// The registers after a reset.
    pub initial: Config,
    /// The memory of the base address registers that are shown.
    pub memory: Vec<PhysicalBar>,
    /// Offset of the capability of interrupts.
    pub interrupts: Option<usize>,
    /// The registers that are read from the function.
    live: Vec<Range<usize>>,
    vital_data: Option<usize>,
    express: Option<usize>,
}

/// A capability that is shown: its registers from byte 2 on, and the bits of them that the guest may write.
struct Shown {
    id: u8,
    at: usize,
    registers: Vec<u8>,
    writable: Vec<u8>,
}

impl Shown {
    fn range(&self) -> Range<usize> {
        self.at..(self.at + 2 + self.registers.len()).next_multiple_of(4)
    }
}

impl Space {
    /// Makes the configuration space of `physical`, whose interrupts are `vectors`.
    pub fn new(physical: &dyn Physical, vectors: &Vectors) -> Self {
        let shape = physical.shape();
        let mut config = Config::of(shape.identity);
        let mut memory = Vec::new();
        for bar in &shape.memory {
            let shown = Bar {
                bytes: bar.range.end.saturating_sub(bar.range.start),
                is_wide: bar.is_wide,
                is_prefetchable: bar.is_prefetchable,
            };
            if config.has_room_for(bar.index, shown) {
                config = config.with_bar(bar.index, shown);
                memory.push(bar.clone());
            }
        }
        let mut all: Vec<Shown> = Vec::new();
        for &(id, at) in &shape.capabilities {
            let shown = shown(physical, id, at.into());
            all.extend(shown.filter(|shown| is_free(&all, shown.range())));
        }
        let mut space = Self {
            initial: config,
            memory,
            interrupts: None,
            live: Vec::new(),
            vital_data: None,
            express: None,
        };
        for shown in &all {
            space.note(shown);
        }
        if let Some((id, registers, writable)) = vectors.capability() {
            let bytes = (2 + registers.len()).next_multiple_of(4);
            let mut places = (FIRST..=END - bytes).step_by(4);
            space.interrupts = places.find(|at| is_free(&all, *at..at + bytes));
            all.extend(space.interrupts.map(|at| Shown {
                id,
                at,
                registers,
                writable,
            }));
        }
        all.sort_by_key(|shown| shown.at);
        for shown in &all {
            let capability = Capability {
                id: shown.id,
                registers: &shown.registers,
                writable: &shown.writable,
            };
            space.initial = space.initial.with_capability_at(shown.at, capability);
        }
        space
    }

    /// Remembers what is special about a capability.
    fn note(&mut self, shown: &Shown) {
        let body = shown.at + 2..shown.at + 2 + shown.registers.len();
        match shown.id {
            VENDOR => self.live.push(body),
            VITAL_DATA => {
                self.live.push(body);
                self.vital_data = Some(shown.at);
            }
            EXPRESS => self.express = Some(shown.at),
            _ => {}
        }
    }

    /// Returns the value of registers of which `shadow` is what the model has.
    pub fn with_live(&self, physical: &dyn Physical, at: Range<usize>, shadow: u64) -> u64 {
        let is_live = |byte: usize| self.live.iter().any(|live| live.contains(&byte));
        let size = at.len();
        if at.start.is_multiple_of(size) && at.clone().all(is_live) {
            return physical.read(at.start as u16, size as u8).into();
        }
        let live = at.clone().filter(|byte| is_live(*byte));
        live.fold(shadow, |value, byte| {
            let shift = 8 * (byte - at.start);
            let read = u64::from(physical.read(byte as u16, 1) & 0xFF);
            value & !(0xFF << shift) | read << shift
        })
    }

    /// Passes on the address of the vital product data to read, if the guest has written it.
    pub fn select_vital_data(
        &self,
        physical: &dyn Physical,
        config: &Config,
        written: Range<usize>,
    ) {
        let Some(at) = self.vital_data.map(|at| at + DATA_ADDRESS) else {
            return;
        };
        if written.start < at + 2 && at < written.end {
            let address = config.read(at, 2) as u16 & !DATA_WRITE;
            physical.write(at as u16, 2, address.into());
        }
    }

    /// Returns whether the guest has requested a reset.
    pub fn is_reset_wanted(&self, config: &Config) -> bool {
        let express = self.express;
        express.is_some_and(|at| config.read(at + DEVICE_CONTROL, 2) as u16 & RESET != 0)
    }
}

/// Returns the capability that the guest sees, if it sees one.
fn shown(physical: &dyn Physical, id: u8, at: usize) -> Option<Shown> {
    if at < FIRST || !at.is_multiple_of(4) {
        return None;
    }
    let read = |offset: usize, size: usize| match at + offset + size {
        end if end <= END => Some(physical.read((at + offset) as u16, size as u8)),
        _ => None,
    };
    let (registers, writable) = match id {
        POWER => {
            let version = read(2, 2)? & POWER_VERSION;
            let registers = [version as u8, 0, NO_SOFT_RESET, 0, 0, 0];
            (registers.into(), [0, 0, POWER_STATE].into())
        }
        VITAL_DATA => {
            let address = (!DATA_WRITE).to_le_bytes();
            ([0; DATA_END - 2].into(), address.into())
        }
        VENDOR => {
            let bytes = read(2, 1)? as usize;
            let body = bytes.checked_sub(2).filter(|body| *body > 0)?;
            (alloc::vec![0; body], Vec::new())
        }
        EXPRESS => express(physical, at, &read)?,
        _ => return None,
    };
    let shown = Shown {
        id,
        at,
        registers,
        writable,
    };
    (shown.range().end <= END).then_some(shown)
}

/// Returns the registers of the PCI Express capability, and the bits that the guest may write.
fn express(
    physical: &dyn Physical,
    at: usize,
    read: &impl Fn(usize, usize) -> Option<u32>,
) -> Option<(Vec<u8>, Vec<u8>)> {
    debug_assert!(at >= FIRST);
    let version = read(2, 2)? as u16 & 0xF;
    let bytes = EXPRESS_BYTES[usize::from(version >= 2)];
    let has_reset = physical.shape().has_reset;
    let capabilities =
        read(DEVICE_CAPABILITIES, 4)? & SHOWN_CAPABILITIES | if has_reset { HAS_RESET } else { 0 };
    let control = read(DEVICE_CONTROL, 2)? as u16 & SHOWN_CONTROL;
    let mut registers = alloc::vec![0; bytes - 2];
    registers[..2].copy_from_slice(&(version | INTEGRATED).to_le_bytes());
    registers[DEVICE_CAPABILITIES - 2..][..4].copy_from_slice(&capabilities.to_le_bytes());
    registers[DEVICE_CONTROL - 2..][..2].copy_from_slice(&control.to_le_bytes());
    let mut writable = alloc::vec![0; DEVICE_CONTROL];
    if has_reset {
        writable[DEVICE_CONTROL - 2..].copy_from_slice(&RESET.to_le_bytes());
    }
    Some((registers, writable))
}

fn is_free(all: &[Shown], range: Range<usize>) -> bool {
    all.iter().all(|shown| {
        let taken = shown.range();
        taken.end <= range.start || range.end <= taken.start
    })
}
