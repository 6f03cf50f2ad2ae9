//! The place of a logical processor: package, core, thread.
//!
//! Source: Intel SDM volume 2A, CPUID leafs 0x0B and 0x1F; volume 3A, section 9.9.

use seam::platform::Registers;

/// The place of one logical processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The x2APIC id.
    pub x2apic_id: u32,
    /// The package: the id above the shift of the last level.
    pub package: u32,
    /// The core within the package.
    pub core: u32,
    /// The thread within the core.
    pub thread: u32,
}

impl Place {
    /// Returns the x2APIC id of the first thread of this processor's core, which identifies the core in the machine.
    #[must_use]
    pub const fn first_thread(self) -> u32 {
        self.x2apic_id - self.thread
    }
}

/// The split of ids into thread, core and package.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shifts {
    /// Number of id bits for the thread within its core.
    pub core: u32,
    /// Number of id bits for everything within the package.
    pub package: u32,
}

impl Shifts {
    /// Returns the place of the processor with this id.
    #[must_use]
    pub fn place(self, x2apic_id: u32) -> Place {
        let below = |bits: u32| x2apic_id & (1u32.checked_shl(bits).map_or(u32::MAX, |b| b - 1));
        Place {
            x2apic_id,
            package: x2apic_id.checked_shr(self.package).unwrap_or(0),
            core: below(self.package).checked_shr(self.core).unwrap_or(0),
            thread: below(self.core),
        }
    }
}

/// Maximum number of levels to read; a CPU that lists more repeats itself.
const MAX_LEVELS: u32 = 8;
const TYPE_INVALID: u32 = 0;
const TYPE_SMT: u32 = 1;

/// Returns the place of the CPU that `registers` belong to, and the split of its ids.
pub fn read(registers: &impl Registers) -> (Place, Shifts) {
    [0x1F, 0x0B]
        .into_iter()
        .find_map(|leaf| from_levels(registers, leaf))
        .unwrap_or_else(|| {
            // Without either leaf: one thread in one core in the package that the id names.
            let id = registers.cpuid(1, 0)[1] >> 24;
            (Shifts::default().place(id), Shifts::default())
        })
}

fn from_levels(registers: &impl Registers, leaf: u32) -> Option<(Place, Shifts)> {
    let mut shifts = Shifts::default();
    let mut id = None;
    for level in 0..MAX_LEVELS {
        let [a, b, c, d] = registers.cpuid(leaf, level);
        let kind = c >> 8 & 0xFF;
        if kind == TYPE_INVALID || b & 0xFFFF == 0 {
            break;
        }
        if kind == TYPE_SMT {
            shifts.core = a & 0x1F;
        }
        shifts.package = a & 0x1F;
        id = Some(d);
    }
    let id = id?;
    Some((shifts.place(id), shifts))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Cpu(&'static [(u32, u32, [u32; 4])]);

    impl Registers for Cpu {
        fn cpuid(&self, leaf: u32, sub_leaf: u32) -> [u32; 4] {
            self.0
                .iter()
                .find(|(l, s, _)| (*l, *s) == (leaf, sub_leaf))
                .map_or([0; 4], |(_, _, r)| *r)
        }
        fn rdmsr(&self, _: u32) -> Option<u64> {
            None
        }
    }

    #[test]
    fn the_last_level_gives_the_package() {
        // Two threads, up to 16 cores, two dies: id 0x6B is package 1, core 0x15 (die included), thread 1.
        let cpu = Cpu(&[
            (0x1F, 0, [1, 2, 0x100, 0x6B]),
            (0x1F, 1, [5, 32, 0x201, 0x6B]),
            (0x1F, 2, [6, 64, 0x502, 0x6B]),
        ]);
        let (place, _) = read(&cpu);
        assert_eq!((place.package, place.core, place.thread), (1, 0x15, 1));
        assert_eq!(place.first_thread(), 0x6A);
    }

    #[test]
    fn leaf_0b_serves_where_1f_is_missing() {
        let cpu = Cpu(&[(0x0B, 0, [0, 1, 0x100, 3]), (0x0B, 1, [1, 2, 0x201, 3])]);
        let (place, shifts) = read(&cpu);
        assert_eq!((place.package, place.core, place.thread), (1, 1, 0));
        assert_eq!(
            shifts,
            Shifts {
                core: 0,
                package: 1
            }
        );
    }

    #[test]
    fn an_old_cpu_is_one_thread_in_the_package_of_its_id() {
        let (place, _) = read(&Cpu(&[(1, 0, [0, 7 << 24, 0, 0])]));
        assert_eq!((place.package, place.core, place.thread), (7, 0, 0));
    }

    #[test]
    fn absurd_shifts_do_not_overflow() {
        let shifts = Shifts {
            core: 32,
            package: 40,
        };
        assert_eq!(shifts.place(5).package, 0);
    }
}
