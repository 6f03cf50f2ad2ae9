//! The layout of an image in guest memory. It lies in the last 4 MiB below 4 GiB, so that a TD of any size has room
//! for it.

/// Maximum number of vCPUs that a guest can use.
pub const MAX_VCPUS: usize = 64;

/// The load address of the program. Its code and data run from there.
pub const PROGRAM: u64 = 0xFFC0_0000;
/// The program's end is at most here.
pub const PROGRAM_END: u64 = VCPU_AREA;
/// vCPU 0's stacks and per-vCPU data. Those of the other vCPUs are in memory that the guest accepts.
pub const VCPU_AREA: u64 = 0xFFE0_0000;
/// Size in bytes of a vCPU's area.
pub const VCPU_AREA_BYTES: u64 = 0x1_0000;
/// The hand-off blocks that the host writes.
pub const HOB: u64 = 0xFFE8_0000;
/// Space for them in bytes: as much as OVMF has.
pub const HOB_BYTES: u64 = 0x2000;
/// The page with the metadata and, in its last 16 bytes, the reset vector.
pub const RESET_PAGE: u64 = 0xFFFF_F000;
/// The address at which a vCPU starts.
pub const RESET_VECTOR: u64 = 0xFFFF_FFF0;

/// The symbol of the program's first instruction. ESP holds its address at entry.
pub const ENTRY_SYMBOL: &str = "td_start";
