//! The head of a Linux kernel's file, for tests.

/// Returns the head of Debian's 6.12 kernel, with the fields that are read.
pub fn head() -> [u8; 0x400] {
    let mut head = [0; 0x400];
    let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1F1, &[0x27]);
    put(0x201, &[0x6A]);
    put(0x202, b"HdrS");
    put(0x206, &[0x0F, 0x02]);
    put(0x22C, &0x7FFF_FFFFu32.to_le_bytes());
    put(0x236, &[0x7F]);
    put(0x238, &0x7FFu32.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x37D_C000u32.to_le_bytes());
    head
}
