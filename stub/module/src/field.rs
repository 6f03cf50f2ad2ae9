//! Fields of the control structures, which lie in the pages that the host donated.

use core::sync::atomic::{AtomicU64, Ordering};

/// The position of a field: a byte offset in its structure, and a width of 1, 2, 4 or 8 bytes. The offset runs over the
/// pages of the structure in the order in which the host added them. A field is aligned to its width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    offset: u32,
    width: u8,
}

impl Field {
    /// Returns a field of `width` bytes at `offset`.
    pub const fn new(offset: u32, width: u8) -> Self {
        assert!(matches!(width, 1 | 2 | 4 | 8) && offset.is_multiple_of(width as u32));
        Self { offset, width }
    }

    /// Returns an 8-bit field.
    pub const fn u8(offset: u32) -> Self {
        Self::new(offset, 1)
    }

    /// Returns a 16-bit field.
    pub const fn u16(offset: u32) -> Self {
        Self::new(offset, 2)
    }

    /// Returns a 32-bit field.
    pub const fn u32(offset: u32) -> Self {
        Self::new(offset, 4)
    }

    /// Returns a 64-bit field.
    pub const fn u64(offset: u32) -> Self {
        Self::new(offset, 8)
    }

    /// Returns element `index` of the array that starts at this field.
    pub const fn at(self, index: u32) -> Self {
        Self {
            offset: self.offset + index * self.width as u32,
            width: self.width,
        }
    }

    /// Returns the byte offset in the structure.
    pub const fn offset(self) -> u32 {
        self.offset
    }

    const fn shift(self) -> u32 {
        self.offset % 8 * 8
    }

    const fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self.width as u32)
    }
}

/// A control structure with fields.
pub trait Structure<'m> {
    /// Returns the 64-bit word that contains the byte at `offset`.
    fn word(&self, offset: u32) -> &'m AtomicU64;

    /// Reads a field.
    #[inline(always)]
    fn get(&self, field: Field) -> u64 {
        self.word(field.offset).load(Ordering::Acquire) >> field.shift() & field.mask()
    }

    /// Writes a field; bits beyond its width are dropped.
    #[inline(always)]
    fn set(&self, field: Field, value: u64) {
        let word = self.word(field.offset);
        if field.width == 8 {
            word.store(value, Ordering::Release);
            return;
        }
        self.update(field, |_| Some(value));
    }

    /// Adds to a field, wrapping at its width. Returns the previous value.
    #[inline(always)]
    fn add(&self, field: Field, value: u64) -> u64 {
        if field.width == 8 {
            return self.word(field.offset).fetch_add(value, Ordering::AcqRel);
        }
        self.update(field, |old| Some(old.wrapping_add(value)))
            .unwrap_or_default()
    }

    /// Subtracts from a field, wrapping at its width. Returns the previous value.
    #[inline(always)]
    fn sub(&self, field: Field, value: u64) -> u64 {
        self.add(field, value.wrapping_neg())
    }

    /// Atomically replaces a field by the result of `next`. Returns the previous value, or `None` if `next` declines.
    #[inline(always)]
    fn update(&self, field: Field, mut next: impl FnMut(u64) -> Option<u64>) -> Option<u64> {
        let (shift, mask) = (field.shift(), field.mask());
        let word = self.word(field.offset);
        let mut old = word.load(Ordering::Acquire);
        loop {
            let value = next(old >> shift & mask)?;
            let new = old & !(mask << shift) | (value & mask) << shift;
            match word.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(old) => return Some(old >> shift & mask),
                Err(now) => old = now,
            }
        }
    }

    /// Reads `bytes.len()` bytes starting at `offset`. Both are multiples of 8.
    fn read_bytes(&self, offset: u32, bytes: &mut [u8]) {
        for (i, chunk) in (0..).zip(bytes.chunks_exact_mut(8)) {
            chunk.copy_from_slice(&self.get(Field::u64(offset + 8 * i)).to_le_bytes());
        }
    }

    /// Writes `bytes` starting at `offset`. Offset and length are multiples of 8.
    fn write_bytes(&self, offset: u32, bytes: &[u8]) {
        for (i, chunk) in (0..).zip(bytes.chunks_exact(8)) {
            let word = chunk
                .iter()
                .rev()
                .fold(0, |word, byte| word << 8 | u64::from(*byte));
            self.set(Field::u64(offset + 8 * i), word);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct OnePage([AtomicU64; 2]);

    impl<'m> Structure<'m> for &'m OnePage {
        fn word(&self, offset: u32) -> &'m AtomicU64 {
            &self.0[offset as usize / 8]
        }
    }

    #[test]
    fn a_field_leaves_its_neighbours_alone() {
        let page = OnePage([AtomicU64::new(u64::MAX), AtomicU64::new(0)]);
        let page = &page;
        page.set(Field::u16(2), 0x1234);
        assert_eq!(page.get(Field::u64(0)), 0xffff_ffff_1234_ffff);
        assert_eq!(page.get(Field::u8(3)), 0x12);
        assert_eq!(page.add(Field::u32(4), 1), 0xffff_ffff);
        assert_eq!(page.get(Field::u64(0)), 0x1234_ffff);
        assert_eq!(page.sub(Field::u32(4), 1), 0);
        assert_eq!(page.get(Field::u32(4)), 0xffff_ffff);
    }

    #[test]
    fn bytes_are_little_endian() {
        let page = OnePage([AtomicU64::new(0), AtomicU64::new(0)]);
        let page = &page;
        page.write_bytes(8, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(page.get(Field::u64(8)), 0x0807_0605_0403_0201);
        let mut back = [0; 8];
        page.read_bytes(8, &mut back);
        assert_eq!(back, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
