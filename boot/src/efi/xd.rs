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

/// The CPU, as far as the bit is concerned.
trait Cpu {
    /// Returns true if CPUID shows the bit.
    fn has_xd(&self) -> bool;
    /// Returns true if the CPU is Intel's.
    fn is_intel(&self) -> bool;
    /// Reads IA32_MISC_ENABLE of an Intel CPU.
    fn misc_enable(&self) -> u64;
    /// Clears [`XD_DISABLE`] in IA32_MISC_ENABLE of an Intel CPU, whose other bits are `value`.
    fn set_misc_enable(&mut self, value: u64);
}

/// Makes sure that the CPU has an execute-disable bit. Returns true if the firmware had disabled it, which then holds
/// for every CPU.
///
/// # Errors
/// [`Error::NoExecuteDisable`].
pub(super) fn enable() -> Result<bool, Error> {
    enable_on(&mut Running)
}

fn enable_on(cpu: &mut impl Cpu) -> Result<bool, Error> {
    if cpu.has_xd() {
        return Ok(false);
    }
    if !cpu.is_intel() {
        return Err(Error::NoExecuteDisable);
    }
    let value = cpu.misc_enable();
    if value & XD_DISABLE != 0 {
        cpu.set_misc_enable(value & !XD_DISABLE);
    }
    if cpu.has_xd() {
        Ok(true)
    } else {
        Err(Error::NoExecuteDisable)
    }
}

/// The running CPU.
struct Running;

impl Cpu for Running {
    fn has_xd(&self) -> bool {
        __cpuid(0x8000_0001).edx & 1 << 20 != 0
    }
    fn is_intel(&self) -> bool {
        let vendor = __cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx] == INTEL
    }
    fn misc_enable(&self) -> u64 {
        // SAFETY: every Intel CPU with a 64-bit mode has the register.
        unsafe { Msr::new(MISC_ENABLE).read() }
    }
    fn set_misc_enable(&mut self, value: u64) {
        // SAFETY: as above. The cleared bit only takes the feature away; the others stay.
        unsafe { Msr::new(MISC_ENABLE).write(value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CPU whose CPUID follows IA32_MISC_ENABLE, if it has the feature at all.
    struct Model {
        has_feature: bool,
        is_intel: bool,
        misc_enable: u64,
        writes: u32,
    }

    impl Cpu for Model {
        fn has_xd(&self) -> bool {
            self.has_feature && self.misc_enable & XD_DISABLE == 0
        }
        fn is_intel(&self) -> bool {
            self.is_intel
        }
        fn misc_enable(&self) -> u64 {
            assert!(self.is_intel, "the register may be absent");
            self.misc_enable
        }
        fn set_misc_enable(&mut self, value: u64) {
            self.misc_enable = value;
            self.writes += 1;
        }
    }

    fn model(misc_enable: u64) -> Model {
        Model {
            has_feature: true,
            is_intel: true,
            misc_enable,
            writes: 0,
        }
    }

    #[test]
    fn a_bit_that_the_firmware_disabled_comes_back() {
        let mut cpu = model(XD_DISABLE | 0x85_0089);
        assert!(enable_on(&mut cpu).unwrap());
        assert_eq!((cpu.misc_enable, cpu.writes), (0x85_0089, 1));
    }

    #[test]
    fn a_cpu_that_has_the_bit_is_left_alone() {
        let mut cpu = model(0x85_0089);
        assert!(!enable_on(&mut cpu).unwrap());
        assert_eq!(cpu.writes, 0);
    }

    #[test]
    fn a_cpu_without_the_bit_is_refused() {
        for (is_intel, misc_enable) in [(true, 0), (true, XD_DISABLE), (false, XD_DISABLE)] {
            let mut cpu = Model {
                has_feature: false,
                is_intel,
                ..model(misc_enable)
            };
            let refused = enable_on(&mut cpu);
            assert!(matches!(refused, Err(Error::NoExecuteDisable)));
        }
    }
}
