//! Access to guests' memory: fields, bytes, and copies from guest to guest.
//!
//! The words of a page are read and written whole, with atomic operations. A part of a word is written by
//! compare-and-exchange, so that what the guest writes beside it stays.

use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
    fence,
};

use devices::{Memory, Page, Unshared};

/// Bytes of a page and of a word.
const PAGE: u64 = 4096;
const WORD: usize = 8;
/// Number of tries to write a part of a word that the guest changes all the time. The guest's change is lost then.
const TRIES: u32 = 16;

/// Reads a field of 1, 2, 4 or 8 bytes that does not cross a word. Earlier accesses come before it, later ones after it.
///
/// # Errors
/// [`Unshared`].
pub fn field(memory: &dyn Memory, gpa: u64, size: usize) -> Result<u64, Unshared> {
    let (word, shift) = place(gpa);
    Ok(memory.page(gpa)?[word].load(SeqCst) >> shift & mask(size))
}

/// Reads two words from `gpa` on, a multiple of 16.
///
/// # Errors
/// [`Unshared`].
pub fn pair(memory: &dyn Memory, gpa: u64) -> Result<[u64; 2], Unshared> {
    let (word, _) = place(gpa);
    let page = memory.page(gpa)?;
    Ok([page[word & !1].load(SeqCst), page[word | 1].load(SeqCst)])
}

/// Writes a field of 1, 2, 4 or 8 bytes that does not cross a word. Earlier accesses come before it, later ones after
/// it.
///
/// # Errors
/// [`Unshared`].
pub fn set_field(memory: &dyn Memory, gpa: u64, size: usize, value: u64) -> Result<(), Unshared> {
    let (word, shift) = place(gpa);
    let bits = mask(size) << shift;
    merge(&memory.page(gpa)?[word], value << shift, bits);
    Ok(())
}

/// Writes two fields of 4 bytes from `gpa` on, a multiple of 4. Earlier accesses come before them. Nobody else writes the 4 bytes
/// before them meanwhile. If `is_last`, others may write those behind them.
///
/// # Errors
/// [`Unshared`]; the first may have been written then.
pub fn set_fields(
    memory: &dyn Memory,
    gpa: u64,
    fields: [u32; 2],
    is_last: bool,
) -> Result<(), Unshared> {
    const FIELD: u64 = 4;
    const LOW: u64 = u32::MAX as u64;
    let [first, second] = fields.map(u64::from);
    let page = memory.page(gpa)?;
    let (word, shift) = place(gpa);
    if shift == 0 {
        page[word].store(first | second << 32, Release);
        return Ok(());
    }
    let before = page[word].load(Relaxed);
    page[word].store(before & LOW | first << 32, Release);
    match page.get(word + 1) {
        Some(next) if is_last => merge(next, second, LOW),
        Some(next) => next.store(next.load(Relaxed) & !LOW | second, Release),
        None => set_field(memory, gpa + FIELD, 4, second)?,
    }
    Ok(())
}

/// Reads bytes from `gpa` on.
///
/// # Errors
/// [`Unshared`]; some of `into` has been written then.
pub fn read(memory: &dyn Memory, gpa: u64, into: &mut [u8]) -> Result<(), Unshared> {
    if is_words(gpa, into.len()) {
        copy_out(&memory.page(gpa)?[place(gpa).0..], into.as_chunks_mut().0);
        fence(Acquire);
        return Ok(());
    }
    let mut done = 0;
    while done < into.len() {
        let at = gpa.checked_add(done as u64).ok_or(Unshared(gpa))?;
        let part = &mut into[done..];
        let bytes = part.len().min((PAGE - at % PAGE) as usize);
        read_page(memory.page(at)?, (at % PAGE) as usize, &mut part[..bytes]);
        done += bytes;
    }
    fence(Acquire);
    Ok(())
}

