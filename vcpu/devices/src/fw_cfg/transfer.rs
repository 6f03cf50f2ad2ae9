//! Transfers to memory that the guest shares with the host. A descriptor in that memory says what to transfer.
//!
//! The guest is hostile: the descriptor is read once, into a copy, and the amount of work is limited. A transfer touches
//! no memory but the guest's shared memory.

use super::FwCfg;
use crate::{NotShared, SharedMemory};

/// Bytes of a descriptor: control, length and address, all big-endian.
const DESCRIPTOR_BYTES: usize = 16;
/// Control: what to do, the key of the item to select first in the upper half, and the result.
const ERROR: u32 = 1 << 0;
const READ: u32 = 1 << 1;
const SKIP: u32 = 1 << 2;
const SELECT: u32 = 1 << 3;
const WRITE: u32 = 1 << 4;
/// The largest transfer in bytes, unless the item is larger. The CPU takes no interrupt meanwhile.
pub(super) const MOST: u64 = 64 << 10;
/// Bytes that are copied at once.
const PIECE: usize = 256;

/// The outcome of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The transfer was carried out.
    Done,
    /// The device refused the transfer. The guest finds that in the descriptor, if the descriptor is in shared memory.
    Refused,
}

/// A request that was read from a descriptor.
struct Request {
    control: u32,
    bytes: u64,
    at: u64,
}

impl FwCfg {
    /// Carries out the transfer that the descriptor at `at` describes, and writes the result to the descriptor.
    pub fn transfer(&mut self, at: u64, memory: &dyn SharedMemory) -> Outcome {
        let Ok(request) = Request::read(at, memory) else {
            return Outcome::Refused;
        };
        let (outcome, result) = match self.carry_out(&request, memory) {
            Ok(()) => (Outcome::Done, 0),
            Err(Refused) => (Outcome::Refused, ERROR),
        };
        match memory.write(at, &result.to_be_bytes()) {
            Ok(()) => outcome,
            Err(NotShared) => Outcome::Refused,
        }
    }

    fn carry_out(&mut self, request: &Request, memory: &dyn SharedMemory) -> Result<(), Refused> {
        let Request { control, bytes, at } = *request;
        if control & SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        if control & READ != 0 {
            self.read_to(at, bytes, memory)
        } else if control & WRITE != 0 {
            Err(Refused)
        } else {
            if control & SKIP != 0 {
                self.skip(bytes);
            }
            Ok(())
        }
    }

    /// Copies the next `bytes` bytes of the selected item to guest address `at`.
    fn read_to(&mut self, at: u64, bytes: u64, memory: &dyn SharedMemory) -> Result<(), Refused> {
        if bytes > MOST.max(self.items.selected().len() as u64) {
            return Err(Refused);
        }
        let end = at.checked_add(bytes).ok_or(Refused)?;
        let mut buffer = [0; PIECE];
        for start in (at..end).step_by(PIECE) {
            let piece = &mut buffer[..PIECE.min((end - start) as usize)];
            self.copy(piece);
            memory.write(start, piece)?;
        }
        Ok(())
    }
}

impl Request {
    fn read(at: u64, memory: &dyn SharedMemory) -> Result<Self, NotShared> {
        let mut descriptor = [0; DESCRIPTOR_BYTES];
        memory.read(at, &mut descriptor)?;
        let value = u128::from_be_bytes(descriptor);
        Ok(Self {
            control: (value >> 96) as u32,
            bytes: u64::from((value >> 64) as u32),
            at: value as u64,
        })
    }
}

/// A request that the device does not carry out.
struct Refused;

impl From<NotShared> for Refused {
    fn from(_: NotShared) -> Self {
        Self
    }
}
