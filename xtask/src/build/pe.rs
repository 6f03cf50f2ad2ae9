//! A writer of the PE32+ images that UEFI loads. Addresses in an image are those of the [`Program`]'s ELF, so that a
//! debugger and `addr2line` need only the image base.

use anyhow::{Context, Result, ensure};
use object::pe;
use object::write::pe::{NtHeaders, Writer};

use super::elf::{Access, PAGE, Program};

/// The alignment of sections in the file.
const FILE_ALIGNMENT: u32 = 512;

/// The space in bytes for PE headers that the linker must leave at the bottom of the image.
pub const HEADERS: u64 = PAGE;

/// The way in which UEFI uses an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subsystem {
    /// Loaded by a boot option. Its memory is freed when it returns.
    Application,
    /// Loaded by the firmware for a device. It stays in memory.
    BootServiceDriver,
}

impl Subsystem {
    /// Returns the number in the PE header.
    pub fn number(self) -> u16 {
        match self {
            Self::Application => pe::IMAGE_SUBSYSTEM_EFI_APPLICATION.0,
            Self::BootServiceDriver => pe::IMAGE_SUBSYSTEM_EFI_BOOT_SERVICE_DRIVER.0,
        }
    }
}

/// Writes the image: one section per segment with the segment's permissions, then the base relocations.
///
/// # Errors
/// The program leaves no room for the headers, or is larger than a PE can be.
pub fn write(program: &Program, subsystem: Subsystem) -> Result<Vec<u8>> {
    let first = program.segments.first().context("the program is empty")?;
    ensure!(
        first.address >= HEADERS,
        "the first segment is at {:#x}; link with --image-base={HEADERS:#x} to leave room for the PE headers",
        first.address
    );
    let mut out = Vec::new();
    let mut writer = Writer::new(true, u32::try_from(PAGE)?, FILE_ALIGNMENT, &mut out);
    writer.reserve_dos_header();
    writer.reserve_nt_headers(16);
    writer.reserve_section_headers(u16::try_from(program.segments.len() + 1)?);

    let mut ranges = Vec::new();
    for segment in &program.segments {
        let (name, flags) = section(segment.access);
        writer.reserve_virtual_until(u32::try_from(segment.address)?);
        let (size, len) = (segment.size, segment.data.len());
        ranges.push(writer.reserve_section(name, flags, u32::try_from(size)?, u32::try_from(len)?));
    }
    for &address in &program.relocations {
        writer.add_reloc(u32::try_from(address)?, pe::IMAGE_REL_BASED_DIR64);
    }
    if program.relocations.is_empty() {
        // An image without a relocation block counts as not relocatable.
        writer.add_reloc(u32::try_from(first.address)?, pe::IMAGE_REL_BASED_ABSOLUTE);
    }
    writer.reserve_reloc_section();

    writer.write_empty_dos_header()?;
    writer.write_nt_headers(headers(u32::try_from(program.entry)?, subsystem));
    writer.write_section_headers();
    for (segment, range) in program.segments.iter().zip(&ranges) {
        writer.write_section(range.file_offset, &segment.data);
    }
    writer.write_reloc_section();
    Ok(out)
}

/// Returns the name and flags of a section.
fn section(access: Access) -> ([u8; 8], pe::SectionFlags) {
    let data = pe::IMAGE_SCN_CNT_INITIALIZED_DATA | pe::IMAGE_SCN_MEM_READ;
    match access {
        Access::Read => (*b".rodata\0", data),
        Access::ReadAfterRelocation => (*b".relro\0\0", data),
        Access::Write => (*b".data\0\0\0", data | pe::IMAGE_SCN_MEM_WRITE),
        Access::Execute => (
            *b".text\0\0\0",
            pe::IMAGE_SCN_CNT_CODE | pe::IMAGE_SCN_MEM_READ | pe::IMAGE_SCN_MEM_EXECUTE,
        ),
    }
}

