//! CPU errata that the host has to work around.

use crate::platform::Registers;

/// Family 6, models 0x8F (Sapphire Rapids) and 0xCF (Emerald Rapids): bits 27:20 and 19:4 of CPUID 1 EAX, without
/// stepping and type.
///
/// No register reports the erratum. Source: Linux, `check_tdx_erratum` in `arch/x86/virt/vmx/tdx/tdx.c`, which uses the
/// same list.
const MODELS: [u32; 2] = [0x0008_06F0, 0x000C_06F0];
const FAMILY_AND_MODEL: u32 = 0x0FFF_0FF0;

/// Returns whether the CPU has the partial-write erratum: a write smaller than a cache line to memory that is, or was,
/// a TD's makes the next read of that line a machine check. Writing the whole line with MOVDIR64B repairs it.
pub fn has_partial_write(registers: &impl Registers) -> bool {
    MODELS.contains(&(registers.cpuid(1, 0)[0] & FAMILY_AND_MODEL))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Cpu(u32);

    impl Registers for Cpu {
        fn cpuid(&self, leaf: u32, _: u32) -> [u32; 4] {
            [if leaf == 1 { self.0 } else { 0 }, 0, 0, 0]
        }

        fn rdmsr(&self, _: u32) -> Option<u64> {
            None
        }
    }

    #[test]
    fn the_first_two_generations_have_it() {
        // Sapphire Rapids, Emerald Rapids; Granite Rapids, Sierra Forest, an AMD CPU.
        for (eax, has) in [
            (0x0008_06F8, true),
            (0x000C_06F2, true),
            (0x000A_06D1, false),
            (0x000A_06F3, false),
            (0x00A1_0F11, false),
        ] {
            assert_eq!(has_partial_write(&Cpu(eax)), has, "{eax:#x}");
        }
    }
}
