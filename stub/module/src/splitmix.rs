//! SplitMix64: a pseudo-random generator with a seed.

/// The increment of the state between two numbers.
#[cfg(any(test, feature = "host"))]
pub const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Returns the number of a state. It also serves as a general bit mixer.
pub const fn mix(state: u64) -> u64 {
    let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_of_seed_zero_is_the_published_one() {
        assert_eq!(mix(STEP), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(STEP.wrapping_mul(2)), 0x6e78_9e6a_a1b9_65f4);
    }
}