/// Returns the header fields that do not follow from the sections. They are the same in every build.
fn headers(entry: u32, subsystem: Subsystem) -> NtHeaders {
    NtHeaders {
        machine: pe::IMAGE_FILE_MACHINE_AMD64,
        time_date_stamp: 0,
        characteristics: pe::IMAGE_FILE_EXECUTABLE_IMAGE | pe::IMAGE_FILE_LARGE_ADDRESS_AWARE,
        major_linker_version: 0,
        minor_linker_version: 0,
        address_of_entry_point: entry,
        image_base: 0,
        major_operating_system_version: 0,
        minor_operating_system_version: 0,
        major_image_version: 0,
        minor_image_version: 0,
        major_subsystem_version: 0,
        minor_subsystem_version: 0,
        subsystem: pe::Subsystem(subsystem.number()),
        dll_characteristics: pe::IMAGE_DLLCHARACTERISTICS_HIGH_ENTROPY_VA
            | pe::IMAGE_DLLCHARACTERISTICS_DYNAMIC_BASE
            | pe::IMAGE_DLLCHARACTERISTICS_NX_COMPAT,
        size_of_stack_reserve: 0,
        size_of_stack_commit: 0,
        size_of_heap_reserve: 0,
        size_of_heap_commit: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::elf::tests::{Sample, sample};
    use object::LittleEndian as LE;
    use object::pe::{ImageDosHeader, ImageNtHeaders64};
    use object::read::pe::{ImageNtHeaders as _, ImageOptionalHeader as _, PeFile64};

    fn image() -> Vec<u8> {
        let program = Program::read(&sample(Sample {
            relro: Some((0x3000, 0x800)),
            ..Sample::default()
        }))
        .unwrap();
        write(&program, Subsystem::Application).unwrap()
    }

    #[test]
    fn each_segment_is_a_section_with_its_own_permissions() {
        let image = image();
        let file = PeFile64::parse(&*image).unwrap();
        let sections: Vec<_> = file
            .section_table()
            .iter()
            .map(|s| {
                let flags = s.characteristics.get(LE);
                let letters = [
                    (pe::IMAGE_SCN_MEM_READ, 'r'),
                    (pe::IMAGE_SCN_MEM_WRITE, 'w'),
                    (pe::IMAGE_SCN_MEM_EXECUTE, 'x'),
                ];
                let access: String = letters
                    .iter()
                    .filter(|(flag, _)| flags.contains(*flag))
                    .map(|(_, letter)| *letter)
                    .collect();
                (s.virtual_address.get(LE), s.virtual_size.get(LE), access)
            })
            .collect();
        assert_eq!(
            sections,
            [
                (0x1000, 72, "r".to_owned()),
                (0x2000, 5, "rx".to_owned()),
                (0x3000, 0x1000, "r".to_owned()),
                (0x4000, 0x800, "rw".to_owned()),
                (0x5000, 12, "r".to_owned()),
            ]
        );
    }

    #[test]
    fn headers_say_what_firmware_checks() {
        let image = image();
        let dos = ImageDosHeader::parse(&*image).unwrap();
        let mut offset = dos.nt_headers_offset().into();
        let (nt, directories) = ImageNtHeaders64::parse(&*image, &mut offset).unwrap();
        let optional = nt.optional_header();
        assert_eq!(nt.file_header.machine.get(LE), pe::IMAGE_FILE_MACHINE_AMD64);
        assert_eq!(optional.address_of_entry_point(), 0x2001);
        assert_eq!(optional.subsystem(), pe::IMAGE_SUBSYSTEM_EFI_APPLICATION);
        assert_eq!(optional.size_of_image(), 0x6000);
        assert!(
            directories
                .get(pe::IMAGE_DIRECTORY_ENTRY_BASERELOC)
                .is_some()
        );
    }

    #[test]
    fn relocations_are_carried_over() {
        let image = image();
        let file = PeFile64::parse(&*image).unwrap();
        let mut blocks = file
            .data_directories()
            .relocation_blocks(&*image, &file.section_table())
            .unwrap()
            .unwrap();
        let block: Vec<_> = blocks.next().unwrap().unwrap().collect();
        // The second entry pads the block to 32 bits.
        assert_eq!(block[0].virtual_address, 0x3008);
        assert_eq!(block[0].typ, pe::IMAGE_REL_BASED_DIR64);
        assert!(blocks.next().unwrap().is_none());
    }

    #[test]
    fn a_program_at_zero_leaves_no_room_for_headers() {
        let mut program = Program::read(&sample(Sample::default())).unwrap();
        program.segments[0].address = 0;
        let error = write(&program, Subsystem::Application).unwrap_err();
        assert!(error.to_string().contains("--image-base"), "{error}");
    }
}