/// Writes bytes from `gpa` on.
///
/// # Errors
/// [`Unshared`]; some of the bytes have been written then.
pub fn write(memory: &dyn Memory, gpa: u64, from: &[u8]) -> Result<(), Unshared> {
    fence(Release);
    if is_words(gpa, from.len()) {
        copy_in(&memory.page(gpa)?[place(gpa).0..], from.as_chunks().0);
        return Ok(());
    }
    let mut done = 0;
    while done < from.len() {
        let at = gpa.checked_add(done as u64).ok_or(Unshared(gpa))?;
        let part = &from[done..];
        let part = &part[..part.len().min((PAGE - at % PAGE) as usize)];
        write_page(memory.page(at)?, (at % PAGE) as usize, part);
        done += part.len();
    }
    Ok(())
}

/// Checks that all pages of a range are shared.
///
/// # Errors
/// [`Unshared`].
pub fn probe(memory: &dyn Memory, gpa: u64, bytes: u64) -> Result<(), Unshared> {
    let end = gpa.checked_add(bytes).ok_or(Unshared(gpa))?;
    let mut at = gpa / PAGE * PAGE;
    while at < end {
        memory.page(at)?;
        at += PAGE;
    }
    Ok(())
}

/// The memory that is not shared, of a copy from one guest to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyError {
    /// The memory to copy from.
    From(Unshared),
    /// The memory to copy into.
    Into(Unshared),
}

/// Copies bytes from one guest's memory into another's.
///
/// # Errors
/// [`CopyError`]; some of the bytes have been written then.
pub fn copy(
    from: &dyn Memory,
    from_gpa: u64,
    (into, into_gpa): (&dyn Memory, u64),
    bytes: usize,
) -> Result<(), CopyError> {
    let mut done = 0;
    while done < bytes {
        let source = from_gpa.checked_add(done as u64);
        let source = source.ok_or(CopyError::From(Unshared(from_gpa)))?;
        let target = into_gpa.checked_add(done as u64);
        let target = target.ok_or(CopyError::Into(Unshared(into_gpa)))?;
        let [at, to] = [source, target].map(|gpa| (gpa % PAGE) as usize);
        let part = (bytes - done).min(PAGE as usize - at.max(to));
        let page = from.page(source).map_err(CopyError::From)?;
        let target = into.page(target).map_err(CopyError::Into)?;
        copy_page(page, at, (target, to), part);
        done += part;
    }
    fence(Release);
    Ok(())
}

/// Returns the index of a field's word in its page, and the field's first bit in it.
const fn place(gpa: u64) -> (usize, u64) {
    ((gpa % PAGE) as usize / WORD, gpa % WORD as u64 * 8)
}

/// Returns whether bytes are whole words of one page.
const fn is_words(gpa: u64, bytes: usize) -> bool {
    let is_whole = gpa.is_multiple_of(WORD as u64) && bytes.is_multiple_of(WORD);
    is_whole && gpa % PAGE + bytes as u64 <= PAGE
}

/// Returns the mask of `size` bytes.
const fn mask(size: usize) -> u64 {
    u64::MAX >> (64 - 8 * size as u32)
}

/// Writes `bits` of a word.
fn merge(word: &AtomicU64, value: u64, bits: u64) {
    if bits == u64::MAX {
        word.store(value, SeqCst);
        return;
    }
    let mut old = word.load(Relaxed);
    for _ in 0..TRIES {
        let new = old & !bits | value & bits;
        match word.compare_exchange(old, new, SeqCst, Relaxed) {
            Ok(_) => return,
            Err(now) => old = now,
        }
    }
    word.store(old & !bits | value & bits, SeqCst);
}

