//! The hypervisor's heap: one block of memory, taken from the firmware before anything allocates.
#![expect(unsafe_code, reason = "a global allocator hands out raw memory")]

use core::{
    alloc::{GlobalAlloc, Layout},
    mem::MaybeUninit,
    ptr::{self, NonNull},
};

use sync::IrqLock;

/// A heap behind a lock that interrupt handlers may take.
pub struct Heap(IrqLock<linked_list_allocator::Heap>);

impl Heap {
    /// Creates a heap without memory. Every allocation fails until [`Self::init`].
    #[must_use]
    pub const fn empty() -> Self {
        Self(IrqLock::new(linked_list_allocator::Heap::empty()))
    }

    /// Gives the heap its memory. It must not have any yet.
    pub fn init(&self, memory: &'static mut [MaybeUninit<u8>]) {
        let mut heap = self.0.lock();
        assert!(heap.size() == 0, "the heap has its memory already");
        heap.init_from_slice(memory);
    }

    /// Returns the heap's size and the allocated part, in bytes.
    pub fn usage(&self) -> (usize, usize) {
        let heap = self.0.lock();
        (heap.size(), heap.used())
    }

    /// Returns the address of the first byte and the one behind the last.
    pub fn extent(&self) -> (u64, u64) {
        let heap = self.0.lock();
        (heap.bottom() as u64, heap.top() as u64)
    }
}

// SAFETY: blocks come from `linked_list_allocator`, which hands out each byte once; the lock keeps CPUs and handlers
// apart.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0
            .lock()
            .allocate_first_fit(layout)
            .map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if let Some(at) = NonNull::new(at) {
            // SAFETY: the caller got the block from `alloc` with this layout.
            unsafe { self.0.lock().deallocate(at, layout) };
        }
    }
}
