//! Moves the program out of the memory that firmware loaded it to, which an operating system will reuse.
#![expect(unsafe_code, reason = "copies and patches the program itself")]

/// An image in memory as a PE loader left it: headers at the start, sections at their addresses.
#[derive(Clone, Copy)]
pub struct Image {
    base: *const u8,
    size: usize,
}

impl Image {
    /// # Safety
    /// `size` bytes from `base` are a loaded PE32+ image, and nobody writes to it while this value is used.
    pub unsafe fn new(base: *const u8, size: usize) -> Self {
        Self { base, size }
    }

    /// Returns the image's size in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        let end = offset.checked_add(size_of::<T>())?;
        // SAFETY: in bounds by the check, and readable by the contract of `new`; only integers are read.
        (end <= self.size).then(|| unsafe { self.base.add(offset).cast::<T>().read_unaligned() })
    }

    /// Copies the image to `to` and applies its base relocations there. Returns `None` if they are invalid.
    ///
    /// # Safety
    /// `to` has room for the image's size, is page-aligned, executable, and used by nobody else.
    pub unsafe fn copy_to(&self, to: *mut u8) -> Option<()> {
        const PE_OFFSET: usize = 0x3C;
        const BASE_RELOCATION_DIRECTORY: usize = 24 + 112 + 5 * 8;
        // SAFETY: both ranges have `size` bytes, by this function's and `new`'s contracts, and `to` is nobody else's.
        unsafe { core::ptr::copy_nonoverlapping(self.base, to, self.size) };
        let delta = (to as u64).wrapping_sub(self.base as u64);
        let pe = self.read::<u32>(PE_OFFSET)? as usize;
        let mut at = self.read::<u32>(pe + BASE_RELOCATION_DIRECTORY)? as usize;
        let end = at + self.read::<u32>(pe + BASE_RELOCATION_DIRECTORY + 4)? as usize;
        while at + 8 <= end {
            let page = self.read::<u32>(at)? as usize;
            let block = self.read::<u32>(at + 4)? as usize;
            if block < 8 {
                return None;
            }
            for entry in (at + 8..at + block).step_by(2) {
                const ABSOLUTE: u16 = 0;
                const DIR64: u16 = 10;
                let entry = self.read::<u16>(entry)?;
                match entry >> 12 {
                    ABSOLUTE => {}
                    DIR64 => {
                        let offset = page + usize::from(entry & 0xFFF);
                        let value = self.read::<u64>(offset)?.wrapping_add(delta);
                        // SAFETY: `read` has checked that the 8 bytes at `offset` are inside the image.
                        unsafe { to.add(offset).cast::<u64>().write_unaligned(value) };
                    }
                    _ => return None,
                }
            }
            at += block;
        }
        Some(())
    }

    /// Returns the address in the copy at `to` that corresponds to `pointer`, which points into this image.
    pub fn moved(&self, pointer: usize, to: *const u8) -> usize {
        pointer - self.base as usize + to as usize
    }
}
