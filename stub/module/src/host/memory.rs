//! Sparse physical memory: what was never touched costs nothing, so that a platform of many terabytes fits in a test.
//!
//! A radix tree of four levels over 52 address bits. Nodes are made on first use and stay until the memory is dropped,
//! so that looking a page up takes no lock. A page that holds one repeated word is kept as that word alone until someone
//! asks for its contents.

use core::sync::atomic::{AtomicU64, Ordering};
use std::boxed::Box;
use std::sync::OnceLock;

use crate::PageWords;

/// Bits of a physical address that this memory decodes; higher ones are ignored.
pub const ADDRESS_BITS: u32 = 52;

const PAGE_BITS: u32 = 12;
const LEAF_BITS: u32 = 9;
const DIRECTORY_BITS: u32 = 9;
const UPPER_BITS: u32 = 11;
const ROOT_BITS: u32 = ADDRESS_BITS - PAGE_BITS - LEAF_BITS - DIRECTORY_BITS - UPPER_BITS;

type Table<T, const BITS: u32> = Box<[OnceLock<T>]>;

fn table<T, const BITS: u32>() -> Table<T, BITS> {
    (0..1usize << BITS).map(|_| OnceLock::new()).collect()
}

/// One 4 KiB page: a repeated word, and its contents once they were asked for.
#[derive(Default)]
struct Slot {
    fill: AtomicU64,
    words: OnceLock<Box<PageWords>>,
}

type Leaf = Box<[Slot]>;
type Directory = Table<Leaf, DIRECTORY_BITS>;
type Upper = Table<Directory, UPPER_BITS>;

/// Physical memory that holds only what was touched.
pub struct Memory {
    root: Table<Upper, ROOT_BITS>,
    resident: AtomicU64,
    leaves: AtomicU64,
}

impl Memory {
    /// Memory that reads as zero everywhere.
    pub fn new() -> Self {
        Self {
            root: table::<_, ROOT_BITS>(),
            resident: AtomicU64::new(0),
            leaves: AtomicU64::new(0),
        }
    }

    /// The page that contains `pa`, made resident if it is not.
    pub fn page(&self, pa: u64) -> &PageWords {
        let slot = self.slot(pa);
        slot.words.get_or_init(|| {
            self.resident.fetch_add(1, Ordering::Relaxed);
            let fill = slot.fill.load(Ordering::Acquire);
            Box::new(core::array::from_fn(|_| AtomicU64::new(fill)))
        })
    }

    /// The 8 bytes at `pa`, rounded down to a multiple of 8, without making their page resident.
    pub fn word(&self, pa: u64) -> u64 {
        let Some(slot) = self.existing(pa) else {
            return 0;
        };
        match slot.words.get() {
            Some(words) => words[word_index(pa)].load(Ordering::Acquire),
            None => slot.fill.load(Ordering::Acquire),
        }
    }

    /// Makes each word of the page that contains `pa` equal to `word`, without making it resident.
    pub fn fill(&self, pa: u64, word: u64) {
        let slot = if word == 0 {
            match self.existing(pa) {
                Some(slot) => slot,
                None => return,
            }
        } else {
            self.slot(pa)
        };
        slot.fill.store(word, Ordering::Release);
        // Whoever made the page resident meanwhile may have seen the former word.
        if let Some(words) = slot.words.get() {
            for each in words.iter() {
                each.store(word, Ordering::Release);
            }
        }
    }

    /// Copies the page that contains `from` over the one that contains `to`.
    pub fn copy(&self, from: u64, to: u64) {
        match self.existing(from).map(|slot| (slot, slot.words.get())) {
            None => self.fill(to, 0),
            Some((slot, None)) => self.fill(to, slot.fill.load(Ordering::Acquire)),
            Some((_, Some(words))) => {
                for (to, from) in self.page(to).iter().zip(words.iter()) {
                    to.store(from.load(Ordering::Acquire), Ordering::Release);
                }
            }
        }
    }

    /// Copies bytes out, from `pa` on.
    pub fn read(&self, pa: u64, bytes: &mut [u8]) {
        for (i, byte) in (pa..).zip(bytes) {
            *byte = self.word(i).to_le_bytes()[(i % 8) as usize];
        }
    }

    /// Copies bytes in, from `pa` on.
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

    /// How many bytes of the developer's machine this memory occupies.
    pub fn footprint(&self) -> u64 {
        let leaf = (size_of::<Slot>() << LEAF_BITS) as u64;
        self.resident.load(Ordering::Relaxed) * size_of::<PageWords>() as u64
            + self.leaves.load(Ordering::Relaxed) * leaf
    }

    fn slot(&self, pa: u64) -> &Slot {
        let [root, upper, directory, leaf] = indices(pa);
        &self.root[root].get_or_init(table::<_, UPPER_BITS>)[upper]
            .get_or_init(table::<_, DIRECTORY_BITS>)[directory]
            .get_or_init(|| {
                self.leaves.fetch_add(1, Ordering::Relaxed);
                (0..1usize << LEAF_BITS).map(|_| Slot::default()).collect()
            })[leaf]
    }

    fn existing(&self, pa: u64) -> Option<&Slot> {
        let [root, upper, directory, leaf] = indices(pa);
        Some(&self.root[root].get()?[upper].get()?[directory].get()?[leaf])
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

fn word_index(pa: u64) -> usize {
    (pa as usize % size_of::<PageWords>()) / 8
}

fn indices(pa: u64) -> [usize; 4] {
    let mut shift = ADDRESS_BITS;
    [ROOT_BITS, UPPER_BITS, DIRECTORY_BITS, LEAF_BITS].map(|bits| {
        shift -= bits;
        (pa >> shift) as usize & ((1 << bits) - 1)
    })
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
        assert!(memory.footprint() < 32 << 9);
        assert_eq!(
            memory.page(0x10_0000_5000)[511].load(Ordering::Relaxed),
            0xabcd
        );
        memory.fill(0x10_0000_5000, 7);
        assert_eq!(memory.word(0x10_0000_5008), 7);
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
