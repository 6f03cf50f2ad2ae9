//! The hypervisor's heap. It grows, and returns what is large.
//!
//! Blocks below 4 KiB lie in regions that stay with the heap: one from the firmware, taken before anything allocates,
//! and further ones from the frame allocator when the others are full. Each block of 4 KiB or more is a block of frames
//! of its own, which returns to the frame allocator when it is freed. Until there is a frame allocator, every block
//! comes from the first region.
//!
//! The frame allocator's lock is taken here, but never together with the heap's own. Whoever holds the frame
//! allocator's lock must not allocate or free.
#![expect(unsafe_code, reason = "a global allocator hands out raw memory")]

use core::{
    alloc::{GlobalAlloc, Layout},
    mem::MaybeUninit,
    ptr::{self, NonNull},
    slice,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use arrayvec::ArrayVec;
use linked_list_allocator as list;
use sync::IrqLock;

/// Smallest size or alignment in bytes from which a block consists of frames of its own.
const WHOLE: usize = 4096;
/// Order of the frames that the heap grows by: 2 MiB. A smaller order is tried when no such frame is free.
const GROWTH: u32 = 9;
/// Smallest order that the heap grows by: 64 KiB.
const LEAST_GROWTH: u32 = 4;
/// Maximum number of regions. With regions of 2 MiB that is half a GiB of blocks below 4 KiB.
const REGIONS: usize = 256;

/// The source of the heap's frames.
///
/// # Safety
/// Each block is readable and writable memory, aligned to its size, that nothing else uses until it is given back.
pub unsafe trait Blocks: Sync {
    /// Takes a block of `4096 << order` bytes. Returns `None` if there is none. Its content is undefined.
    fn take(&self, order: u32) -> Option<NonNull<u8>>;

    /// Gives a block back.
    ///
    /// # Safety
    /// It came from [`Self::take`] with this order, and nothing uses it any more.
    unsafe fn give(&self, block: NonNull<u8>, order: u32);
}

/// A heap behind a lock that interrupt handlers may take.
pub struct Heap {
    blocks: &'static dyn Blocks,
    regions: IrqLock<ArrayVec<list::Heap, REGIONS>>,
    /// Bytes of the blocks that consist of frames of their own.
    whole: AtomicUsize,
}

impl Heap {
    /// Creates a heap without memory that takes frames from `blocks`.
    #[must_use]
    pub const fn new(blocks: &'static dyn Blocks) -> Self {
        Self {
            blocks,
            regions: IrqLock::new(ArrayVec::new_const()),
            whole: AtomicUsize::new(0),
        }
    }

    /// Gives the heap its first region. It must not have any yet.
    pub fn init(&self, memory: &'static mut [MaybeUninit<u8>]) {
        let mut regions = self.regions.lock();
        assert!(regions.is_empty(), "the heap has its memory already");
        regions.push(list::Heap::from_slice(memory));
    }

    /// Returns the heap's size and the allocated part, in bytes.
    pub fn usage(&self) -> (usize, usize) {
        let whole = self.whole.load(Relaxed);
        let regions = self.regions.lock();
        let sum = |of: fn(&list::Heap) -> usize| regions.iter().map(of).sum::<usize>();
        (sum(list::Heap::size) + whole, sum(list::Heap::used) + whole)
    }

    /// Returns the address of the first region's first byte and the one behind its last.
    pub fn extent(&self) -> (u64, u64) {
        let regions = self.regions.lock();
        regions.first().map_or((0, 0), |region| {
            (region.bottom() as u64, region.top() as u64)
        })
    }

    /// Allocates in the regions, the newest first: the older ones are full.
    fn in_regions(&self, layout: Layout) -> Option<NonNull<u8>> {
        let mut regions = self.regions.lock();
        let mut newest = regions.iter_mut().rev();
        newest.find_map(|region| region.allocate_first_fit(layout).ok())
    }

    /// Adds a region. Returns `false` if there is no frame for it.
    fn grow(&self) -> bool {
        let orders = (LEAST_GROWTH..=GROWTH).rev();
        let mut taken = orders.map(|order| (self.blocks.take(order), order));
        let Some((Some(block), order)) = taken.find(|(block, _)| block.is_some()) else {
            return false;
        };
        // SAFETY: the block is memory of this size that nothing else uses; it is given back below, or never.
        let memory = unsafe { slice::from_raw_parts_mut(block.as_ptr().cast(), WHOLE << order) };
        let refused = self
            .regions
            .lock()
            .try_push(list::Heap::from_slice(memory))
            .is_err();
        if refused {
            // SAFETY: it came from `take` with this order, and the region that was refused is gone.
            unsafe { self.blocks.give(block, order) };
        }
        !refused
    }

    /// Returns whether `at` lies in a region.
    fn is_in_region(&self, at: NonNull<u8>) -> bool {
        let regions = self.regions.lock();
        let mut regions = regions.iter();
        regions.any(|region| (region.bottom()..region.top()).contains(&at.as_ptr()))
    }
}

/// Returns the order of the block of frames for a layout, or `None` if it belongs in a region.
fn order_of(layout: Layout) -> Option<u32> {
    let bytes = layout.size().max(layout.align());
    let frames = bytes.checked_next_power_of_two()? / WHOLE;
    (bytes >= WHOLE).then(|| frames.trailing_zeros())
}

// SAFETY: a block is handed out once, by `Blocks` or by the region that has it; the lock keeps CPUs and handlers apart.
// A block of frames is aligned to its size, which is at least the layout's size and alignment.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(order) = order_of(layout)
            && let Some(block) = self.blocks.take(order)
        {
            self.whole.fetch_add(WHOLE << order, Relaxed);
            return block.as_ptr();
        }
        loop {
            if let Some(at) = self.in_regions(layout) {
                return at.as_ptr();
            }
            // A block of frames that is not there is not there for a region either.
            if order_of(layout).is_some() || !self.grow() {
                return ptr::null_mut();
            }
        }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let Some(at) = NonNull::new(at) else { return };
        match order_of(layout) {
            Some(order) if !self.is_in_region(at) => {
                self.whole.fetch_sub(WHOLE << order, Relaxed);
                // SAFETY: a block of this layout outside all regions came from `take` with this order.
                unsafe { self.blocks.give(at, order) };
            }
            _ => {
                let mut regions = self.regions.lock();
                let mut regions = regions.iter_mut();
                let own = |region: &&mut list::Heap| {
                    (region.bottom()..region.top()).contains(&at.as_ptr())
                };
                if let Some(region) = regions.find(own) {
                    // SAFETY: the caller got the block from `alloc` with this layout, and it lies in this region.
                    unsafe { region.deallocate(at, layout) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::sync::atomic::AtomicUsize;
    use std::{boxed::Box, vec::Vec};

    use super::*;

    /// A machine with a limited number of bytes in frames.
    struct Machine {
        left: AtomicUsize,
    }

    impl Machine {
        /// Creates a heap with a first region of 64 KiB, and `bytes` in frames.
        fn with(bytes: usize) -> (&'static Self, Heap) {
            let machine = Box::leak(Box::new(Self {
                left: AtomicUsize::new(bytes),
            }));
            let heap = Heap::new(machine);
            heap.init(std::vec![MaybeUninit::uninit(); 64 << 10].leak());
            (machine, heap)
        }

        fn left(&self) -> usize {
            self.left.load(Relaxed)
        }

        fn layout(order: u32) -> Layout {
            Layout::from_size_align(WHOLE << order, WHOLE << order).unwrap()
        }
    }

    // SAFETY: the blocks are the test process's own, aligned to their size.
    unsafe impl Blocks for Machine {
        fn take(&self, order: u32) -> Option<NonNull<u8>> {
            let bytes = WHOLE << order;
            self.left
                .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(bytes))
                .ok()?;
            // SAFETY: the layout is not empty.
            NonNull::new(unsafe { std::alloc::alloc(Self::layout(order)) })
        }

        unsafe fn give(&self, block: NonNull<u8>, order: u32) {
            self.left.fetch_add(WHOLE << order, Relaxed);
            // SAFETY: `take` allocated it with this layout.
            unsafe { std::alloc::dealloc(block.as_ptr(), Self::layout(order)) };
        }
    }

    /// Allocates and writes the whole block.
    fn filled(heap: &Heap, layout: Layout) -> Option<NonNull<u8>> {
        // SAFETY: the layout is not empty, and the block is written within its size.
        unsafe {
            let at = NonNull::new(heap.alloc(layout))?;
            at.as_ptr().write_bytes(0xA5, layout.size());
            Some(at)
        }
    }

    fn free(heap: &Heap, at: NonNull<u8>, layout: Layout) {
        // SAFETY: the tests free each block once, with its layout.
        unsafe { heap.dealloc(at.as_ptr(), layout) };
    }

    #[test]
    fn a_large_block_is_frames_of_its_own_and_returns_them() {
        let (machine, heap) = Machine::with(1 << 20);
        let before = heap.usage();
        for (bytes, align, frames) in [
            (4096, 8, 1),
            (4097, 8, 2),
            (12_400, 16, 4),
            (64, 8192, 2),
            (1 << 20, 1, 256),
        ] {
            let layout = Layout::from_size_align(bytes, align).unwrap();
            let block = filled(&heap, layout).unwrap();
            assert!(block.addr().get().is_multiple_of(align), "{layout:?}");
            assert_eq!(machine.left(), (1 << 20) - frames * 4096, "{layout:?}");
            let used = heap.usage();
            assert_eq!(used.1 - before.1, frames * 4096, "{layout:?}");
            free(&heap, block, layout);
            assert_eq!(machine.left(), 1 << 20, "{layout:?}");
            assert_eq!(heap.usage(), before, "{layout:?}");
        }
    }

    #[test]
    fn small_blocks_beyond_the_first_region_make_the_heap_grow() {
        let (machine, heap) = Machine::with(5 << 20);
        let layout = Layout::from_size_align(1000, 8).unwrap();
        let mut blocks = Vec::new();
        while let Some(block) = filled(&heap, layout) {
            blocks.push(block);
        }
        // Two regions of 2 MiB, one of 1 MiB, and the first one.
        assert_eq!(machine.left(), 0);
        assert!(
            blocks.len() >= ((5 << 20) + (60 << 10)) / 1008,
            "{}",
            blocks.len()
        );
        let distinct: std::collections::BTreeSet<_> = blocks.iter().collect();
        assert_eq!(distinct.len(), blocks.len());
        for block in blocks.drain(..) {
            free(&heap, block, layout);
        }
        assert_eq!(heap.usage(), ((5 << 20) + (64 << 10), 0));
        // The memory that the heap grew by is used again.
        assert!(filled(&heap, layout).is_some());
    }

    #[test]
    fn without_frames_a_large_block_comes_from_a_region_and_returns_there() {
        let (_, heap) = Machine::with(0);
        let layout = Layout::from_size_align(40 << 10, 8).unwrap();
        let first = filled(&heap, layout).unwrap();
        assert_eq!(filled(&heap, layout), None);
        free(&heap, first, layout);
        assert_eq!(heap.usage().1, 0);
        assert!(filled(&heap, layout).is_some());
    }
}
