//! Finding and claiming the items that can be taken from a range of a TD's memory.

use core::ops::Range;

use seam::abi::{PAGE_1G, PAGE_2M, PAGE_4K, PageSize};
use seam::address::Gpa;
use seam::page::{Donated, Page};

use super::error::Error;
use super::mirror::{
    Boxed, Directory, ENTRIES, Entry, Epoch, Gib, Leaf, Mirror, PageTable, Place, Upper, Was,
    index, start,
};

/// A claimed item.
pub enum Item {
    /// The 4 KiB pages in `part` of the table at `gpa`.
    Pages {
        gpa: Gpa,
        table: Boxed<PageTable>,
        part: Range<usize>,
    },
    /// A page of 2 MiB or 1 GiB.
    Large(Large),
    /// An empty page table.
    Table {
        gpa: Gpa,
        table: Boxed<PageTable>,
        since: Option<Epoch>,
    },
    /// An empty directory.
    Directory {
        gpa: Gpa,
        directory: Boxed<Directory>,
        since: Option<Epoch>,
    },
    /// An empty table above the directories.
    Upper {
        place: Place,
        page: Page<Donated>,
        since: Option<Epoch>,
    },
}

/// A page of 2 MiB or 1 GiB.
pub struct Large {
    pub gpa: Gpa,
    pub page: Page<Donated>,
    pub was: Was,
    /// When it was blocked.
    pub since: Option<Epoch>,
}

impl Item {
    /// Returns whether this is the directory of the GiB at `gpa`.
    pub fn is_directory(&self, gpa: Gpa) -> bool {
        matches!(self, Self::Directory { gpa: own, .. } if *own == gpa)
    }

    /// Returns the address at which the search continues after this item was found at `gpa`.
    pub fn end(&self, gpa: Gpa) -> u64 {
        match self {
            Self::Pages { gpa, .. } | Self::Table { gpa, .. } => gpa.0 + PAGE_2M,
            Self::Large(Large { gpa, page, .. }) => gpa.0 + page.size().bytes(),
            Self::Directory { gpa, .. } => gpa.0 + PAGE_1G,
            Self::Upper { .. } => start(gpa, PAGE_1G).0 + PAGE_1G,
        }
    }
}

/// Result of a search at an address.
pub enum Next {
    Item(Item),
    /// Nothing to take before this address.
    GoOn(u64),
    /// A page of this size that the range covers in part.
    Split(PageSize),
    /// A table that failed work left blocked.
    Unblock,
}

/// Finds and claims the item that can be taken at `gpa`.
pub fn find(mirror: &Mirror, gpa: Gpa, range: &Range<u64>) -> Result<Next, Error> {
    let gib = start(gpa, PAGE_1G);
    let after = gib.0 + PAGE_1G;
    let found = mirror.with(gpa.0 / PAGE_1G, |entry| {
        match entry {
            Entry::Free => return Ok(None),
            Entry::Claimed => return Err(Error::Busy),
            Entry::Leaf(_) => match cover(range, gib, PAGE_1G) {
                Cover::None => return Ok(Some(Next::GoOn(after))),
                Cover::Part => return Ok(Some(Next::Split(PageSize::Size1G))),
                Cover::All => {}
            },
            Entry::BlockedTable { table, .. } if table.used() > 0 => {
                return Ok(Some(Next::Unblock));
            }
            Entry::Table(table) if table.used() > 0 => {
                return find_in(table, gpa, range).map(Some);
            }
            Entry::Table(_) | Entry::BlockedTable { .. } => {}
        }
        Ok(match entry.claim()? {
            Entry::Leaf(leaf) => Some(Next::Item(large(gib, leaf))),
            entry => empty_directory(gib, entry).map(Next::Item),
        })
    })??;
    match found {
        Some(found) => Ok(found),
        None => Ok(match empty_upper(mirror, Place::pdpt(gpa))? {
            Some(item) => Next::Item(item),
            None => Next::GoOn(after),
        }),
    }
}

