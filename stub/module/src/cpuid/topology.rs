//! A TD's processor topology: CPUID(1FH) as configured, and CPUID(0BH) derived from it.

use super::virt::ConfigError;
use super::{EAX, EBX, ECX, NUM_ROWS, Native, Registers, native::NUM_LEVELS};

/// Level types: none, threads of a core, cores.
const INVALID: u32 = 0;
const SMT: u32 = 1;
const CORE: u32 = 2;
/// The first level type that does not exist.
const TYPES_END: u32 = 6;
/// Sub-leafs of CPUID(0BH).
const OLD_LEVELS: u32 = 3;

/// Returns the type of the level that a sub-leaf describes.
const fn level_type(value: Registers) -> u32 {
    value[ECX] >> 8 & 0xFF
}

/// Completes the values of leafs 0x1F and 0xB. A topology that is not configured is that of the CPU.
///
/// # Errors
/// [`ConfigError::Topology`].
pub fn complete(native: &Native, values: &mut [Registers; NUM_ROWS]) -> Result<(), ConfigError> {
    let row = |leaf, level| native.table.find(leaf, level).ok_or(ConfigError::Topology);
    let mut levels = [[0; 4]; NUM_LEVELS];
    for (level, value) in (0..).zip(&mut levels) {
        *value = values[row(0x1F, level)?];
    }
    if levels[0] == [0; 4] {
        if levels.iter().any(|level| *level != [0; 4]) {
            return Err(ConfigError::Topology);
        }
        levels = native.topology;
        for (level, value) in (0..).zip(levels) {
            values[row(0x1F, level)?] = value;
        }
    }
    let highest = check(&levels)?;
    let has_threads = level_type(levels[0]) == SMT;
    if has_threads {
        values[row(0xB, 0)?] = levels[0];
    }
    for level in u32::from(has_threads)..OLD_LEVELS {
        let first = level == u32::from(has_threads);
        let [eax, ebx, _, edx] = highest;
        let (eax, ebx, kind) = if first {
            (eax, ebx, CORE)
        } else {
            (0, 0, INVALID)
        };
        values[row(0xB, level)?] = [eax, ebx, kind << 8 | level, edx];
    }
    Ok(())
}

/// Checks the levels, and returns the highest valid one.
fn check(levels: &[Registers; NUM_LEVELS]) -> Result<Registers, ConfigError> {
    let (mut last_type, mut has_cores) = (INVALID, false);
    let mut highest = [0; 4];
    for (number, level) in (0..).zip(levels) {
        let kind = level_type(*level);
        if kind == INVALID {
            if number == 0 || !has_cores {
                return Err(ConfigError::Topology);
            }
        } else {
            let misplaced = kind == SMT && number != 0;
            if kind <= last_type || kind >= TYPES_END || level[ECX] & 0xFF != number || misplaced {
                return Err(ConfigError::Topology);
            }
            has_cores |= kind == CORE;
            highest = [level[EAX], level[EBX], level[ECX], level[3]];
        }
        last_type = kind;
    }
    Ok(highest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREADS: Registers = [1, 2, SMT << 8, 0];
    const CORES: Registers = [7, 128, CORE << 8 | 1, 0];
    const NONE: Registers = [0; 4];

    #[test]
    fn levels_ascend_from_threads_to_packages_and_have_cores_among_them() {
        let end = |level| [0, 0, level, 0];
        let whole = [THREADS, CORES, end(2), end(3), end(4), end(5)];
        assert_eq!(check(&whole), Ok(CORES));
        let refused = Err(ConfigError::Topology);
        assert_eq!(check(&[NONE; 6]), refused);
        assert_eq!(check(&[THREADS, end(1), NONE, NONE, NONE, NONE]), refused);
        assert_eq!(check(&[CORES, THREADS, NONE, NONE, NONE, NONE]), refused);
        let alone = [7, 128, CORE << 8, 0];
        assert_eq!(check(&[alone, NONE, NONE, NONE, NONE, NONE]), Ok(alone));
    }
}
