//! A limit of bytes per second.

/// Part of a second whose bytes may come at once.
const BURST: u64 = 8;

/// A limit, and what is left of it now.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    bytes_per_second: u64,
    /// Negative after a frame that was larger than the rest.
    left: i64,
    at_us: u64,
}

impl Rate {
    /// Creates a limit.
    #[must_use]
    pub const fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            left: Self::burst(bytes_per_second),
            at_us: 0,
        }
    }

    /// Takes the bytes of a frame at this time. Returns `false` if none are left. A frame that is larger than what is left
    /// goes, and later ones wait for it, so that a frame larger than a burst goes as well.
    pub fn take(&mut self, bytes: u64, now_us: u64) -> bool {
        let passed = now_us.saturating_sub(self.at_us).min(1_000_000);
        let more = passed * self.bytes_per_second / 1_000_000;
        // Time that is worth no byte yet is kept.
        if more > 0 {
            self.at_us = now_us;
            let left = self.left.saturating_add_unsigned(more);
            self.left = left.min(Self::burst(self.bytes_per_second));
        }
        let fits = self.left > 0;
        if fits {
            self.left = self.left.saturating_sub_unsigned(bytes);
        }
        fits
    }

    const fn burst(bytes_per_second: u64) -> i64 {
        // An eighth of a number of 64 bits fits. Without any, no frame would ever go.
        (bytes_per_second / BURST) as i64 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_has_more_than_its_bytes_and_a_burst() {
        let mut rate = Rate::new(1_000_000);
        let mut sent = 0;
        for now_us in (0..10_000_000).step_by(100) {
            while rate.take(1000, now_us) {
                sent += 1000;
            }
        }
        assert!((10_000_000..=10_126_001).contains(&sent), "{sent}");
        assert!(
            rate.take(500_000, 60_000_000),
            "a frame larger than a burst"
        );
        assert!(!rate.take(1, 60_370_000), "it is paid for");
        assert!(rate.take(1, 60_400_000));
    }
}
