//! Conversion of a guest's ELF to a TDVF image: the program at its address, and the page with the reset vector and the
//! metadata.

use anyhow::{Context, Result, ensure};
use guest_kit::layout::{
    HOB, HOB_BYTES, PROGRAM, PROGRAM_END, RESET_PAGE, RESET_VECTOR, VCPU_AREA, VCPU_AREA_BYTES,
};
use tdvf::{Entry, Kind, TAIL_BYTES, metadata_bytes, write};

use super::elf::{PAGE, Program};

/// The section is extended into MRTD.
const MEASURED: u32 = 1;
const SECTIONS: usize = 4;

/// Builds the image of a guest.
///
/// # Errors
/// The program is too large for its place.
pub fn image(program: &Program) -> Result<Vec<u8>> {
    let (mut file, bytes) = memory(program, PROGRAM)?;
    ensure!(
        bytes <= PROGRAM_END - PROGRAM,
        "the program takes {bytes} bytes of memory, {} over what there is",
        bytes - (PROGRAM_END - PROGRAM)
    );
    let program_bytes = file.len() as u32;
    let sections: [Entry; SECTIONS] = [
        Entry {
            data: 0..program_bytes,
            gpa: PROGRAM,
            bytes,
            kind: Kind::Bfv as u32,
            attributes: MEASURED,
        },
        Entry {
            data: program_bytes..program_bytes + PAGE as u32,
            gpa: RESET_PAGE,
            bytes: PAGE,
            kind: Kind::Bfv as u32,
            attributes: MEASURED,
        },
        Entry {
            data: 0..0,
            gpa: VCPU_AREA,
            bytes: VCPU_AREA_BYTES,
            kind: Kind::TempMem as u32,
            attributes: 0,
        },
        Entry {
            data: 0..0,
            gpa: HOB,
            bytes: HOB_BYTES,
            kind: Kind::TdHob as u32,
            attributes: 0,
        },
    ];
    let before_metadata = PAGE as usize - metadata_bytes(SECTIONS) - TAIL_BYTES;
    file.resize(file.len() + before_metadata, 0);
    Ok(write(&file, &sections, &tail(PROGRAM + program.entry)))
}

/// Returns the memory of a program at `base` as its first instruction finds it, without the zeros at the end, and its
/// size with them, in whole pages.
///
/// # Errors
/// The ELF is inconsistent.
pub fn memory(program: &Program, base: u64) -> Result<(Vec<u8>, u64)> {
    let last = program.segments.last().context("an empty program")?;
    let bytes = (last.address + last.size).next_multiple_of(PAGE);
    let mut memory = Vec::new();
    for segment in &program.segments {
        memory.resize(usize::try_from(segment.address)?, 0);
        memory.extend_from_slice(&segment.data);
    }
    for &at in &program.relocations {
        let at = usize::try_from(at)?;
        let word = memory.get_mut(at..at + 8).context("a relocation")?;
        let addend = u64::from_le_bytes(word.try_into()?);
        word.copy_from_slice(&(base + addend).to_le_bytes());
    }
    Ok((memory, bytes))
}

/// Returns the end of the image with the reset vector: MOV ESP with the address of the program's first instruction,
/// which expects its address there, and a jump to it.
fn tail(entry: u64) -> [u8; TAIL_BYTES] {
    const MOV_ESP: u8 = 0xBC;
    const JMP: u8 = 0xE9;
    const CODE_BYTES: u32 = 10;
    let entry = entry as u32;
    let from = RESET_VECTOR as u32 + CODE_BYTES;
    let mut tail = [0; TAIL_BYTES];
    let code = &mut tail[TAIL_BYTES - 16..];
    code[0] = MOV_ESP;
    code[1..5].copy_from_slice(&entry.to_le_bytes());
    code[5] = JMP;
    code[6..10].copy_from_slice(&entry.wrapping_sub(from).to_le_bytes());
    tail
}

#[cfg(test)]
mod tests {
    use tdvf::TdImage;

    use super::super::elf::{Access, Segment};
    use super::*;

    fn program() -> Program {
        Program {
            segments: vec![
                Segment {
                    address: 0x1000,
                    size: 0x1000,
                    data: vec![0x90; 0x1000],
                    access: Access::Execute,
                },
                Segment {
                    address: 0x2000,
                    size: 0x3001,
                    data: 0x1234u64.to_le_bytes().to_vec(),
                    access: Access::Write,
                },
            ],
            entry: 0x1010,
            relocations: vec![0x2000],
        }
    }

    #[test]
    fn the_image_holds_the_program_relocated_and_the_reset_vector() {
        let file = image(&program()).unwrap();
        let image = TdImage::parse(&file).unwrap();
        let [code, reset, area, hob] = image.sections() else {
            panic!("{image:?}");
        };
        assert_eq!(code.range(), PROGRAM..PROGRAM + 0x6000);
        assert_eq!(code.data[0x1000..0x2000], [0x90; 0x1000]);
        assert_eq!(code.data[0x2000..], (PROGRAM + 0x1234).to_le_bytes());
        assert_eq!(reset.range(), RESET_PAGE..1 << 32);
        assert_eq!(reset.data, &file[file.len() - 0x1000..]);
        assert_eq!(area.range(), VCPU_AREA..VCPU_AREA + VCPU_AREA_BYTES);
        assert_eq!(image.hob(), Some(hob));
        assert!(code.measured && reset.measured && !area.measured && !hob.measured);
    }

    #[test]
    fn the_reset_vector_leads_to_the_first_instruction() {
        let tail = tail(0xFFC0_1010);
        let code = &tail[TAIL_BYTES - 16..];
        assert_eq!(code[..5], [0xBC, 0x10, 0x10, 0xC0, 0xFF]);
        let offset = u32::from_le_bytes(code[6..10].try_into().unwrap());
        assert_eq!(0xFFFF_FFFAu32.wrapping_add(offset), 0xFFC0_1010);
    }

    #[test]
    fn a_program_that_is_too_large_is_refused() {
        let mut program = program();
        program.segments[1].size = PROGRAM_END - PROGRAM;
        let error = image(&program).unwrap_err().to_string();
        assert!(error.contains("8192 over"), "{error}");
    }
}
