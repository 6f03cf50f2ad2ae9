//! A bitmap in memory that the caller keeps.

use arrayvec::ArrayVec;

/// A bitmap with summary levels, so that finding its first set bit takes one step per level.
#[derive(Clone, Debug)]
pub struct Bitmap {
    bits: usize,
    /// Start of each level. Level 0 holds the bits; each bit of a higher level tells whether a word below it is
    /// nonzero.
    levels: ArrayVec<usize, 8>,
}

impl Bitmap {
    /// Creates a bitmap of `bits` clear bits whose words begin at `next`. Moves `next` behind them.
    pub fn layout(next: &mut usize, bits: usize) -> Self {
        let mut levels = ArrayVec::new();
        let mut words = bits.div_ceil(64).max(1);
        loop {
            levels.push(*next);
            *next += words;
            if words == 1 {
                return Self { bits, levels };
            }
            words = words.div_ceil(64);
        }
    }

    /// Returns whether a bit is set.
    pub fn get(&self, words: &[u64], index: usize) -> bool {
        index < self.bits && words[self.levels[0] + index / 64] >> (index % 64) & 1 != 0
    }

    /// Sets a bit.
    pub fn set(&self, words: &mut [u64], mut index: usize) {
        for level in &self.levels {
            let word = &mut words[level + index / 64];
            let was = *word;
            *word |= 1 << (index % 64);
            if was != 0 {
                return;
            }
            index /= 64;
        }
    }

    /// Clears a bit.
    pub fn clear(&self, words: &mut [u64], mut index: usize) {
        for level in &self.levels {
            let word = &mut words[level + index / 64];
            *word &= !(1 << (index % 64));
            if *word != 0 {
                return;
            }
            index /= 64;
        }
    }

    /// Returns the first set bit at or after `index`.
    pub fn first(&self, words: &[u64], mut index: usize) -> Option<usize> {
        let mut bits = self.bits;
        for (level, start) in self.levels.iter().enumerate() {
            let here = index / 64;
            if here >= bits.div_ceil(64) {
                return None;
            }
            let word = words[start + here] & (u64::MAX << (index % 64));
            if word != 0 {
                let found = here * 64 + word.trailing_zeros() as usize;
                let below = self.levels[..level].iter().rev();
                return Some(below.fold(found, |found, start| {
                    found * 64 + words[start + found].trailing_zeros() as usize
                }));
            }
            index = here + 1;
            bits = bits.div_ceil(64);
        }
        None
    }
}
