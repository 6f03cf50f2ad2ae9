//! The ACPI tables' store of error records.
#![expect(
    unsafe_code,
    reason = "the store's registers are I/O ports or device memory, and records pass through a buffer"
)]

use alloc::{string::String, vec, vec::Vec};

use crashlog::{
    cper,
    erst::{Access, Error, Erst, Place, Register},
    piece::{Identity, MAX_PIECES, pieces},
};
use sync::IrqLock;
use x86_64::instructions::port::Port;

use crate::{memory, time};

/// Maximum size of a record in bytes.
const RECORD: usize = 8192;

/// The identifier of the first record: "SEAMCR" and a number.
const FIRST: u64 = u64::from_le_bytes(*b"\0\0RCMAES");

static STORE: IrqLock<Option<Open>> = IrqLock::new(None);

struct Open {
    erst: Erst,
    machine: Machine,
    /// Size of the buffer in bytes.
    buffer: u64,
    /// Number of records that were found.
    used: u16,
}

/// Opens the store.
///
/// # Errors
/// A sentence that says why it can't be used.
pub fn prepare(erst: Erst) -> Result<(), String> {
    let problem = |what: &str| alloc::format!("crashes are not kept in ERST: {what}");
    let mut machine = Machine::with(&erst)
        .ok_or_else(|| problem("its registers can't be mapped, or are the host's memory"))?;
    let buffer = erst
        .buffer(&mut machine)
        .ok_or_else(|| problem("it names no usable buffer"))?;
    if memory::is_hosts(buffer.pa, buffer.bytes) {
        return Err(problem("it names the host's memory as its buffer"));
    }
    machine.buffer = memory::window(buffer.pa, buffer.bytes)
        .map_err(|e| problem(&alloc::format!("its buffer: {e}")))?;
    *STORE.lock() = Some(Open {
        erst,
        machine,
        buffer: buffer.bytes.min(RECORD as u64),
        used: 0,
    });
    Ok(())
}

/// Returns true if the store can be used.
pub fn is_open() -> bool {
    STORE.lock().is_some()
}

/// Reads the pieces of a report.
pub fn read() -> Vec<Vec<u8>> {
    let mut store = STORE.lock();
    let Some(open) = &mut *store else {
        return Vec::new();
    };
    let mut record = vec![0; open.buffer as usize];
    let mut found = Vec::new();
    for number in 0..MAX_PIECES {
        let id = FIRST + u64::from(number);
        if open.erst.read(id, &mut record, &mut open.machine).is_err() {
            break;
        }
        let Some(piece) = cper::decode(id, &record) else {
            break;
        };
        open.used = number + 1;
        found.push(piece.to_vec());
    }
    found
}

/// Keeps a report. The store's first refusal ends it.
pub fn keep(of: Identity, text: &[u8]) {
    // The lock's holder may be a CPU that no longer runs.
    let Some(mut store) = STORE.try_lock() else {
        return;
    };
    let Some(open) = &mut *store else { return };
    let mut record = [0; RECORD];
    let record = &mut record[..open.buffer as usize];
    let size = record.len() - cper::OVERHEAD;
    for (number, piece) in (0u16..).zip(pieces(of, text, size)) {
        let id = FIRST + u64::from(number);
        let Some(len) = cper::encode(id, record, |body| piece.encode(body)) else {
            return;
        };
        let written = open
            .erst
            .write(id, &record[..len], open.buffer, &mut open.machine);
        if written.is_err() {
            return;
        }
    }
}

/// Removes the records that were found.
///
/// # Errors
/// The store's.
pub fn clear() -> Result<(), Error> {
    let mut store = STORE.lock();
    let Some(open) = &mut *store else {
        return Ok(());
    };
    while open.used > 0 {
        let id = FIRST + u64::from(open.used - 1);
        match open.erst.clear(id, &mut open.machine) {
            Ok(()) | Err(Error::NoRecord) => open.used -= 1,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The store's registers and buffer, mapped.
struct Machine {
    /// Physical and virtual addresses of the registers in memory.
    registers: Vec<(u64, u64)>,
    buffer: u64,
}

impl Machine {
    fn with(erst: &Erst) -> Option<Self> {
        let mut registers: Vec<(u64, u64)> = Vec::new();
        for register in erst.registers() {
            if let Place::Memory(pa) = register.place
                && !registers.iter().any(|mapped| mapped.0 == pa)
            {
                // Any access to a register has at most 8 bytes.
                if memory::is_hosts(pa, 8) {
                    return None;
                }
                registers.push((pa, memory::window(pa, 8).ok()?));
            }
        }
        Some(Self {
            registers,
            buffer: 0,
        })
    }

    fn at(&self, pa: u64) -> u64 {
        let found = self.registers.iter().find(|mapped| mapped.0 == pa);
        found.expect("every register was mapped").1
    }
}

impl Access for Machine {
    fn read(&mut self, register: Register) -> u64 {
        // SAFETY: the firmware says that this is a register of the store, and it is not the host's memory; memory is
        // mapped, and aligned to the width.
        unsafe {
            match (register.place, register.width) {
                (Place::Port(port), 1) => Port::<u8>::new(port).read().into(),
                (Place::Port(port), 2) => Port::<u16>::new(port).read().into(),
                (Place::Port(port), _) => Port::<u32>::new(port).read().into(),
                (Place::Memory(pa), 1) => (self.at(pa) as *const u8).read_volatile().into(),
                (Place::Memory(pa), 2) => (self.at(pa) as *const u16).read_volatile().into(),
                (Place::Memory(pa), 4) => (self.at(pa) as *const u32).read_volatile().into(),
                (Place::Memory(pa), _) => (self.at(pa) as *const u64).read_volatile(),
            }
        }
    }

    fn write(&mut self, register: Register, value: u64) {
        // SAFETY: as above.
        unsafe {
            match (register.place, register.width) {
                (Place::Port(port), 1) => Port::new(port).write(value as u8),
                (Place::Port(port), 2) => Port::new(port).write(value as u16),
                (Place::Port(port), _) => Port::new(port).write(value as u32),
                (Place::Memory(pa), 1) => (self.at(pa) as *mut u8).write_volatile(value as u8),
                (Place::Memory(pa), 2) => (self.at(pa) as *mut u16).write_volatile(value as u16),
                (Place::Memory(pa), 4) => (self.at(pa) as *mut u32).write_volatile(value as u32),
                (Place::Memory(pa), _) => (self.at(pa) as *mut u64).write_volatile(value),
            }
        }
    }

    fn stall(&mut self, us: u64) {
        time::wait_us(us, || false);
    }

    fn put(&mut self, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: the buffer is mapped, and has at least as many bytes.
            unsafe { (self.buffer as *mut u8).add(i).write_volatile(*byte) };
        }
    }

    fn get(&mut self, bytes: &mut [u8]) {
        for (i, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: as above.
            *byte = unsafe { (self.buffer as *const u8).add(i).read_volatile() };
        }
    }
}
