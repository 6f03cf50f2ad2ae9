//! The store of error records that ACPI describes: the ERST.
//!
//! The table describes each operation as a list of accesses to registers, so that no driver is needed. Firmware wrote
//! the table, and its registers may answer anything: a register or a buffer that is the host's own memory is refused by
//! whoever maps it, every list ends after a fixed number of steps, and every wait after a fixed time.
//!
//! Source: ACPI Specification 6.5, section 18.5 (Error Serialization).

use alloc::vec::Vec;
use core::fmt;

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// The place.
    pub place: Place,
    /// Width of an access in bytes: 1, 2, 4 or 8.
    pub width: u8,
}

/// The place of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An I/O port.
    Port(u16),
    /// A physical address.
    Memory(u64),
}

/// The machine as the store's operations need it.
pub trait Access {
    /// Reads a register.
    fn read(&mut self, register: Register) -> u64;
    /// Writes a register.
    fn write(&mut self, register: Register, value: u64);
    /// Waits for `us` microseconds.
    fn stall(&mut self, us: u64);
    /// Copies `bytes` to the start of the buffer. They are at most as many as the buffer has.
    fn put(&mut self, bytes: &[u8]);
    /// Copies from the start of the buffer. `bytes` are at most as many as the buffer has.
    fn get(&mut self, bytes: &mut [u8]);
}

/// The reason why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The store has no more space.
    Full,
    /// The store has no record of this name.
    NoRecord,
    /// The store reports this status.
    Status(u64),
    /// The store stayed busy.
    Busy,
    /// The table's instructions do not end, or are none that the specification has.
    Instructions,
    /// The record is larger than the buffer.
    TooLarge,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => write!(f, "it is full"),
            Self::NoRecord => write!(f, "it has no such record"),
            Self::Status(status) => write!(f, "it reports status {status}"),
            Self::Busy => write!(f, "it stays busy"),
            Self::Instructions => write!(f, "its table's instructions are wrong"),
            Self::TooLarge => write!(f, "the record exceeds its buffer"),
        }
    }
}

/// The operations of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Erst {
    entries: Vec<Entry>,
}

/// The buffer through which records pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Physical address.
    pub pa: u64,
    /// Size in bytes.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    action: u8,
    instruction: u8,
    preserve: bool,
    /// `None` if this program can't use it: an entry without an access, such as NOOP, may have none.
    register: Option<Register>,
    shift: u8,
    value: u64,
    mask: u64,
}

/// Actions.
mod action {
    pub const BEGIN_WRITE: u8 = 0;
    pub const BEGIN_READ: u8 = 1;
    pub const BEGIN_CLEAR: u8 = 2;
    pub const END: u8 = 3;
    pub const SET_OFFSET: u8 = 4;
    pub const EXECUTE: u8 = 5;
    pub const CHECK_BUSY: u8 = 6;
    pub const GET_STATUS: u8 = 7;
    pub const SET_ID: u8 = 9;
    pub const GET_RANGE: u8 = 13;
    pub const GET_RANGE_LENGTH: u8 = 14;
}

const HEADER: usize = 48;
const ENTRY: usize = 32;
/// Maximum number of instructions that are read, and that one action executes.
const MAX_ENTRIES: usize = 512;
const MAX_STEPS: usize = 4096;
/// Maximum time in microseconds that an operation, or one of its instructions, is waited for, and the interval.
const PATIENCE_US: u64 = 2_000_000;
const LOOK_US: u64 = 100;
/// Maximum size of the buffer that is used.
const MAX_BUFFER: u64 = 64 << 10;

impl Erst {
    /// Parses the table. Returns `None` if an operation is missing that a store needs.
    #[must_use]
    pub fn parse(table: &[u8]) -> Option<Self> {
        let count = u32::from_le_bytes(table.get(44..48)?.try_into().ok()?) as usize;
        let entries = table.get(HEADER..)?.chunks_exact(ENTRY);
        let entries = entries.take(count.min(MAX_ENTRIES)).map(entry);
        let erst = Self {
            entries: entries.collect(),
        };
        let needed = [
            action::BEGIN_WRITE,
            action::EXECUTE,
            action::CHECK_BUSY,
            action::GET_STATUS,
            action::GET_RANGE,
            action::GET_RANGE_LENGTH,
        ];
        let has = |action: &u8| erst.entries.iter().any(|e| e.action == *action);
        needed.iter().all(has).then_some(erst)
    }

