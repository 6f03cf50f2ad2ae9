//! Access to structures in physical memory, by the words of a page.

use core::sync::atomic::{AtomicU64, Ordering};

use seam::abi::PAGE_4K;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Machine;

/// Returns the 64-bit word at `pa`, which is aligned down to 8 bytes. KeyID bits must be stripped.
pub fn word<M: Machine>(machine: &M, pa: u64) -> &AtomicU64 {
    &machine.page(pa & !(PAGE_4K - 1))[(pa % PAGE_4K / 8) as usize]
}

/// Reads the 64-bit value at `pa` (8-byte aligned).
pub fn read<M: Machine>(machine: &M, pa: u64) -> u64 {
    word(machine, pa).load(Ordering::Acquire)
}

/// Writes the 64-bit value at `pa` (8-byte aligned).
pub fn write<M: Machine>(machine: &M, pa: u64, value: u64) {
    word(machine, pa).store(value, Ordering::Release);
}

/// Copies bytes out of memory; `pa` is 8-byte aligned.
pub fn read_bytes<M: Machine>(machine: &M, pa: u64, bytes: &mut [u8]) {
    for (i, chunk) in (0..).zip(bytes.chunks_mut(8)) {
        let value = read(machine, pa + 8 * i).to_le_bytes();
        chunk.copy_from_slice(&value[..chunk.len()]);
    }
}

/// Copies bytes into memory; `pa` and the length are multiples of 8.
pub fn write_bytes<M: Machine>(machine: &M, pa: u64, bytes: &[u8]) {
    for (i, chunk) in (0..).zip(bytes.chunks_exact(8)) {
        let value = chunk
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte));
        write(machine, pa + 8 * i, value);
    }
}

/// Reads the structure at `pa` (8-byte aligned) once. Later changes by the host are not seen.
pub fn read_struct<M: Machine, T: FromBytes + IntoBytes>(machine: &M, pa: u64) -> T {
    let mut value = T::new_zeroed();
    read_bytes(machine, pa, value.as_mut_bytes());
    value
}

/// Writes a structure to `pa`. The address and the structure's size are multiples of 8.
pub fn write_struct<M: Machine, T: IntoBytes + Immutable>(machine: &M, pa: u64, value: &T) {
    write_bytes(machine, pa, value.as_bytes());
}
