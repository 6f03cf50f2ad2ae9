//! The monitor's view of memory: all of it, identity-mapped.
//!
//! The monitor's page tables identity-map every physical address below 2^48 with 1 GiB pages.
#![expect(unsafe_code, reason = "allocates physical memory")]

use alloc::alloc::{Layout, alloc_zeroed, handle_alloc_error};

/// Size of a page in bytes.
pub const PAGE: usize = 4096;

/// Allocates a zeroed page of the monitor's own memory. It is never freed.
pub fn page() -> &'static mut [u64; 512] {
    pages(1).cast_page()
}

/// Allocates `count` zeroed, consecutive pages of the monitor's own memory. They are never freed.
pub fn pages(count: usize) -> Pages {
    allocate(count * PAGE, PAGE)
}

fn allocate(size: usize, align: usize) -> Pages {
    let layout = Layout::from_size_align(size, align)
        .expect("sizes are multiples of pages and alignments powers of two");
    // SAFETY: the layout's size is not zero, because no caller asks for zero pages.
    let base = unsafe { alloc_zeroed(layout) };
    if base.is_null() {
        handle_alloc_error(layout);
    }
    Pages(base)
}

/// Allocates `size` zeroed bytes of the monitor's own memory, aligned to `size`, a power of two and at least a page.
/// They are never freed.
pub fn aligned(size: usize) -> Pages {
    allocate(size, size)
}

/// Allocated pages without references to them.
pub struct Pages(*mut u8);

impl Pages {
    /// Returns their physical address.
    pub fn address(&self) -> u64 {
        self.0 as u64
    }

    fn cast_page(self) -> &'static mut [u64; 512] {
        // SAFETY: at least one zeroed page, aligned, never freed, with no other holder of the pointer.
        unsafe { &mut *self.0.cast() }
    }
}

/// Moves `value` into pages of its own, at a page boundary. It is never freed.
pub fn leak<T>(value: T) -> &'static mut T {
    assert!(align_of::<T>() <= PAGE);
    let place = pages(size_of::<T>().div_ceil(PAGE).max(1)).0.cast::<T>();
    // SAFETY: the pages are large enough, aligned, never freed, and there is no other holder of the pointer.
    unsafe {
        place.write(value);
        &mut *place
    }
}

/// Builds identity page tables of 1 GiB pages for 48 bits. Returns the address of their PML4.
pub fn identity_map() -> u64 {
    const PRESENT_WRITABLE_USER: u64 = 7;
    const LARGE: u64 = 1 << 7;
    let pml4 = page();
    for (i, entry) in pml4.iter_mut().enumerate() {
        let pdpt = page();
        for (j, entry) in pdpt.iter_mut().enumerate() {
            *entry = ((i << 39 | j << 30) as u64) | PRESENT_WRITABLE_USER | LARGE;
        }
        *entry = core::ptr::from_mut(pdpt) as u64 | PRESENT_WRITABLE_USER;
    }
    // The canonical identity map ends at bit 47. Nested tables use the upper half as well.
    core::ptr::from_mut(pml4) as u64
}
