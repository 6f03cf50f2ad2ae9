//! Descriptors of the invalidation queue.
//!
//! Source: VT-d specification, section 6.5.2 (Queued Invalidation Interface).

/// A descriptor of 16 bytes, lower half first.
pub type Descriptor = [u64; 2];

/// Global granularity, of context and IOTLB descriptors.
const GLOBAL: u64 = 1 << 4;
const DOMAIN: u64 = 2 << 4;
const PAGES: u64 = 3 << 4;

/// Drops all context entries.
pub const CONTEXTS: Descriptor = [1 | GLOBAL, 0];

/// The translations that an IOTLB descriptor drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translations {
    /// Everything.
    All,
    /// Everything of one domain.
    Domain(u16),
    /// `1 << order` pages of a domain from a device address on, which is aligned to them.
    Pages {
        /// The domain's id.
        id: u16,
        /// The device address.
        iova: u64,
        /// Number of pages as a power of two.
        order: u32,
    },
}

/// Drops translations with the tables that led to them, after the reads and writes in flight if the unit can wait for
/// them.
#[must_use]
pub const fn translations(what: Translations, drain_reads: bool, drain_writes: bool) -> Descriptor {
    let drain = (drain_writes as u64) << 6 | (drain_reads as u64) << 7;
    match what {
        Translations::All => [2 | GLOBAL | drain, 0],
        Translations::Domain(id) => [2 | DOMAIN | drain | (id as u64) << 16, 0],
        Translations::Pages { id, iova, order } => [
            2 | PAGES | drain | (id as u64) << 16,
            iova & !0xFFF | order as u64,
        ],
    }
}

/// Drops all interrupt entries.
pub const INTERRUPTS: Descriptor = [4, 0];

/// Drops one interrupt entry.
#[must_use]
pub const fn interrupt(entry: u16) -> Descriptor {
    [4 | 1 << 4 | (entry as u64) << 32, 0]
}

/// Writes `status` to `pa` after all descriptors before it are done.
#[must_use]
pub const fn wait(pa: u64, status: u32) -> Descriptor {
    const STATUS_WRITE: u64 = 1 << 5;
    const FENCE: u64 = 1 << 6;
    [5 | STATUS_WRITE | FENCE | (status as u64) << 32, pa]
}
