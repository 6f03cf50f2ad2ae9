//! One private page as the mirror knows it: its token, and what state its S-EPT entry is in.

use seam::abi::PageSize;
use seam::page::{Donated, Page};

/// When something was blocked, in TLB-tracking rounds of this TD that the host had begun by then. It wraps; two are
/// compared by [`Self::is_covered_by`] alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch(pub(crate) u32);

impl Epoch {
    /// Whether a round numbered `round` began after this.
    pub const fn is_covered_by(self, round: Self) -> bool {
        round.0.wrapping_sub(self.0) as i32 >= 0
    }
}

/// What a blocked page was before.
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
    /// The guest has it: it was added with its content, or the host saw that it was accepted.
    Mapped(Page<Donated>),
    /// It was given for the guest to accept, which the guest does without telling the host.
    Pending(Page<Donated>),
    /// No CPU can begin to use it.
    Blocked {
        /// The page.
        page: Page<Donated>,
        /// When that was done.
        since: Epoch,
        /// What it will be when that is undone.
        was: Was,
    },
}

impl Leaf {
    /// Its page.
    pub const fn page(&self) -> &Page<Donated> {
        match self {
            Self::Mapped(page) | Self::Pending(page) | Self::Blocked { page, .. } => page,
        }
    }

    /// Its page, to be taken from the TD.
    pub fn into_page(self) -> Page<Donated> {
        match self {
            Self::Mapped(page) | Self::Pending(page) | Self::Blocked { page, .. } => page,
        }
    }

    /// Its size.
    pub fn size(&self) -> PageSize {
        self.page().size()
    }

    /// What it is when it is not blocked.
    pub const fn was(&self) -> Was {
        match self {
            Self::Mapped(_) => Was::Mapped,
            Self::Pending(_) => Was::Pending,
            Self::Blocked { was, .. } => *was,
        }
    }

    /// When it was blocked, if it is.
    pub const fn blocked_since(&self) -> Option<Epoch> {
        match self {
            Self::Blocked { since, .. } => Some(*since),
            _ => None,
        }
    }

    /// The same page, blocked.
    pub fn blocked(self, since: Epoch) -> Self {
        Self::Blocked {
            was: self.was(),
            page: self.into_page(),
            since,
        }
    }

    /// A page that is not blocked.
    pub const fn usable(page: Page<Donated>, was: Was) -> Self {
        match was {
            Was::Mapped => Self::Mapped(page),
            Was::Pending => Self::Pending(page),
        }
    }

    /// The same page, not blocked.
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
