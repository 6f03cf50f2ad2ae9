//! The machine as the driver of VT-d units needs it.
#![expect(
    unsafe_code,
    reason = "a unit's registers are device memory, and its tables are frames reached through the direct map"
)]

use alloc::{format, string::String};
use core::arch::x86_64::{__cpuid, _mm_clflush, _mm_mfence};

use mm::frames::Frame;
use vtd::{Platform, Registers};

use crate::{
    memory::{self, direct},
    time,
};

/// The machine.
#[derive(Clone, Copy, Debug)]
pub struct Hardware;

/// The registers of one unit, at this address.
#[derive(Debug)]
pub struct Window(u64);

impl Registers for Window {
    fn read32(&self, offset: u32) -> u32 {
        // SAFETY: the window maps the unit's registers, and the driver reads those that the unit has.
        unsafe { ((self.0 + u64::from(offset)) as *const u32).read_volatile() }
    }

    fn write32(&self, offset: u32, value: u32) {
        // SAFETY: as above. The driver gives the unit only tables in frames of its own.
        unsafe { ((self.0 + u64::from(offset)) as *mut u32).write_volatile(value) }
    }

    fn read64(&self, offset: u32) -> u64 {
        // SAFETY: as above.
        unsafe { ((self.0 + u64::from(offset)) as *const u64).read_volatile() }
    }

    fn write64(&self, offset: u32, value: u64) {
        // SAFETY: as above.
        unsafe { ((self.0 + u64::from(offset)) as *mut u64).write_volatile(value) }
    }
}

impl Platform for Hardware {
    type Registers = Window;

    fn registers(&self, base: u64, bytes: u64) -> Result<Window, String> {
        let window = memory::device(base, bytes);
        window.map(Window).map_err(|error| format!("{error}"))
    }

    fn take(&self, order: u32) -> Option<u64> {
        let frame = memory::alloc_zeroed(order)?;
        self.write_back(frame.pa, frame.bytes());
        Some(frame.pa)
    }

    fn give(&self, pa: u64, order: u32) {
        if let Err(error) = memory::free(Frame { pa, order }) {
            log::error!("a VT-d table at {pa:#x} could not be freed: {error}");
        }
    }

    fn load(&self, pa: u64) -> u64 {
        // SAFETY: the driver loads from its own frames, which the direct map has. A unit may write there.
        unsafe { (direct(pa) as *const u64).read_volatile() }
    }

    fn store(&self, pa: u64, value: u64) {
        // SAFETY: as above; nothing borrows from the frames. Stores to write-back memory are seen in their order.
        unsafe { (direct(pa) as *mut u64).write_volatile(value) }
    }

    fn write_back(&self, pa: u64, bytes: u64) {
        let step = line_bytes();
        let first = direct(pa) / step * step;
        for line in (first..direct(pa) + bytes).step_by(step as usize) {
            // SAFETY: the direct map has the frame; flushing a line changes nothing but where its data is.
            unsafe { _mm_clflush(line as *const u8) };
        }
        // SAFETY: a fence has no operands. It orders the flushes with what follows.
        unsafe { _mm_mfence() };
    }

    fn now_us(&self) -> u64 {
        time::us()
    }

    fn relax(&self) {
        core::hint::spin_loop();
    }
}

/// Returns the size in bytes of the cache line that CLFLUSH flushes (CPUID 1, EBX bits 15:8, in units of 8).
fn line_bytes() -> u64 {
    u64::from(__cpuid(1).ebx >> 8 & 0xFF).max(1) * 8
}