/// Claims a table above the directories, if it exists and nothing is linked below it.
pub fn empty_upper(mirror: &Mirror, place: Place) -> Result<Option<Item>, Error> {
    mirror.uppers.with(place, |upper| {
        match core::mem::replace(upper, Upper::Claimed) {
            Upper::Linked { page, pins: 0 } => Some(Item::Upper {
                place,
                page,
                since: None,
            }),
            Upper::Blocked { page, since } => Some(Item::Upper {
                place,
                page,
                since: Some(since),
            }),
            other => {
                *upper = other;
                None
            }
        }
    })
}

/// Extent to which a range covers an entry.
enum Cover {
    None,
    Part,
    All,
}

fn cover(range: &Range<u64>, from: Gpa, bytes: u64) -> Cover {
    let to = from.0 + bytes;
    if range.start <= from.0 && to <= range.end {
        Cover::All
    } else if range.start < to && from.0 < range.end {
        Cover::Part
    } else {
        Cover::None
    }
}

/// Finds and claims the item that can be taken in the block of `gpa` in a directory.
fn find_in(directory: &mut Directory, gpa: Gpa, range: &Range<u64>) -> Result<Next, Error> {
    let at = index(gpa, PAGE_2M);
    let block = start(gpa, PAGE_2M);
    let after = block.0 + PAGE_2M;
    match directory.entry(at) {
        Entry::Free => Ok(Next::GoOn(after)),
        Entry::Claimed => Err(Error::Busy),
        Entry::Leaf(_) => match cover(range, block, PAGE_2M) {
            Cover::None => Ok(Next::GoOn(after)),
            Cover::Part => Ok(Next::Split(PageSize::Size2M)),
            Cover::All => Ok(match directory.claim(at)? {
                Entry::Leaf(leaf) => Next::Item(large(block, leaf)),
                entry => {
                    directory.put(at, entry);
                    Next::GoOn(after)
                }
            }),
        },
        Entry::BlockedTable { table, .. } if table.used() > 0 => Ok(Next::Unblock),
        Entry::Table(table) if table.used() > 0 => {
            let part = part_of(range, block);
            if part.clone().all(|at| table.is_free(at)) {
                return Ok(Next::GoOn(after));
            }
            Ok(match directory.claim(at)? {
                Entry::Table(table) => Next::Item(Item::Pages {
                    gpa: block,
                    table,
                    part,
                }),
                entry => {
                    directory.put(at, entry);
                    Next::GoOn(after)
                }
            })
        }
        Entry::Table(_) | Entry::BlockedTable { .. } => Ok(match directory.claim(at)? {
            Entry::Table(table) => Next::Item(Item::Table {
                gpa: block,
                table,
                since: None,
            }),
            Entry::BlockedTable { table, since } => Next::Item(Item::Table {
                gpa: block,
                table,
                since: Some(since),
            }),
            entry => {
                directory.put(at, entry);
                Next::GoOn(after)
            }
        }),
    }
}

/// Returns the entries of the table at `block` that a range covers.
fn part_of(range: &Range<u64>, block: Gpa) -> Range<usize> {
    let at = |address: u64| {
        let pages = address.saturating_sub(block.0) / PAGE_4K;
        (pages as usize).min(ENTRIES)
    };
    at(range.start)..at(range.end)
}

fn large(gpa: Gpa, leaf: Leaf) -> Item {
    let (was, since) = (leaf.was(), leaf.blocked_since());
    Item::Large(Large {
        gpa,
        page: leaf.into_page(),
        was,
        since,
    })
}

/// Returns the item of a directory that is claimed and empty.
pub fn empty_directory(gpa: Gpa, entry: Gib) -> Option<Item> {
    let (directory, since) = match entry {
        Entry::Table(table) => (table, None),
        Entry::BlockedTable { table, since } => (table, Some(since)),
        _ => return None,
    };
    Some(Item::Directory {
        gpa,
        directory,
        since,
    })
}
