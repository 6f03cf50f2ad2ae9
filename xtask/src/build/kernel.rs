//! Conversion of an ELF to a file that boots as Linux does (bzImage): a setup header, followed by the program.
//!
//! Source: Linux Documentation/arch/x86/boot.rst.

use anyhow::{Result, ensure};

use super::elf::{PAGE, Program};
use super::guest;

/// The kernel's preferred address.
const ADDRESS: u64 = 0x100_0000;
/// Size in bytes of the part that is not loaded: a boot sector and one sector of setup.
const SETUP_BYTES: usize = 1024;
/// Offset of the 64-bit entry point from the start of the loaded part.
const ENTRY_64: usize = 0x200;

/// Builds the file of a kernel whose first instruction is at the 64-bit entry point.
///
/// # Errors
/// The program leaves no room for that point.
pub fn image(program: &Program) -> Result<Vec<u8>> {
    const JMP: u8 = 0xE9;
    const JMP_BYTES: usize = 5;
    let (mut loaded, bytes) = guest::memory(program, ADDRESS)?;
    let first = program.segments.first().map_or(0, |s| s.address as usize);
    ensure!(
        first >= ENTRY_64 + JMP_BYTES && loaded.len() >= ENTRY_64 + JMP_BYTES,
        "the program begins at {first:#x}, where its entry point has to be"
    );
    let offset = program.entry as u32 - (ENTRY_64 + JMP_BYTES) as u32;
    loaded[ENTRY_64] = JMP;
    loaded[ENTRY_64 + 1..][..4].copy_from_slice(&offset.to_le_bytes());
    Ok([&setup(bytes), &*loaded].concat())
}

/// Returns the setup header. The fields that are not zero: sectors of setup; the header's end, magic and version; the
/// limits of an initial file system and a command line; the flag for the 64-bit entry point; the kernel's preferred
/// address and the memory it needs.
fn setup(bytes: u64) -> [u8; SETUP_BYTES] {
    let mut setup = [0; SETUP_BYTES];
    let mut put = |at: usize, bytes: &[u8]| setup[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1F1, &[1]);
    put(0x1FE, &[0x55, 0xAA]);
    put(0x201, &[0x6A]);
    put(0x202, b"HdrS");
    put(0x206, &0x020Fu16.to_le_bytes());
    put(0x22C, &0x7FFF_FFFFu32.to_le_bytes());
    put(0x230, &(PAGE as u32).to_le_bytes());
    put(0x236, &[1]);
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &ADDRESS.to_le_bytes());
    put(0x260, &(bytes as u32).to_le_bytes());
    setup
}

#[cfg(test)]
mod tests {
    use super::super::elf::{Access, Segment};
    use super::*;

    #[test]
    fn the_entry_point_leads_to_the_first_instruction() {
        let program = Program {
            segments: vec![Segment {
                address: 0x1000,
                size: 0x1000,
                data: vec![0x90; 0x1000],
                access: Access::Execute,
            }],
            entry: 0x1010,
            relocations: vec![],
        };
        let file = image(&program).unwrap();
        assert_eq!(file.len(), SETUP_BYTES + 0x2000);
        let entry = &file[SETUP_BYTES + ENTRY_64..][..5];
        assert_eq!(entry[0], 0xE9);
        let offset = u32::from_le_bytes(entry[1..].try_into().unwrap());
        assert_eq!(0x205 + offset, 0x1010);
        assert_eq!(file[0x202..0x206], *b"HdrS");
    }
}
