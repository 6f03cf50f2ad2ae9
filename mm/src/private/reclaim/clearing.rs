//! What becomes of a page's content before the page is anyone else's.

use core::fmt;
use core::str::FromStr;

use seam::abi::PageSize;
use seam::address::Hpa;
use seam::page::Clear;

/// What the operator wants: `clear = always | erratum | reuse`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClearPolicy {
    /// Clear everything that was a TD's.
    #[default]
    Always,
    /// Clear it where a partial write to it would otherwise be a machine check later; elsewhere the next owner finds
    /// what the CPU reads of memory that was encrypted with a key that is gone.
    Erratum,
    /// Keep it as it is, for another TD alone.
    Reuse,
}

impl ClearPolicy {
    /// What is done on a CPU that has the partial-write erratum
    /// ([`seam::erratum::has_partial_write`]), or not.
    pub const fn on(self, has_erratum: bool) -> Clearing {
        match self {
            Self::Erratum if !has_erratum => Clearing::Leave,
            Self::Always | Self::Erratum => Clearing::Clear,
            Self::Reuse => Clearing::Keep,
        }
    }

    /// As the configuration writes it.
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

/// What is done with the content of a page that comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clearing {
    /// It is cleared.
    Clear,
    /// It is left; the frame is anyone's.
    Leave,
    /// It is left; the frame is another TD's.
    Keep,
}

/// What stands for clearing where the content is left.
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
