//! The size of the SEAM range that the monitor reserves.
//!
//! The monitor allocates the memory of all processors when it starts. The size is therefore a function of their number
//! and of the memory whose owners it tracks.

/// The monitor's memory for one processor, in bytes: 1 MiB of nested page tables for TDs, a stack of 128 KiB, the
/// tables of the single step, and descriptor tables.
const PER_PROCESSOR: u64 = 1408 << 10;
/// Memory for the machine as a whole: identity map, nested page tables, the module's state, and a reserve.
const FIXED: u64 = 10 << 20;
/// Memory for each GiB of physical memory up to the end of RAM.
const PER_GIB: u64 = 16 << 10;
/// SEAMRR's granularity.
const GRAIN: u64 = 32 << 20;
const GIB: u64 = 1 << 30;

/// Returns the size of the SEAM range in bytes, which is also its alignment, for a monitor of `image` bytes on a
/// machine with this number of processors and with RAM up to `end_of_ram`.
#[must_use]
pub fn seam_range(image: u64, processors: u64, end_of_ram: u64) -> u64 {
    let memory = end_of_ram.div_ceil(GIB).saturating_mul(PER_GIB);
    let wanted = processors
        .saturating_mul(PER_PROCESSOR)
        .saturating_add(image + FIXED)
        .saturating_add(memory);
    // SEAMRR's mask can only describe powers of two.
    wanted.clamp(GRAIN, GIB).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_machine_has_the_smallest_range() {
        assert_eq!(seam_range(1 << 20, 1, 1 << 31), 32 << 20);
        assert_eq!(seam_range(1 << 20, 4, 1 << 31), 32 << 20);
    }

    #[test]
    fn the_range_grows_with_processors_and_memory() {
        for processors in 1..=255 {
            for gib in [1, 2, 9, 512] {
                let size = seam_range(1 << 20, processors, gib * GIB);
                assert!(size.is_power_of_two() && size.is_multiple_of(GRAIN));
                assert!(size >= FIXED + processors * PER_PROCESSOR + gib * PER_GIB);
            }
        }
    }

    #[test]
    fn the_range_stays_where_starting_processors_can_load_cr3() {
        assert!(seam_range(1 << 20, 255, 512 * GIB) <= 512 << 20);
        assert_eq!(seam_range(1 << 20, u64::MAX, u64::MAX), GIB);
    }
}