/// Copies bytes out of a page.
#[inline(never)]
fn read_page(page: &Page, at: usize, into: &mut [u8]) {
    let first = (WORD - at % WORD) % WORD;
    let (head, rest) = into.split_at_mut(first.min(into.len()));
    if !head.is_empty() {
        let bytes = page[at / WORD].load(Relaxed).to_le_bytes();
        head.copy_from_slice(&bytes[at % WORD..][..head.len()]);
    }
    let words = &page[(at + head.len()) / WORD..];
    let (whole, tail) = rest.as_chunks_mut::<WORD>();
    copy_out(words, whole);
    if !tail.is_empty() {
        let bytes = words[whole.len()].load(Relaxed).to_le_bytes();
        tail.copy_from_slice(&bytes[..tail.len()]);
    }
}

/// Copies bytes into a page.
fn write_page(page: &Page, at: usize, from: &[u8]) {
    let first = (WORD - at % WORD) % WORD;
    let (head, rest) = from.split_at(first.min(from.len()));
    write_part(&page[at / WORD], at % WORD, head);
    let words = &page[(at + head.len()) / WORD..];
    let (whole, tail) = rest.as_chunks::<WORD>();
    copy_in(words, whole);
    if !tail.is_empty() {
        write_part(&words[whole.len()], 0, tail);
    }
}

/// Copies whole words. A function of its own, which `cargo xtask bench exits` does not count.
#[inline(never)]
fn copy_out(from: &[AtomicU64], into: &mut [[u8; WORD]]) {
    for (bytes, word) in into.iter_mut().zip(from) {
        *bytes = word.load(Relaxed).to_le_bytes();
    }
}

/// As [`copy_out`].
#[inline(never)]
fn copy_in(into: &[AtomicU64], from: &[[u8; WORD]]) {
    for (bytes, word) in from.iter().zip(into) {
        word.store(u64::from_le_bytes(*bytes), Relaxed);
    }
}

/// Copies bytes from page to page.
fn copy_page(from: &Page, at: usize, (into, to): (&Page, usize), bytes: usize) {
    let first = ((WORD - to % WORD) % WORD).min(bytes);
    copy_part(from, at, (into, to), first);
    let (at, to, bytes) = (at + first, to + first, bytes - first);
    let whole = bytes / WORD;
    copy_across(from, at, &into[to / WORD..][..whole]);
    let done = whole * WORD;
    copy_part(from, at + done, (into, to + done), bytes % WORD);
}

/// Copies less than a word, into one word.
#[inline]
fn copy_part(from: &Page, at: usize, (into, to): (&Page, usize), bytes: usize) {
    if bytes == 0 {
        return;
    }
    let (word, shift) = (at / WORD, at % WORD * 8);
    let mut value = from[word].load(Relaxed) >> shift;
    if at % WORD + bytes > WORD {
        value |= from[word + 1].load(Relaxed) << (64 - shift);
    }
    let place = to % WORD * 8;
    merge(&into[to / WORD], value << place, mask(bytes) << place);
}

/// Copies whole words from byte `at` on. As [`copy_out`].
#[inline(never)]
fn copy_across(from: &Page, at: usize, into: &[AtomicU64]) {
    let shift = at % WORD * 8;
    let words = &from[at / WORD..];
    if shift == 0 {
        for (word, from) in into.iter().zip(words) {
            word.store(from.load(Relaxed), Relaxed);
        }
        return;
    }
    let Some((first, rest)) = words.split_first() else {
        return;
    };
    let mut low = first.load(Relaxed);
    for (word, next) in into.iter().zip(rest) {
        let high = next.load(Relaxed);
        word.store(low >> shift | high << (64 - shift), Relaxed);
        low = high;
    }
}