    /// Returns every register that the operations use.
    pub fn registers(&self) -> impl Iterator<Item = Register> {
        self.entries.iter().filter_map(|entry| entry.register)
    }

    /// Asks for the buffer. What is returned must be checked: the registers may answer anything.
    pub fn buffer(&self, access: &mut impl Access) -> Option<Buffer> {
        let pa = self.run(action::GET_RANGE, 0, access).ok()??;
        let bytes = self.run(action::GET_RANGE_LENGTH, 0, access).ok()??;
        pa.checked_add(bytes)?;
        let bytes = bytes.min(MAX_BUFFER);
        (bytes > crate::cper::OVERHEAD as u64 + crate::piece::HEADER as u64)
            .then_some(Buffer { pa, bytes })
    }

    /// Writes a record, in place of one of the same name. `buffer` is the buffer's size in bytes.
    ///
    /// # Errors
    /// [`Error`].
    pub fn write(
        &self,
        id: u64,
        record: &[u8],
        buffer: u64,
        access: &mut impl Access,
    ) -> Result<(), Error> {
        if record.len() as u64 > buffer {
            return Err(Error::TooLarge);
        }
        access.put(record);
        self.operate(action::BEGIN_WRITE, id, access)
    }

    /// Reads a record into `record`, which is at most as large as the buffer.
    ///
    /// # Errors
    /// [`Error`].
    pub fn read(&self, id: u64, record: &mut [u8], access: &mut impl Access) -> Result<(), Error> {
        self.operate(action::BEGIN_READ, id, access)?;
        access.get(record);
        Ok(())
    }

    /// Removes a record.
    ///
    /// # Errors
    /// [`Error`].
    pub fn clear(&self, id: u64, access: &mut impl Access) -> Result<(), Error> {
        self.operate(action::BEGIN_CLEAR, id, access)
    }

    fn operate(&self, begin: u8, id: u64, access: &mut impl Access) -> Result<(), Error> {
        self.run(begin, 0, access)?;
        let done = self.transfer(begin, id, access);
        let ended = self.run(action::END, 0, access).map(drop);
        done.and(ended)
    }

    fn transfer(&self, begin: u8, id: u64, access: &mut impl Access) -> Result<(), Error> {
        if begin != action::BEGIN_CLEAR {
            self.run(action::SET_OFFSET, 0, access)?;
        }
        self.run(action::SET_ID, id, access)?;
        self.run(action::EXECUTE, 0, access)?;
        let mut waited = 0;
        while self.run(action::CHECK_BUSY, 0, access)?.unwrap_or(0) & 1 != 0 {
            if waited >= PATIENCE_US {
                return Err(Error::Busy);
            }
            access.stall(LOOK_US);
            waited += LOOK_US;
        }
        match self.run(action::GET_STATUS, 0, access)?.unwrap_or(0) {
            0 => Ok(()),
            1 => Err(Error::Full),
            4 | 5 => Err(Error::NoRecord),
            other => Err(Error::Status(other)),
        }
    }

    /// Executes the instructions of an action. Returns the value that the last of them read, if any.
    fn run(&self, action: u8, input: u64, access: &mut impl Access) -> Result<Option<u64>, Error> {
        let entries = || self.entries.iter().filter(|entry| entry.action == action);
        let mut machine = Variables {
            value: input,
            ..Variables::default()
        };
        let mut at = 0;
        let mut result = None;
        for _ in 0..MAX_STEPS {
            let Some(entry) = entries().nth(at) else {
                return Ok(result);
            };
            at += 1;
            match machine.execute(entry, access)? {
                Next::Follow => {}
                Next::Result(value) => result = Some(value),
                Next::Skip => at += 1,
                Next::Go(to) => at = to,
            }
        }
        Err(Error::Instructions)
    }
}

/// The next step after an instruction.
enum Next {
    Follow,
    Result(u64),
    Skip,
    Go(usize),
}

