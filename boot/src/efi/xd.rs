//! The execute-disable bit of page tables, which an option of the firmware's setup can take away.
//!
//! Source: Intel SDM volume 4, IA32_MISC_ENABLE (0x1A0), bit 34.

use core::arch::x86_64::__cpuid;

use x86_64::registers::model_specific::Msr;

use super::Error;

const MISC_ENABLE: u32 = 0x1A0;
const XD_DISABLE: u64 = 1 << 34;
/// "GenuineIntel" in EBX, EDX, ECX.
const INTEL: [u32; 3] = [0x756E_6547, 0x4965_6E69, 0x6C65_746E];

/// Makes sure that the CPU has an execute-disable bit. Returns true if the firmware had disabled it, which then holds
/// for every CPU.
///
/// # Errors
/// [`Error::NoExecuteDisable`].
pub(super) fn enable() -> Result<bool, Error> {
    if is_there() {
        return Ok(false);
    }
    let vendor = __cpuid(0);
    if [vendor.ebx, vendor.edx, vendor.ecx] != INTEL {
        return Err(Error::NoExecuteDisable);
    }
    let mut register = Msr::new(MISC_ENABLE);
    // SAFETY: every Intel CPU with a 64-bit mode has the register. The bit only takes the feature away.
    unsafe {
        let value = register.read();
        if value & XD_DISABLE != 0 {
            register.write(value & !XD_DISABLE);
        }
    }
    if is_there() {
        Ok(true)
    } else {
        Err(Error::NoExecuteDisable)
    }
}

fn is_there() -> bool {
    __cpuid(0x8000_0001).edx & 1 << 20 != 0
}
