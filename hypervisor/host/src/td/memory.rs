//! Layout of a TD's memory: from address 0 up to the hole below 4 GiB, the rest from 4 GiB on.

use alloc::vec::Vec;
use core::ops::Range;

use mm::private::{DIRECTORY_FRAMES, PAGE_TABLE_FRAMES};
use seam::abi::{PAGE_1G, PAGE_2M, PAGE_4K};
use seam::address::SHARED;

/// End of the memory below 4 GiB. Device registers and the firmware are between this and 4 GiB.
pub const HOLE: u64 = 3 * PAGE_1G;
/// The same with UEFI firmware. OVMF has its memory-mapped configuration space at 0xB0000000, and the memory of PCI
/// functions from 2 GiB on in later versions. It accepts all memory below 4 GiB before it starts the system, and leaves
/// the memory above to the system, so a small part here starts fast.
const UEFI_HOLE: u64 = 2 * PAGE_1G;
/// Start of the memory above the hole.
const HIGH: u64 = 4 * PAGE_1G;

/// The memory layout of a TD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    bytes: u64,
    /// End of the memory below 4 GiB, if there is as much.
    hole: u64,
}

impl Layout {
    /// Creates the layout of `bytes` of memory, a multiple of 4 KiB. `None` if it exceeds the guest-physical address
    /// space.
    #[must_use]
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes.is_multiple_of(PAGE_4K) && bytes < SHARED - HIGH {
            Some(Self { bytes, hole: HOLE })
        } else {
            None
        }
    }

    /// Creates the layout of a TD with this configuration and `bytes` of memory. `None` as in [`Self::new`].
    #[must_use]
    pub fn of(config: &config::Td, bytes: u64) -> Option<Self> {
        let layout = Self::new(bytes)?;
        Some(match &config.firmware {
            Some(_) => Self {
                hole: UEFI_HOLE,
                ..layout
            },
            None => layout,
        })
    }

    /// Returns the size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// Returns the one or two parts, ascending.
    pub fn parts(self) -> impl Iterator<Item = Range<u64>> {
        let low = self.bytes.min(self.hole);
        let high = HIGH..HIGH + (self.bytes - low);
        [0..low, high]
            .into_iter()
            .filter(|part| part.start < part.end)
    }

    /// Returns the part that contains `gpa`.
    #[must_use]
    pub fn part_of(self, gpa: u64) -> Option<Range<u64>> {
        self.parts().find(|part| part.contains(&gpa))
    }

    /// Returns the exclusive upper limit of private addresses: the end of memory, but at least 4 GiB, where the
    /// firmware ends.
    #[must_use]
    pub fn limit(self) -> u64 {
        self.parts().map(|part| part.end).fold(HIGH, u64::max)
    }

    /// Returns the memory without `taken`, in ascending ranges that are not adjacent.
    #[must_use]
    pub fn without(self, taken: &[Range<u64>]) -> Vec<Range<u64>> {
        let mut taken: Vec<_> = taken.to_vec();
        taken.sort_unstable_by_key(|range| range.start);
        let mut left = Vec::new();
        for part in self.parts() {
            let mut at = part.start;
            for range in &taken {
                if range.start >= part.end || range.end <= at {
                    continue;
                }
                if range.start > at {
                    left.push(at..range.start);
                }
                at = range.end;
            }
            if at < part.end {
                left.push(at..part.end);
            }
        }
        left
    }

    /// Returns the maximum that a TD with this memory, and `outside` bytes of an image elsewhere, can take. At most
    /// `max_4k` bytes are mapped in pages of 4 KiB, or all if `None`.
    #[must_use]
    pub fn most(self, outside: u64, max_4k: Option<u64>) -> Most {
        let bytes = self.bytes + outside;
        // The image is below 4 GiB and may cross a boundary of each kind.
        let tables = |unit: u64| bytes.div_ceil(unit) + 2;
        let [page_tables, directories, uppers] = [PAGE_2M, PAGE_1G, 512 * PAGE_1G].map(tables);
        let split = max_4k.map_or(page_tables, |max| max.div_ceil(PAGE_2M) + 2);
        let split = split.min(page_tables);
        let sept = split + directories + uppers;
        let mirror = split * PAGE_TABLE_FRAMES + directories * DIRECTORY_FRAMES;
        // Memory can be shared in pages of 4 KiB whatever the private memory's pages are. The root is a table too.
        let shared = page_tables + directories + uppers + 1;
        Most {
            pages: bytes / PAGE_4K + sept + mirror + shared,
            sept,
        }
    }
}

