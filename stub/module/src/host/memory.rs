//! Sparse physical memory: untouched memory costs nothing, so a platform of many terabytes fits in a test.
//!
//! It is a radix tree of four levels over 52 address bits. Nodes are created on first use and stay until the memory is
//! dropped, so a lookup takes no lock. A page that holds one repeated word is stored as that word until its contents
//! are requested. Only that request, and changes of such a word, take a lock, one for each 256 KiB.

use core::sync::atomic::{AtomicU64, Ordering};
use std::boxed::Box;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::PageWords;
use crate::splitmix::mix;

/// Bits of a physical address that this memory decodes. Higher bits are ignored.
pub const ADDRESS_BITS: u32 = 52;

const PAGE_BITS: u32 = 12;
const LEAF_BITS: u32 = 6;
const DIRECTORY_BITS: u32 = 12;
const UPPER_BITS: u32 = 11;
const ROOT_BITS: u32 = ADDRESS_BITS - ROOT_SHIFT;
const DIRECTORY_SHIFT: u32 = PAGE_BITS + LEAF_BITS;
const UPPER_SHIFT: u32 = DIRECTORY_SHIFT + DIRECTORY_BITS;
const ROOT_SHIFT: u32 = UPPER_SHIFT + UPPER_BITS;

type Table<T, const BITS: u32> = Box<[OnceLock<T>]>;

fn table<T, const BITS: u32>() -> Table<T, BITS> {
    (0..1usize << BITS).map(|_| OnceLock::new()).collect()
}

/// 64 pages: the resident ones, and a repeated word for each of the others.
#[derive(Default)]
struct Leaf {
    pages: OnceLock<Table<Box<PageWords>, LEAF_BITS>>,
    words: OnceLock<Box<[AtomicU64]>>,
    /// Held while a page becomes resident and while a repeated word changes, so that neither misses the other.
    changing: Mutex<()>,
}

impl Leaf {
    fn resident(&self, index: usize) -> Option<&PageWords> {
        self.pages.get()?[index].get().map(|page| &**page)
    }

