//! The firmware's tables: the memory map, and the parts of ACPI's tables that the tests need.
#![expect(unsafe_code, reason = "reads firmware's tables in place")]

/// The boot parameters.
#[derive(Clone, Copy, Debug)]
pub struct Parameters(u64);

/// The kind of a range of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reserved memory.
    Reserved,
    /// ACPI's non-volatile storage.
    Nvs,
    /// Any other kind.
    Other,
}

/// The multiprocessor wakeup structure, and the number of processors.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wakeup {
    /// The version of the mailbox.
    pub version: u16,
    /// The address of the mailbox.
    pub mailbox: u64,
    /// The address of the reset vector; 0 if there is none.
    pub reset: u64,
    /// Number of processors; their x2APIC ids count from 0.
    pub processors: u32,
}

fn byte(at: u64) -> u8 {
    // SAFETY: all memory is identity-mapped, and the byte belongs to the parameters or to a table.
    unsafe { (at as *const u8).read() }
}

fn word(at: u64) -> u32 {
    u32::from_le_bytes([0, 1, 2, 3].map(|i| byte(at + i)))
}

fn long(at: u64) -> u64 {
    u64::from(word(at)) | u64::from(word(at + 4)) << 32
}

impl Parameters {
    /// Returns the parameters at an address.
    pub const fn at(address: u64) -> Self {
        Self(address)
    }

    fn rsdp(self) -> u64 {
        long(self.0 + 0x70)
    }

    /// Returns the kind of an address in the memory map.
    pub fn kind(&self, address: u64) -> Option<Kind> {
        const MAP: u64 = 0x2D0;
        const ENTRY_BYTES: u64 = 20;
        let count = u64::from(byte(self.0 + 0x1E8));
        let mut entries = (0..count).map(|i| self.0 + MAP + i * ENTRY_BYTES);
        let entry = entries.find(|at| {
            let start = long(*at);
            (start..start + long(at + 8)).contains(&address)
        })?;
        Some(match word(entry + 16) {
            2 => Kind::Reserved,
            4 => Kind::Nvs,
            _ => Kind::Other,
        })
    }
}

/// Reads the MADT.
pub fn wakeup(parameters: &Parameters) -> Option<Wakeup> {
    const HEADER_BYTES: u64 = 36;
    const X2APIC: u8 = 9;
    const WAKEUP: u8 = 0x10;
    const WITH_RESET: u8 = 24;
    let xsdt = long(parameters.rsdp() + 24);
    let pointers = (xsdt + HEADER_BYTES..xsdt + u64::from(word(xsdt + 4))).step_by(8);
    let madt = pointers
        .map(long)
        .find(|at| word(*at) == u32::from_le_bytes(*b"APIC"))?;
    let mut at = madt + HEADER_BYTES + 8;
    let mut found = Wakeup::default();
    while at < madt + u64::from(word(madt + 4)) {
        match byte(at) {
            X2APIC => found.processors += 1,
            WAKEUP => {
                found.version = u16::from_le_bytes([byte(at + 2), byte(at + 3)]);
                found.mailbox = long(at + 8);
                if byte(at + 1) >= WITH_RESET {
                    found.reset = long(at + 16);
                }
            }
            _ => {}
        }
        at += u64::from(byte(at + 1).max(2));
    }
    (found.mailbox != 0).then_some(found)
}
