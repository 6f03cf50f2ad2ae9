//! A limit of bytes per second.

/// Part of a second whose bytes may come at once.
const BURST: u64 = 8;

/// A limit, and what is left of it now.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    bytes_per_second: u64,
    left: u64,
    at_us: u64,
}

impl Rate {
    /// Creates a limit.
    #[must_use]
    pub const fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            left: bytes_per_second / BURST,
            at_us: 0,
        }
    }

    /// Takes bytes at this time. Returns `false` if there are not so many left.
    pub fn take(&mut self, bytes: u64, now_us: u64) -> bool {
        let passed = now_us.saturating_sub(self.at_us).min(1_000_000);
        let more = passed * self.bytes_per_second / 1_000_000;
        // Time that is worth no byte yet is kept.
        if more > 0 {
            self.at_us = now_us;
            self.left = (self.left + more).min(self.bytes_per_second / BURST);
        }
        let fits = bytes <= self.left;
        if fits {
            self.left -= bytes;
        }
        fits
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
        assert!((10_000_000..=10_125_000).contains(&sent), "{sent}");
        assert!(!rate.take(125_001, 60_000_000), "more than a burst");
        assert!(rate.take(125_000, 60_000_000));
    }
}