/// The variables of one action.
#[derive(Default)]
struct Variables {
    /// The action's input, then what was read.
    value: u64,
    var1: u64,
    var2: u64,
}

impl Variables {
    fn execute(&mut self, entry: &Entry, access: &mut impl Access) -> Result<Next, Error> {
        match entry.instruction {
            // READ_REGISTER, READ_REGISTER_VALUE.
            0 => {
                self.value = entry.load(access)?;
                return Ok(Next::Result(self.value));
            }
            1 => return Ok(Next::Result(u64::from(entry.load(access)? == entry.value))),
            // WRITE_REGISTER, WRITE_REGISTER_VALUE.
            2 => entry.store(self.value, access)?,
            3 => entry.store(entry.value, access)?,
            // NOOP.
            4 => {}
            // LOAD_VAR1, LOAD_VAR2, STORE_VAR1.
            5 => self.var1 = entry.load(access)?,
            6 => self.var2 = entry.load(access)?,
            7 => entry.store(self.var1, access)?,
            // ADD, SUBTRACT, ADD_VALUE, SUBTRACT_VALUE.
            8 => self.var1 = self.var1.wrapping_add(self.var2),
            9 => self.var1 = self.var1.wrapping_sub(self.var2),
            10 => {
                let sum = entry.load(access)?.wrapping_add(entry.value);
                entry.store(sum, access)?;
            }
            11 => {
                let rest = entry.load(access)?.wrapping_sub(entry.value);
                entry.store(rest, access)?;
            }
            // STALL.
            12 => access.stall(entry.value.min(PATIENCE_US)),
            // STALL_WHILE_TRUE.
            13 => {
                let mut waited = 0;
                let step = self.var1.clamp(1, LOOK_US);
                while entry.load(access)? == entry.value {
                    if waited >= PATIENCE_US {
                        return Err(Error::Busy);
                    }
                    access.stall(step);
                    waited += step;
                }
            }
            // SKIP_NEXT_INSTRUCTION_IF_TRUE, GOTO.
            14 if entry.load(access)? == entry.value => return Ok(Next::Skip),
            14 => {}
            15 => {
                let to = usize::try_from(entry.value).map_err(|_| Error::Instructions)?;
                return Ok(Next::Go(to));
            }
            // SET_SRC_ADDRESS_BASE, SET_DST_ADDRESS_BASE and MOVE_DATA name physical memory at run time, which this
            // program does not let a table do.
            _ => return Err(Error::Instructions),
        }
        Ok(Next::Follow)
    }
}

impl Entry {
    fn load(&self, access: &mut impl Access) -> Result<u64, Error> {
        let register = self.register.ok_or(Error::Instructions)?;
        Ok(access.read(register) >> self.shift & self.mask)
    }

    fn store(&self, value: u64, access: &mut impl Access) -> Result<(), Error> {
        let register = self.register.ok_or(Error::Instructions)?;
        let mut value = (value & self.mask) << self.shift;
        if self.preserve {
            value |= access.read(register) & !(self.mask << self.shift);
        }
        access.write(register, value);
        Ok(())
    }
}

fn entry(bytes: &[u8]) -> Entry {
    let long = |at: usize| u64::from_le_bytes(core::array::from_fn(|i| bytes[at + i]));
    Entry {
        action: bytes[0],
        instruction: bytes[1],
        preserve: bytes[2] & 1 != 0,
        register: register([bytes[4], bytes[5], bytes[7]], long(8)),
        shift: bytes[6] & 63,
        value: long(16),
        mask: long(24),
    }
}

/// Returns the register of a generic address structure, or `None` if this program can't use it.
fn register([space, bits, size]: [u8; 3], address: u64) -> Option<Register> {
    let width = match (size, bits) {
        (1, _) | (0, 8) => 1,
        (2, _) | (0, 16) => 2,
        (3, _) | (0, 32) => 4,
        (4, _) | (0, 64) => 8,
        _ => return None,
    };
    let place = match space {
        0 if address != 0 && address.is_multiple_of(u64::from(width)) => Place::Memory(address),
        1 if width <= 4 => Place::Port(u16::try_from(address).ok()?),
        _ => return None,
    };
    Some(Register { place, width })
}
