//! Treatment of a page's content before the page has its next owner.

use core::fmt;
use core::str::FromStr;

use seam::abi::PageSize;
use seam::address::Hpa;
use seam::page::Clear;

/// The operator's choice: `clear = always | erratum | reuse`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClearPolicy {
    /// Clear every page that was a TD's.
    #[default]
    Always,
    /// Clear a page where a partial write to it could otherwise cause a machine check later. Elsewhere the next owner
    /// reads whatever the CPU returns for memory encrypted with a key that is gone.
    Erratum,
    /// Keep a page uncleared, for another TD alone.
    Reuse,
}

impl ClearPolicy {
    /// Returns the treatment on a CPU with or without the partial-write erratum ([`seam::erratum::has_partial_write`]).
    pub const fn on(self, has_erratum: bool) -> Clearing {
        match self {
            Self::Erratum if !has_erratum => Clearing::Leave,
            Self::Always | Self::Erratum => Clearing::Clear,
            Self::Reuse => Clearing::Keep,
        }
    }

    /// Returns the name that the configuration uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Erratum => "erratum",
            Self::Reuse => "reuse",
        }
    }
}

impl fmt::Display for ClearPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that names no [`ClearPolicy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPolicy;

impl fmt::Display for NoPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is one of always, erratum, reuse")
    }
}

impl core::error::Error for NoPolicy {}

impl FromStr for ClearPolicy {
    type Err = NoPolicy;

    fn from_str(word: &str) -> Result<Self, NoPolicy> {
        [Self::Always, Self::Erratum, Self::Reuse]
            .into_iter()
            .find(|policy| policy.name() == word)
            .ok_or(NoPolicy)
    }
}

/// Treatment of the content of a page that is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clearing {
    /// The page is cleared.
    Clear,
    /// The content is left; anyone may get the frame.
    Leave,
    /// The content is left; only another TD may get the frame.
    Keep,
}

/// Stands in for clearing when the content is left.
pub struct Left;

impl Clear for Left {
    fn clear(&self, _: Hpa, _: PageSize) {}
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn a_cpu_with_the_erratum_has_everything_cleared_unless_it_goes_to_another_td() {
        use Clearing::{Clear, Keep, Leave};
        for (word, without, with) in [
            ("always", Clear, Clear),
            ("erratum", Leave, Clear),
            ("reuse", Keep, Keep),
        ] {
            let policy: ClearPolicy = word.parse().unwrap();
            assert_eq!((policy.on(false), policy.on(true)), (without, with));
            assert_eq!(policy.to_string(), word);
        }
        assert_eq!("never".parse::<ClearPolicy>(), Err(NoPolicy));
        assert_eq!(ClearPolicy::default(), ClearPolicy::Always);
    }
}