/// The maximum that a TD can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most {
    /// Frames of 4 KiB: its memory, its EPTs, and the host's mirror of them.
    pub pages: u64,
    /// Pages of its S-EPT below the root.
    pub sept: u64,
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};

    use super::*;

    #[test]
    fn memory_skips_the_hole_below_4_gib() {
        let small = Layout::new(PAGE_1G).unwrap();
        assert!(small.parts().eq([0..PAGE_1G, 0..0].into_iter().take(1)));
        assert_eq!(small.limit(), HIGH);
        let large = Layout::new(5 * PAGE_1G).unwrap();
        let parts: Vec<_> = large.parts().collect();
        assert_eq!(parts, [0..HOLE, HIGH..6 * PAGE_1G]);
        assert_eq!(large.limit(), 6 * PAGE_1G);
        assert_eq!(large.part_of(HOLE), None);
        assert_eq!(large.part_of(HIGH), Some(HIGH..6 * PAGE_1G));
        assert_eq!(Layout::new(SHARED), None);
        assert_eq!(Layout::new(4095), None);
    }

    #[test]
    fn uefi_firmware_has_a_hole_from_2_gib() {
        let text = b"[[file]]\nname = \"f\"\npath = \"f\"\n[[td]]\nname = \"a\"\nmemory = \"16G\"\nfirmware = \"f\"\n";
        let mut config = config::parse(text).unwrap().td.remove(0);
        let parts =
            |config: &_, bytes| -> Vec<_> { Layout::of(config, bytes).unwrap().parts().collect() };
        assert_eq!(
            parts(&config, PAGE_1G),
            core::iter::once(0..PAGE_1G).collect::<Vec<_>>()
        );
        let large = [0..2 * PAGE_1G, HIGH..18 * PAGE_1G];
        assert_eq!(parts(&config, config.memory), large);
        config.image = config.firmware.take();
        assert_eq!(parts(&config, 4 * PAGE_1G), [0..HOLE, HIGH..5 * PAGE_1G]);
    }

    #[test]
    fn tables_are_counted_for_memory_in_small_pages_as_far_as_it_may_be() {
        let layout = Layout::new(32 * PAGE_1G).unwrap();
        let all = layout.most(0, None);
        assert_eq!(all.sept, (16 * 1024 + 2) + (32 + 2) + (1 + 2));
        let some = layout.most(0, Some(8 * PAGE_1G));
        assert_eq!(some.sept, (4 * 1024 + 2) + (32 + 2) + (1 + 2));
        // A page of S-EPT, and two frames of the host, for each table less.
        assert_eq!(all.pages - some.pages, 12 * 1024 * 3);
        assert_eq!(layout.most(0, Some(64 * PAGE_1G)), all);
        // All tables of 6 TiB take less than one percent of it.
        let large = Layout::new(6 << 40).unwrap().most(0, None);
        assert!((large.pages << 12) < (6 << 40) / 100 * 101);
    }

    #[test]
    fn memory_of_the_image_is_left_out() {
        let layout = Layout::new(4 * PAGE_1G).unwrap();
        let taken = [
            0x80_0000..0x80_1000,
            0..0x1000,
            0x80_1000..0x80_3000,
            HIGH - 0x1000..HIGH + 0x1000,
        ];
        assert_eq!(
            layout.without(&taken),
            vec![
                0x1000..0x80_0000,
                0x80_3000..HOLE,
                HIGH + 0x1000..HIGH + PAGE_1G
            ]
        );
        assert_eq!(layout.without(&[0..HOLE, HOLE..HIGH + PAGE_1G]), vec![]);
    }

    proptest::proptest! {
        #[test]
        fn no_memory_is_left_out_twice_or_lost(
            pages in 1u64..2_000_000,
            taken in proptest::collection::vec((0u64..2_000_000, 1u64..5000), 0..8),
        ) {
            let layout = Layout::new(pages * PAGE_4K).unwrap();
            let taken: Vec<_> = taken
                .into_iter()
                .map(|(start, len)| start * PAGE_4K..(start + len) * PAGE_4K)
                .collect();
            let left = layout.without(&taken);
            for pair in left.windows(2) {
                assert!(pair[0].end < pair[1].start || pair[1].start == HIGH);
            }
            for range in &left {
                assert!(range.start < range.end);
                assert!(taken.iter().all(|t| t.end <= range.start || range.end <= t.start));
                assert_eq!(layout.part_of(range.start), layout.part_of(range.end - 1));
            }
            // An address is left if it is memory and not taken. It suffices to check the edges.
            let mut edges: Vec<u64> = taken.iter().flat_map(|t| [t.start, t.end]).collect();
            edges.extend(layout.parts().map(|part| part.start));
            for at in edges {
                let is_memory = layout.part_of(at).is_some();
                let is_taken = taken.iter().any(|t| t.contains(&at));
                let is_left = left.iter().any(|l| l.contains(&at));
                assert_eq!(is_left, is_memory && !is_taken);
            }
        }
    }
}
