//! A structure that is spread over several donated pages, read and written by offset.

use core::sync::atomic::Ordering;

use crate::machine::PageWords;

/// Up to `N` donated pages that together hold one structure (TDCS, TDVPS), in the order in which they were donated.
#[derive(Clone, Copy, Debug)]
pub struct Pages<'m, const N: usize> {
    pages: [Option<&'m PageWords>; N],
}

impl<'m, const N: usize> Pages<'m, N> {
    /// No page yet.
    pub const EMPTY: Self = Self { pages: [None; N] };

    /// The same structure with `page` as its page number `index`.
    #[must_use]
    pub fn with(mut self, index: usize, page: &'m PageWords) -> Self {
        self.pages[index] = Some(page);
        self
    }

    /// Page number `index`, if it was donated.
    pub fn page(&self, index: usize) -> Option<&'m PageWords> {
        self.pages.get(index).copied().flatten()
    }

    fn word(&self, offset: usize) -> Option<&'m core::sync::atomic::AtomicU64> {
        self.page(offset / 4096)
            .map(|page| &page[offset % 4096 / 8])
    }

    /// The `size` (1, 2, 4 or 8) bytes at `offset`, zero-extended. A page that was not donated reads as zero.
    pub fn read(&self, offset: usize, size: usize) -> u64 {
        let shift = offset % 8 * 8;
        let load = |at| self.word(at).map_or(0, |word| word.load(Ordering::Relaxed));
        let mut value = load(offset & !7) >> shift;
        if offset % 8 + size > 8 {
            value |= load((offset & !7) + 8) << (64 - shift);
        }
        value & mask(size)
    }

    /// Writes the low `size` (1, 2, 4 or 8) bytes of `value` at `offset`, and leaves their neighbours alone. A page
    /// that was not donated ignores it.
    pub fn write(&self, offset: usize, size: usize, value: u64) {
        let shift = offset % 8 * 8;
        let value = value & mask(size);
        let store = |at, clear: u64, set: u64| {
            if let Some(word) = self.word(at) {
                if clear == u64::MAX {
                    word.store(set, Ordering::Relaxed);
                } else {
                    // The closure never declines, so the update can't fail.
                    let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| {
                        Some(old & !clear | set)
                    });
                }
            }
        };
        store(offset & !7, mask(size) << shift, value << shift);
        if offset % 8 + size > 8 {
            store(
                (offset & !7) + 8,
                mask(size) >> (64 - shift),
                value >> (64 - shift),
            );
        }
    }
}

/// The bits that `size` bytes can hold.
const fn mask(size: usize) -> u64 {
    if size >= 8 {
        u64::MAX
    } else {
        (1 << (size * 8)) - 1
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn small_fields_leave_their_neighbours_alone() {
        let page: PageWords = [const { AtomicU64::new(u64::MAX) }; 512];
        let pages = Pages::<1>::EMPTY.with(0, &page);
        pages.write(0x102, 4, 0x1122_3344);
        assert_eq!(pages.read(0x102, 4), 0x1122_3344);
        assert_eq!(pages.read(0x100, 8), 0xFFFF_1122_3344_FFFF);
    }

    #[test]
    fn a_field_may_straddle_two_words() {
        let page: PageWords = [const { AtomicU64::new(0) }; 512];
        let pages = Pages::<1>::EMPTY.with(0, &page);
        pages.write(0x20E, 8, 0x0123_4567_89AB_CDEF);
        assert_eq!(pages.read(0x20E, 8), 0x0123_4567_89AB_CDEF);
        assert_eq!(pages.read(0x208, 8), 0xCDEF_0000_0000_0000);
        assert_eq!(pages.read(0x210, 8), 0x0000_0123_4567_89AB);
    }

    #[test]
    fn a_page_that_was_not_donated_reads_as_zero() {
        let pages = Pages::<2>::EMPTY;
        pages.write(0x1000, 8, 1);
        assert_eq!(pages.read(0x1000, 8), 0);
        assert_eq!(pages.read(0x9000, 8), 0);
    }
}
