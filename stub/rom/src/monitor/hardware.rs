//! QEMU's local APIC and the NMI of the executing processor.
#![expect(unsafe_code, reason = "accesses the local APIC and takes NMIs")]

use stub_rom::apic::{self, Xapic};

/// Commands of the ICR: delivery mode and level.
pub mod command {
    pub const FIXED: u32 = 0x4000;
    pub const NMI: u32 = 0x4400;
    pub const INIT: u32 = 0x4500;
    pub const STARTUP: u32 = 0x4600;
}

/// QEMU's local APIC of the executing processor, permanently in xAPIC mode.
pub struct Hardware;

impl Xapic for Hardware {
    fn read(&self, offset: u32) -> u32 {
        // SAFETY: the monitor's page tables map the APIC at itself; the offset is a register's, inside the page.
        unsafe { ((apic::BASE + u64::from(offset & 0xFF0)) as *const u32).read_volatile() }
    }

    fn write(&mut self, offset: u32, value: u32) {
        // SAFETY: as for `read`; what is written was checked by the APIC model.
        unsafe { ((apic::BASE + u64::from(offset & 0xFF0)) as *mut u32).write_volatile(value) };
    }
}

impl Hardware {
    /// Sends the command to the processor with this id. The software's own ICR is a shadow, so nothing is lost.
    pub fn send(&mut self, id: u32, command: u32) {
        self.write(0x310, id << 24);
        self.write(0x300, command);
    }
}

/// Lets a pending NMI in, and drops it.
pub fn take_nmi() {
    // SAFETY: interrupts are off in the monitor, so that only an NMI comes in, whose handler returns at once.
    unsafe { core::arch::asm!("stgi", "nop", "clgi") };
}
