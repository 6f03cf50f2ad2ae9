//! The CPU's model and microcode, as its makers name them.
//!
//! Source: Intel SDM volume 2A, CPUID; volume 3A, section 10.11.7 (the microcode's signature).
#![expect(unsafe_code, reason = "IA32_BIOS_SIGN_ID is cleared before it is read")]

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use seam::platform::Registers;
use spin::Once;

use crate::msr::{self, ThisCpu};

const BIOS_SIGN_ID: u32 = 0x8B;
/// "GenuineIntel" in EBX, EDX, ECX.
const INTEL: [u32; 3] = [0x756E_6547, 0x4965_6E69, 0x6C65_746E];

static HERE: Once<String> = Once::new();

/// Returns the name, signature and microcode, for people, of the CPU that asks first, which is the boot CPU: "Intel(R)
/// Xeon(R) Platinum 8490H, family 6, model 143, stepping 8, microcode 0x2b000643".
#[must_use]
pub fn here() -> &'static str {
    HERE.call_once(|| describe(&ThisCpu, microcode()))
}

/// Returns the revision of the microcode of the CPU that asks first, as [`here`] does; 0 if it has no register for it.
#[must_use]
pub fn microcode_here() -> u32 {
    static HERE: Once<u32> = Once::new();
    *HERE.call_once(|| microcode().unwrap_or(0))
}

/// Returns the revision of the running CPU's microcode, or `None` if it has no register for it.
pub(super) fn microcode() -> Option<u32> {
    let [_, b, c, d] = ThisCpu.cpuid(0, 0);
    if [b, d, c] != INTEL {
        return msr::read(BIOS_SIGN_ID).map(|value| value as u32);
    }
    msr::read(BIOS_SIGN_ID)?;
    // SAFETY: the CPU has the register, which CPUID fills in after it was cleared.
    unsafe { msr::write(BIOS_SIGN_ID, 0) };
    ThisCpu.cpuid(1, 0);
    msr::read(BIOS_SIGN_ID).map(|value| (value >> 32) as u32)
}

fn describe(registers: &impl Registers, microcode: Option<u32>) -> String {
    let [_, b, c, d] = registers.cpuid(0, 0);
    let words = (0x8000_0002..=0x8000_0004).flat_map(|leaf| registers.cpuid(leaf, 0));
    let name = text(&words.collect::<Vec<_>>());
    let name = if name.is_empty() {
        format!("{} CPU", text(&[b, d, c]))
    } else {
        name
    };
    let signature = registers.cpuid(1, 0)[0];
    let field = |from: u32, bits: u32| signature >> from & ((1 << bits) - 1);
    let (family, model) = (field(8, 4), field(4, 4));
    let extended_model = if matches!(family, 6 | 15) {
        field(16, 4) << 4
    } else {
        0
    };
    let extended_family = if family == 15 { field(20, 8) } else { 0 };
    let microcode = microcode.map_or("unknown".to_string(), |revision| format!("{revision:#x}"));
    format!(
        "{name}, family {}, model {}, stepping {}, microcode {microcode}",
        family + extended_family,
        model | extended_model,
        field(0, 4)
    )
}

/// Returns the printable characters in these registers, without superfluous spaces.
fn text(words: &[u32]) -> String {
    let bytes = words.iter().flat_map(|word| word.to_le_bytes());
    let text: String = bytes
        .take_while(|b| *b != 0)
        .map(|b| if b.is_ascii_graphic() { b as char } else { ' ' })
        .collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Cpu {
        signature: u32,
        brand: &'static [u8],
    }

    impl Registers for Cpu {
        fn cpuid(&self, leaf: u32, _: u32) -> [u32; 4] {
            match leaf {
                0 => [0x20, INTEL[0], INTEL[2], INTEL[1]],
                1 => [self.signature, 0, 0, 0],
                0x8000_0002..=0x8000_0004 => core::array::from_fn(|i| {
                    let at = (leaf - 0x8000_0002) as usize * 16 + i * 4;
                    let byte = |i: usize| self.brand.get(at + i).copied().unwrap_or(0);
                    u32::from_le_bytes(core::array::from_fn(byte))
                }),
                _ => [0; 4],
            }
        }
        fn rdmsr(&self, _: u32) -> Option<u64> {
            None
        }
    }

    #[test]
    fn a_xeon_is_named_with_its_microcode() {
        let cpu = Cpu {
            signature: 0x806F8,
            brand: b"Intel(R) Xeon(R)   Platinum 8490H",
        };
        assert_eq!(
            describe(&cpu, Some(0x2B00_0643)),
            "Intel(R) Xeon(R) Platinum 8490H, family 6, model 143, stepping 8, microcode 0x2b000643"
        );
    }

    #[test]
    fn a_cpu_without_a_name_has_its_makers() {
        let cpu = Cpu {
            signature: 0xA20F10,
            brand: b"",
        };
        assert_eq!(
            describe(&cpu, None),
            "GenuineIntel CPU, family 25, model 33, stepping 0, microcode unknown"
        );
    }
}