    fn word(&self, index: usize) -> u64 {
        let words = self.words.get();
        words.map_or(0, |words| words[index].load(Ordering::Acquire))
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Directory = Table<Box<Leaf>, DIRECTORY_BITS>;
type Upper = Table<Directory, UPPER_BITS>;

/// Physical memory that stores only touched pages.
pub struct Memory {
    root: Table<Upper, ROOT_BITS>,
    bytes: AtomicU64,
}

impl Memory {
    /// Creates memory that reads as zero everywhere.
    pub fn new() -> Self {
        Self {
            root: table::<_, ROOT_BITS>(),
            bytes: AtomicU64::new(0),
        }
    }

    /// Returns the page that contains `pa`, and makes it resident if necessary.
    pub fn page(&self, pa: u64) -> &PageWords {
        let (leaf, index) = self.leaf(pa);
        if let Some(page) = leaf.resident(index) {
            return page;
        }
        let _change = leaf.change();
        let pages = leaf.pages.get_or_init(|| {
            self.account(size_of::<OnceLock<Box<PageWords>>>() << LEAF_BITS);
            table::<_, LEAF_BITS>()
        });
        pages[index].get_or_init(|| {
            self.account(size_of::<PageWords>());
            let word = leaf.word(index);
            Box::new(core::array::from_fn(|_| AtomicU64::new(word)))
        })
    }

    /// Returns the 8 bytes at `pa`, rounded down to a multiple of 8, without making their page resident.
    pub fn word(&self, pa: u64) -> u64 {
        let Some((leaf, index)) = self.existing(pa) else {
            return 0;
        };
        match leaf.resident(index) {
            Some(page) => page[word_index(pa)].load(Ordering::Acquire),
            None => leaf.word(index),
        }
    }

    /// Returns the value of each word of the page that contains `pa`, unless the page is resident.
    pub fn repeated(&self, pa: u64) -> Option<u64> {
        match self.existing(pa) {
            None => Some(0),
            Some((leaf, index)) => leaf.resident(index).is_none().then(|| leaf.word(index)),
        }
    }

    /// Sets each word of the page that contains `pa` to `word`, without making the page resident.
    pub fn fill(&self, pa: u64, word: u64) {
        let (leaf, index) = match self.existing(pa) {
            Some(existing) => existing,
            None if word == 0 => return,
            None => self.leaf(pa),
        };
        if leaf.resident(index).is_none() {
            let _change = leaf.change();
            if leaf.resident(index).is_none() {
                if word != 0 || leaf.words.get().is_some() {
                    let words = leaf.words.get_or_init(|| {
                        self.account(size_of::<AtomicU64>() << LEAF_BITS);
                        (0..1 << LEAF_BITS).map(|_| AtomicU64::new(0)).collect()
                    });
                    words[index].store(word, Ordering::Release);
                }
                return;
            }
        }
        for each in leaf.resident(index).into_iter().flatten() {
            each.store(word, Ordering::Release);
        }
    }

    /// Copies the page that contains `from` over the one that contains `to`.
    pub fn copy(&self, from: u64, to: u64) {
        let resident = match self.existing(from) {
            None => return self.fill(to, 0),
            Some((leaf, index)) => leaf.resident(index),
        };
        match resident {
            None => self.fill(to, self.word(from)),
            Some(page) => {
                for (to, from) in self.page(to).iter().zip(page) {
                    to.store(from.load(Ordering::Acquire), Ordering::Release);
                }
            }
        }
    }

    /// Copies bytes out, starting at `pa`.
    pub fn read(&self, pa: u64, bytes: &mut [u8]) {
        for (i, byte) in (pa..).zip(bytes) {
            *byte = self.word(i).to_le_bytes()[(i % 8) as usize];
        }
    }

    /// Copies bytes in, starting at `pa`.
    pub fn write(&self, pa: u64, bytes: &[u8]) {
        let mut pa = pa;
        let mut rest = bytes;
        while !rest.is_empty() {
            let offset = (pa % 8) as usize;
            let (now, later) = rest.split_at(rest.len().min(8 - offset));
            let cell = &self.page(pa)[word_index(pa)];
            let mut word = cell.load(Ordering::Acquire).to_le_bytes();
            word[offset..offset + now.len()].copy_from_slice(now);
            cell.store(u64::from_le_bytes(word), Ordering::Release);
            pa = pa.wrapping_add(now.len() as u64);
            rest = later;
        }
    }

    /// Returns a digest of the memory's contents. Equal contents have equal digests, whichever pages are resident.
    pub fn digest(&self) -> u64 {
        let mut digest = 0u64;
        let tables = numbered(&self.root)
            .flat_map(|(root, upper)| numbered(upper).map(move |(i, table)| (root, i, table)))
            .flat_map(|(root, upper, directory)| {
                numbered(directory).map(move |(i, leaf)| ([root, upper, i], leaf))
            });
        for (path, leaf) in tables {
            let base = path.iter().zip([UPPER_BITS, DIRECTORY_BITS, LEAF_BITS]);
            let base = base.fold(0, |at, (index, bits)| (at | *index as u64) << bits);
            for index in 0..1 << LEAF_BITS {
                let page = (base | index as u64) << 9;
                let mut add = |at: u64, word: u64| {
                    if word != 0 {
                        digest = digest.wrapping_add(mix(word ^ mix(page | at)));
                    }
                };
                match leaf.resident(index) {
                    Some(words) => (0..)
                        .zip(words)
                        .for_each(|(at, word)| add(at, word.load(Ordering::Acquire))),
                    None if leaf.word(index) == 0 => {}
                    None => (0..512).for_each(|at| add(at, leaf.word(index))),
                }
            }
        }
        digest
    }

    /// Returns the bytes of the developer's computer that this memory occupies, excluding its upper levels (about 1
    /// byte for each 4 KiB near a touched page).
    pub fn footprint(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn account(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn leaf(&self, pa: u64) -> (&Leaf, usize) {
        let [root, upper, directory, index] = indices(pa);
        let leaf = &self.root[root].get_or_init(table::<_, UPPER_BITS>)[upper]
            .get_or_init(table::<_, DIRECTORY_BITS>)[directory]
            .get_or_init(|| {
                self.account(size_of::<Leaf>());
                Box::default()
            });
        (leaf, index)
    }

    #[inline]
    fn existing(&self, pa: u64) -> Option<(&Leaf, usize)> {
        let [root, upper, directory, index] = indices(pa);
        let leaf = self.root[root].get()?[upper].get()?[directory].get()?;
        Some((leaf, index))
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

fn numbered<T>(table: &[OnceLock<T>]) -> impl Iterator<Item = (usize, &T)> {
    let numbered = table.iter().enumerate();
    numbered.filter_map(|(index, made)| made.get().map(|made| (index, made)))
}

fn word_index(pa: u64) -> usize {
    (pa as usize % size_of::<PageWords>()) / 8
}

#[inline]
fn indices(pa: u64) -> [usize; 4] {
    let at = |shift: u32, bits: u32| (pa >> shift) as usize & ((1 << bits) - 1);
    [
        at(ROOT_SHIFT, ROOT_BITS),
        at(UPPER_SHIFT, UPPER_BITS),
        at(DIRECTORY_SHIFT, DIRECTORY_BITS),
        at(PAGE_BITS, LEAF_BITS),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untouched_memory_reads_zero_and_costs_nothing() {
        let memory = Memory::new();
        assert_eq!(memory.word(0x3f_ffff_ffff_f000), 0);
        memory.fill(64 << 40, 0);
        assert_eq!(memory.footprint(), 0);
    }

    #[test]
    fn a_repeated_word_is_kept_without_its_page() {
        let memory = Memory::new();
        memory.fill(0x10_0000_5000, 0xabcd);
        assert_eq!(memory.word(0x10_0000_5ff8), 0xabcd);
        assert_eq!(memory.word(0x10_0000_6000), 0);
        let repeated =
            [0x10_0000_5ff8, 0x10_0000_6000, 0x20_0000_0000].map(|pa| memory.repeated(pa));
        assert_eq!(repeated, [Some(0xabcd), Some(0), Some(0)]);
        assert!(memory.footprint() < 16 << 9);
        assert_eq!(
            memory.page(0x10_0000_5000)[511].load(Ordering::Relaxed),
            0xabcd
        );
        memory.fill(0x10_0000_5000, 7);
        assert_eq!(memory.word(0x10_0000_5008), 7);
        assert_eq!(memory.repeated(0x10_0000_5000), None);
    }

    #[test]
    fn bytes_cross_words_and_pages() {
        let memory = Memory::new();
        let bytes: [u8; 21] = core::array::from_fn(|i| i as u8 + 1);
        memory.write(0x1_0000_0ff5, &bytes);
        let mut back = [0; 21];
        memory.read(0x1_0000_0ff5, &mut back);
        assert_eq!(back, bytes);
        let mut around = [0xff; 2];
        memory.read(0x1_0000_0ff4, &mut around);
        assert_eq!(around, [0, 1]);
    }

    #[test]
    fn a_digest_tells_contents_apart_and_not_residence() {
        let (one, other) = (Memory::new(), Memory::new());
        one.fill(0x5000, 7);
        one.page(0x9_0000_0000);
        other.page(0x5000);
        assert_ne!(one.digest(), other.digest());
        other.fill(0x5000, 7);
        assert_eq!(one.digest(), other.digest());
        other.write(0x5008, &[0]);
        other.write(0x6000, &[7]);
        assert_ne!(one.digest(), other.digest());
    }

    #[test]
    fn a_copy_takes_contents_and_repeated_words_alike() {
        let memory = Memory::new();
        memory.fill(0x1000, 3);
        memory.copy(0x1000, 0x2000);
        assert_eq!(memory.word(0x2ff8), 3);
        memory.write(0x1008, &[9]);
        memory.copy(0x1000, 0x2000);
        assert_eq!((memory.word(0x2000), memory.word(0x2008)), (3, 9));
        memory.copy(0x7000, 0x2000);
        assert_eq!(memory.word(0x2008), 0);
    }
}
