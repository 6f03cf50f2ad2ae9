//! The setup header of a Linux kernel's file, which describes how to load it.
//!
//! Source: Linux Documentation/arch/x86/boot.rst.

use seam::abi::PAGE_4K;

/// Offset of the header in the file and in the boot parameters.
pub const HEADER: usize = 0x1F1;
/// Number of bytes at the file's start that contain the whole header.
pub const HEAD_BYTES: usize = 0x400;
/// Offset of the 64-bit entry point from the start of the loaded kernel.
pub const ENTRY_64: u64 = 0x200;

/// Size in bytes of a waiting vCPU's stack.
pub const WAITING_STACK_BYTES: u64 = 0x800;

const SECTOR: u64 = 512;
/// Protocol 2.12, the first with `xloadflags`.
const OLDEST: u16 = 0x020C;

/// A kernel's requirements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Number of bytes in the file before the part that is loaded.
    pub setup_bytes: u64,
    /// Offset of the header's end in the file.
    pub header_end: usize,
    /// The preferred load address.
    pub address: u64,
    /// Memory that the kernel needs from there on, to unpack itself.
    pub bytes: u64,
    /// Highest allowed address of the initial file system's last byte.
    pub initrd_limit: u64,
    /// Maximum length of the command line in bytes.
    pub command_line: usize,
}

impl Kernel {
    /// Reads the header of a file that is `length` bytes long.
    ///
    /// # Errors
    /// The reason why the file can't be booted.
    pub fn read(head: &[u8; HEAD_BYTES], length: u64) -> Result<Self, &'static str> {
        /// `xloadflags`: the kernel has the 64-bit entry point.
        const HAS_64_BIT_ENTRY: u8 = 1;
        let word =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if head[0x202..0x206] != *b"HdrS" {
            return Err("the kernel is no Linux kernel (bzImage)");
        }
        if (word(0x206) as u16) < OLDEST || head[0x236] & HAS_64_BIT_ENTRY == 0 {
            return Err("the kernel has no 64-bit entry point");
        }
        let sectors = match head[HEADER] {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let kernel = Self {
            setup_bytes: (sectors + 1) * SECTOR,
            header_end: 0x202 + usize::from(head[0x201]),
            address: long(0x258),
            bytes: word(0x260).into(),
            initrd_limit: word(0x22C).into(),
            command_line: word(0x238) as usize,
        };
        let fits = kernel.header_end <= 0x290
            && length
                .checked_sub(kernel.setup_bytes)
                .is_some_and(|loaded| loaded > ENTRY_64 && loaded <= kernel.bytes);
        if fits {
            Ok(kernel)
        } else {
            Err("the kernel's header contradicts its length")
        }
    }
}

/// Returns the size of the memory from address 0 on that holds a kernel, its initial file system and `vcpus` vCPUs; a
/// multiple of 4 KiB. Returns `None` if no size is enough because the initial file system extends beyond the kernel's
/// limit.
///
/// The firmware places the kernel at its preferred address, then the initial file system, then the stacks of waiting
/// vCPUs.
#[must_use]
pub fn memory_needed(kernel: &Kernel, initrd_bytes: u64, vcpus: u32) -> Option<u64> {
    let pages = |bytes: u64| bytes.checked_next_multiple_of(PAGE_4K);
    let loaded = pages(kernel.address.checked_add(kernel.bytes)?)?;
    let initrd_end = loaded.checked_add(pages(initrd_bytes)?)?;
    let waiting = pages(u64::from(vcpus) * WAITING_STACK_BYTES)?;
    let fits = initrd_end <= kernel.initrd_limit.saturating_add(1);
    initrd_end.checked_add(waiting).filter(|_| fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::head;

    #[test]
    fn debians_kernel_is_understood() {
        let kernel = Kernel::read(&head(), 11_655_104).unwrap();
        assert_eq!((kernel.setup_bytes, kernel.header_end), (0x5000, 0x26C));
        assert_eq!((kernel.address, kernel.bytes), (0x100_0000, 0x37D_C000));
        assert_eq!(kernel.initrd_limit, 0x7FFF_FFFF);
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let changed = |at: usize, byte: u8, length| {
            let mut head = head();
            head[at] = byte;
            Kernel::read(&head, length)
        };
        let length = 11_655_104;
        assert!(changed(0x202, b'X', length).is_err());
        assert!(changed(0x206, 0x0B, length).is_err());
        assert!(changed(0x236, 0, length).is_err());
        assert!(changed(0x201, 0xFF, length).is_err());
        assert!(changed(0, 0, 0x5000).is_err());
        assert!(changed(0x263, 0, length).is_err());
    }
}
