//! Where an image lies in guest memory: in the last 4 MiB below 4 GiB, so that a TD of any size has room for it.

/// The most vCPUs that a guest can use.
pub const MAX_VCPUS: usize = 64;

/// Where the program is loaded; its code and data run from there.
pub const PROGRAM: u64 = 0xFFC0_0000;
/// The program ends here at the latest.
pub const PROGRAM_END: u64 = VCPU_AREA;
/// What vCPU 0 needs: its stacks and what it knows of itself. The others' is taken from memory that the guest accepts.
pub const VCPU_AREA: u64 = 0xFFE0_0000;
/// Bytes of a vCPU's area.
pub const VCPU_AREA_BYTES: u64 = 0x1_0000;
/// The hand-off block that the host writes.
pub const HOB: u64 = 0xFFE8_0000;
/// Room for it: as much as OVMF has.
pub const HOB_BYTES: u64 = 0x2000;
/// The page with the metadata and, in its last 16 bytes, the reset vector.
pub const RESET_PAGE: u64 = 0xFFFF_F000;
/// Where a vCPU starts.
pub const RESET_VECTOR: u64 = 0xFFFF_FFF0;

/// The symbol of the program's first instruction. It is reached with its own address in ESP.
pub const ENTRY_SYMBOL: &str = "td_start";
