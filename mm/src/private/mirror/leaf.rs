//! A private page in the mirror: its token, and the state of its S-EPT entry.

use seam::abi::PageSize;
use seam::page::{Donated, Page};

/// Time at which something was blocked, counted in the TLB-tracking rounds of this TD that had begun by then. It wraps;
/// only [`Self::is_covered_by`] compares two epochs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch(pub(crate) u32);

impl Epoch {
    /// Returns whether a round numbered `round` began after this.
    pub const fn is_covered_by(self, round: Self) -> bool {
        round.0.wrapping_sub(self.0) as i32 >= 0
    }
}

/// State of a page before it was blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Was {
    /// [`Leaf::Mapped`].
    Mapped,
    /// [`Leaf::Pending`].
    Pending,
}

/// A private page that the TD owns.
#[derive(Debug)]
#[must_use = "it owns the page"]
pub enum Leaf {
    /// The guest can use it: it was added with its content, or the host saw that the guest accepted it.
    Mapped(Page<Donated>),
    /// Added for the guest to accept, which the guest does without telling the host.
    Pending(Page<Donated>),
    /// Blocked: no CPU can begin to use it.
    Blocked {
        /// The page.
        page: Page<Donated>,
        /// Epoch of the block.
        since: Epoch,
        /// Its state once unblocked.
        was: Was,
    },
}

impl Leaf {
    /// Returns its page.
    pub const fn page(&self) -> &Page<Donated> {
        match self {
            Self::Mapped(page) | Self::Pending(page) | Self::Blocked { page, .. } => page,
        }
    }

    /// Returns its page, to be taken from the TD.
    pub fn into_page(self) -> Page<Donated> {
        match self {
            Self::Mapped(page) | Self::Pending(page) | Self::Blocked { page, .. } => page,
        }
    }

    /// Returns its size.
    pub fn size(&self) -> PageSize {
        self.page().size()
    }

    /// Returns its state when it is not blocked.
    pub const fn was(&self) -> Was {
        match self {
            Self::Mapped(_) => Was::Mapped,
            Self::Pending(_) => Was::Pending,
            Self::Blocked { was, .. } => *was,
        }
    }

    /// Returns the epoch at which it was blocked, if it is blocked.
    pub const fn blocked_since(&self) -> Option<Epoch> {
        match self {
            Self::Blocked { since, .. } => Some(*since),
            _ => None,
        }
    }

    /// Returns the same page, blocked.
    pub fn blocked(self, since: Epoch) -> Self {
        Self::Blocked {
            was: self.was(),
            page: self.into_page(),
            since,
        }
    }

    /// Returns a page that is not blocked.
    pub const fn usable(page: Page<Donated>, was: Was) -> Self {
        match was {
            Was::Mapped => Self::Mapped(page),
            Was::Pending => Self::Pending(page),
        }
    }

    /// Returns the same page, not blocked.
    pub fn unblocked(self) -> Self {
        let was = self.was();
        Self::usable(self.into_page(), was)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_covers_what_was_blocked_before_it_began_even_when_the_count_wraps() {
        assert!(Epoch(4).is_covered_by(Epoch(4)));
        assert!(!Epoch(5).is_covered_by(Epoch(4)));
        assert!(Epoch(u32::MAX).is_covered_by(Epoch(0)));
        assert!(!Epoch(0).is_covered_by(Epoch(u32::MAX)));
    }
}
