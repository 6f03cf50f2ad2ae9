//! Common interface of the tables whose 512 entries can be the parts of one page.

use seam::abi::PAGE_1G;
use seam::address::Level;
use seam::page::{Donated, Page};

use super::{Directory, ENTRIES, Entry, Leaf, PageTable};

/// A table whose entries can be the parts of one page: of 2 MiB for a page table, of 1 GiB for a directory.
pub trait Parts: Sized {
    /// The level of the S-EPT entry that points to the table, and that would map the page.
    const LEVEL: Level;

    /// Creates a table that maps nothing.
    fn empty() -> Self;

    /// Returns whether the entries map one frame, from its beginning to its end.
    fn is_whole(&self) -> bool;

    /// Puts a page at the free entry `index`.
    fn put_part(&mut self, index: usize, leaf: Leaf);

    /// Takes every page out, in order.
    fn take_parts(&mut self) -> impl Iterator<Item = Leaf>;

    /// Returns the S-EPT page.
    fn sept(&mut self) -> &mut Option<Page<Donated>>;
}

impl Parts for PageTable {
    const LEVEL: Level = Level::Pd;

    fn empty() -> Self {
        Self::new()
    }

    fn is_whole(&self) -> bool {
        Self::is_whole(self)
    }

    fn put_part(&mut self, index: usize, leaf: Leaf) {
        self.put(index, leaf);
    }

    fn take_parts(&mut self) -> impl Iterator<Item = Leaf> {
        self.drain()
    }

    fn sept(&mut self) -> &mut Option<Page<Donated>> {
        &mut self.sept
    }
}

impl Parts for Directory {
    const LEVEL: Level = Level::Pdpt;

    fn empty() -> Self {
        Self::new()
    }

    fn is_whole(&self) -> bool {
        let mut expected = None;
        (0..ENTRIES).all(|index| {
            let Entry::Leaf(leaf) = self.entry(index) else {
                return false;
            };
            let (hpa, bytes) = (leaf.page().hpa().0, leaf.size().bytes());
            let is_next = expected.unwrap_or(hpa.next_multiple_of(PAGE_1G)) == hpa;
            expected = Some(hpa + bytes);
            is_next
        })
    }

    fn put_part(&mut self, index: usize, leaf: Leaf) {
        self.fill(index, leaf);
    }

    fn take_parts(&mut self) -> impl Iterator<Item = Leaf> {
        self.drain().filter_map(|entry| match entry {
            Entry::Leaf(leaf) => Some(leaf),
            _ => None,
        })
    }

    fn sept(&mut self) -> &mut Option<Page<Donated>> {
        &mut self.sept
    }
}
