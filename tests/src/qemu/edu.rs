//! QEMU's `edu`: a device that copies between its buffer and any address, and raises interrupts. A test drives it over
//! the machine's bus.
//!
//! Source: QEMU's `docs/specs/edu.txt`.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Bus;

/// Configuration space of segment 0 on q35, where Debian's OVMF puts it.
const ECAM: u64 = 0xB000_0000;
/// Buses that are searched.
const BUSES: u64 = 16;
/// Device and vendor.
const EDU: u32 = 0x11E8_1234;
const NO_FUNCTION: u32 = u32::MAX;
/// Header type 1, of a bridge.
const BRIDGE: u32 = 1;

const COMMAND: u64 = 4;
/// Memory decoding and bus mastering.
const ACTIVE: u32 = 6;
const BAR0: u64 = 0x10;
const CAPABILITIES: u64 = 0x34;
const MSI: u32 = 5;

/// Registers in the device's memory.
const RAISE: u64 = 0x60;
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const START: u64 = 0x98;
const BUFFER: u64 = 0x4_0000;
/// Start, from the buffer to memory.
const WRITE_MEMORY: u64 = 1 | 2;

/// Time limit of one copy. The device waits for 100 ms of the machine's time.
const COPY: Duration = Duration::from_secs(60);

/// The device.
pub struct Edu {
    bus: Bus,
    /// Address of its configuration space.
    config: u64,
    memory: u64,
    /// Its PCI address, as the hypervisor writes it.
    pub name: String,
}

impl Edu {
    /// Finds the device, and switches its bus mastering and that of the bridges above it on.
    ///
    /// # Errors
    /// The machine has none.
    pub fn take(mut bus: Bus) -> Result<Self> {
        let mut found = None;
        for place in 0..BUSES * 32 {
            // Bus and device; function 0.
            let config = ECAM + (place << 15);
            let id = bus.read32(config)?;
            if id == NO_FUNCTION {
                continue;
            }
            let is_bridge = bus.read32(config + 0x0C)? >> 16 & 0x7F == BRIDGE;
            if is_bridge || id == EDU {
                bus.write32(config + COMMAND, ACTIVE)?;
            }
            if id == EDU {
                found = Some((
                    config,
                    format!("0000:{:02x}:{:02x}.0", place >> 5, place & 31),
                ));
            }
        }
        let (config, name) = found.context("the machine has no edu")?;
        let memory = u64::from(bus.read32(config + BAR0)? & !0xF);
        Ok(Self {
            bus,
            config,
            memory,
            name,
        })
    }

    /// Writes `bytes` zeros, at most 4096, to memory. Returns when the device says that it is done.
    ///
    /// # Errors
    /// The device is never done.
    pub fn write_zeros(&mut self, to: u64, bytes: u64) -> Result<()> {
        self.bus.write64(self.memory + SOURCE, BUFFER)?;
        self.bus.write64(self.memory + DESTINATION, to)?;
        self.bus.write64(self.memory + COUNT, bytes)?;
        self.bus.write64(self.memory + START, WRITE_MEMORY)?;
        let limit = Instant::now() + COPY;
        while self.bus.read32(self.memory + START)? & 1 != 0 {
            ensure!(Instant::now() < limit, "edu is never done");
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Sends an interrupt message.
    ///
    /// # Errors
    /// The device has no MSI capability.
    pub fn interrupt(&mut self, address: u64, data: u32) -> Result<()> {
        let mut at = self.bus.read32(self.config + CAPABILITIES)? & 0xFF;
        while at != 0 {
            let capability = self.config + u64::from(at);
            let header = self.bus.read32(capability)?;
            if header & 0xFF == MSI {
                self.bus.write32(capability + 4, address as u32)?;
                self.bus.write32(capability + 8, (address >> 32) as u32)?;
                self.bus.write32(capability + 12, data)?;
                // MSI Enable.
                self.bus.write32(capability, header | 1 << 16)?;
                return self.bus.write32(self.memory + RAISE, 1);
            }
            at = header >> 8 & 0xFF;
        }
        anyhow::bail!("edu has no MSI capability")
    }

    /// Returns the machine's bus.
    pub fn bus(&mut self) -> &mut Bus {
        &mut self.bus
    }
}
