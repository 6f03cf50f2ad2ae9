//! The host's virtual address space.
//!
//! The image, the boot heap and the AP trampoline stay at the physical addresses where the firmware put them.
//! Everything else is in the upper half.

/// Base of the direct map of all RAM, readable and writable, never executable: virtual address = base + physical
/// address. The image's own pages are left out, so that nothing writable aliases its code.
pub const DIRECT_MAP: u64 = 0xFFFF_8000_0000_0000;
/// Size of the direct map's window in bytes: 64 TiB.
pub const DIRECT_MAP_SIZE: u64 = 1 << 46;
/// Base of the mappings on demand of device registers and of firmware tables outside RAM.
pub const WINDOWS: u64 = 0xFFFF_D000_0000_0000;
/// End of those mappings.
pub const WINDOWS_END: u64 = 0xFFFF_E000_0000_0000;
/// Base of the stacks, each with an unmapped page below it.
pub const STACKS: u64 = 0xFFFF_C000_0000_0000;
/// The stack on which the hypervisor starts: its lowest address and its size in bytes.
pub const BOOT_STACK: (u64, u64) = (STACKS + 4096, 128 << 10);