/// Writes less than a word, from byte `at` of it on.
fn write_part(word: &AtomicU64, at: usize, from: &[u8]) {
    if from.is_empty() {
        return;
    }
    let mut bytes = [0; WORD];
    bytes[at..at + from.len()].copy_from_slice(from);
    merge(
        word,
        u64::from_le_bytes(bytes),
        mask(from.len()) << (8 * at),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Ram;
    use alloc::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_arrive_where_they_belong_and_nothing_else_changes(
            at in 0u64..0x3000,
            bytes in proptest::collection::vec(any::<u8>(), 0..0x2800),
            fill: u8,
        ) {
            let ram = Ram::new(6);
            let mut model = vec![fill; 0x6000];
            write(&ram, 0, &model).unwrap();
            write(&ram, at, &bytes).unwrap();
            model[at as usize..][..bytes.len()].copy_from_slice(&bytes);
            let mut all = vec![0; 0x6000];
            read(&ram, 0, &mut all).unwrap();
            prop_assert_eq!(&all, &model);
            let mut part = vec![0; bytes.len()];
            read(&ram, at, &mut part).unwrap();
            prop_assert_eq!(part, bytes);
        }

        #[test]
        fn a_copy_is_what_reading_and_writing_would_be(
            at in 0u64..0x1800, to in 0u64..0x1800, bytes in 0usize..0x1800,
        ) {
            let (from, into) = (Ram::new(3), Ram::new(3));
            let content: alloc::vec::Vec<_> = (0..0x3000).map(|at| (at % 251) as u8).collect();
            write(&from, 0, &content).unwrap();
            copy(&from, at, (&into, to), bytes).unwrap();
            let mut model = vec![0; 0x3000];
            model[to as usize..][..bytes].copy_from_slice(&content[at as usize..][..bytes]);
            let mut found = vec![0; 0x3000];
            read(&into, 0, &mut found).unwrap();
            prop_assert_eq!(found, model);
        }

        #[test]
        fn a_field_is_its_bytes(at in 0u64..0x1000, log in 0u32..4, value: u64, beside: u64) {
            let (size, ram) = (1 << log, Ram::new(1));
            let at = at / size * size;
            write(&ram, at / 8 * 8, &beside.to_le_bytes()).unwrap();
            set_field(&ram, at, size as usize, value).unwrap();
            let expected = value & mask(size as usize);
            prop_assert_eq!(field(&ram, at, size as usize).unwrap(), expected);
            let mut model = beside.to_le_bytes();
            model[(at % 8) as usize..][..size as usize]
                .copy_from_slice(&value.to_le_bytes()[..size as usize]);
            let mut word = [0; 8];
            read(&ram, at / 8 * 8, &mut word).unwrap();
            prop_assert_eq!(word, model);
        }
    }

    #[test]
    fn two_fields_are_written_wherever_they_are_and_nothing_beside_them() {
        for at in (0..0x1FF8).step_by(4) {
            let ram = Ram::new(2);
            write(&ram, 0, &[7; 0x2000]).unwrap();
            set_fields(&ram, at, [0x0403_0201, 0x0807_0605], at % 16 < 8).unwrap();
            let mut model = [7; 0x2000];
            model[at as usize..][..8].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
            let mut found = [0; 0x2000];
            read(&ram, 0, &mut found).unwrap();
            assert_eq!(found, model, "{at:#x}");
        }
        let ram = Ram::new(2);
        ram.unshare(1);
        assert_eq!(set_fields(&ram, 0xFFC, [1, 2], true), Err(Unshared(0x1000)));
        assert_eq!(
            set_fields(&ram, 0x1000, [1, 2], false),
            Err(Unshared(0x1000))
        );
    }

    #[test]
    fn a_page_that_is_not_shared_is_an_error_wherever_it_is() {
        let ram = Ram::new(3);
        ram.unshare(1);
        let mut bytes = [0; 16];
        assert_eq!(read(&ram, 0xFF8, &mut bytes), Err(Unshared(0x1000)));
        assert_eq!(write(&ram, 0xFF8, &bytes), Err(Unshared(0x1000)));
        assert_eq!(probe(&ram, 0, 0x3000), Err(Unshared(0x1000)));
        assert_eq!(probe(&ram, 0x2FFF, 1), Ok(()));
        assert_eq!(probe(&ram, u64::MAX, 2), Err(Unshared(u64::MAX)));
        assert!(read(&ram, u64::MAX - 3, &mut bytes).is_err());
        assert!(field(&ram, 0x1000, 2).is_err());
    }
}
