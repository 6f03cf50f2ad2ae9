//! The commands by which firmware places and links the ACPI tables.
//!
//! Source: QEMU hw/acpi/bios-linker-loader.c.

use core::ops::Range;

use super::name::{NAME_BYTES, name_bytes};

/// Bytes of a command. Unused ones are zero, which is no command.
pub const COMMAND_BYTES: usize = 128;
/// Size in bytes of the file: room for 32 commands.
pub const BYTES: usize = 32 * COMMAND_BYTES;

const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;

/// Where firmware places a file.
#[derive(Clone, Copy, Debug)]
pub enum Zone {
    /// Below 4 GiB.
    High = 1,
    /// Below 1 MiB, where systems without UEFI search for it.
    Legacy = 2,
}

/// A writer of commands.
#[derive(Debug)]
pub struct Loader<'a> {
    rest: &'a mut [u8],
}

impl<'a> Loader<'a> {
    /// Starts with an empty file.
    pub fn new(file: &'a mut [u8]) -> Self {
        file.fill(0);
        Self { rest: file }
    }

    /// Loads a file at a multiple of `alignment`.
    pub fn allocate(&mut self, file: &str, alignment: u32, zone: Zone) {
        let [a, b, c, d] = alignment.to_le_bytes();
        self.command(ALLOCATE, &[&name_bytes(file), &[a, b, c, d, zone as u8]]);
    }

    /// Adds the address of the second file to the pointer of `bytes` bytes at offset `at` in the first one.
    pub fn add_pointer(&mut self, [file, to]: [&str; 2], at: usize, bytes: u8) {
        let [a, b, c, d] = (at as u32).to_le_bytes();
        let (file, to) = (name_bytes(file), name_bytes(to));
        self.command(ADD_POINTER, &[&file, &to, &[a, b, c, d, bytes]]);
    }

    /// Sets the byte at offset `at`, which is zero until then, so that the sum of the bytes in `range` is zero.
    pub fn add_checksum(&mut self, file: &str, at: usize, range: Range<usize>) {
        let words = [at, range.start, range.len()].map(|word| (word as u32).to_le_bytes());
        self.command(ADD_CHECKSUM, &[&name_bytes(file), words.as_flattened()]);
    }

    /// Adds a command. The file has room for all that there are.
    fn command(&mut self, number: u32, operands: &[&[u8]]) {
        let Some((command, rest)) =
            core::mem::take(&mut self.rest).split_at_mut_checked(COMMAND_BYTES)
        else {
            return;
        };
        let (head, mut body) = command.split_at_mut(4);
        head.copy_from_slice(&number.to_le_bytes());
        for operand in operands {
            let (to, next) = body.split_at_mut(operand.len());
            to.copy_from_slice(operand);
            body = next;
        }
        self.rest = rest;
    }
}

const _: () = assert!(4 + 2 * NAME_BYTES + 5 <= COMMAND_BYTES);
