//! Memory as the monitor uses it: identity-mapped, all of it.
//!
//! The monitor's page tables map every physical address below 2^48 at itself with 1 GiB pages.
#![expect(unsafe_code, reason = "hands out physical memory")]

use alloc::alloc::{Layout, alloc_zeroed, handle_alloc_error};

/// Size of a page in bytes.
pub const PAGE: usize = 4096;

/// A zeroed page of the monitor's own memory, for good.
pub fn page() -> &'static mut [u64; 512] {
    pages(1).cast_page()
}

/// `count` zeroed, consecutive pages of the monitor's own memory, for good.
pub fn pages(count: usize) -> Pages {
    allocate(count * PAGE, PAGE)
}

fn allocate(size: usize, align: usize) -> Pages {
    let layout = Layout::from_size_align(size, align).expect("a number of pages");
    // SAFETY: the layout's size is not zero: nobody asks for no pages.
    let base = unsafe { alloc_zeroed(layout) };
    if base.is_null() {
        handle_alloc_error(layout);
    }
    Pages(base)
}

/// `size` zeroed bytes of the monitor's own memory, at a multiple of their number, a power of two and at least a page; for good.
pub fn aligned(size: usize) -> Pages {
    allocate(size, size)
}

/// Pages that were allocated and that nobody refers to yet.
pub struct Pages(*mut u8);

impl Pages {
    /// Their physical address.
    pub fn address(&self) -> u64 {
        self.0 as u64
    }

    fn cast_page(self) -> &'static mut [u64; 512] {
        // SAFETY: at least one zeroed page, aligned, never freed, and nobody else has the pointer.
        unsafe { &mut *self.0.cast() }
    }
}

/// Puts `value` into pages of its own for good, at a page boundary.
pub fn leak<T>(value: T) -> &'static mut T {
    assert!(align_of::<T>() <= PAGE);
    let place = pages(size_of::<T>().div_ceil(PAGE).max(1)).0.cast::<T>();
    // SAFETY: the pages are large enough, aligned, never freed, and nobody else has the pointer.
    unsafe {
        place.write(value);
        &mut *place
    }
}

/// Identity page tables of 1 GiB pages for 48 bits: the address of their PML4.
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
    // Canonical identity ends at bit 47; the upper half is what nested tables need it for.
    core::ptr::from_mut(pml4) as u64
}
