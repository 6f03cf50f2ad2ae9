//! A reader of static-pie ELF files. It extracts what a loader needs: segments, entry, relocations.

use anyhow::{Context, Result, bail, ensure};
use object::LittleEndian as LE;
use object::elf::{self, FileHeader64, ProgramHeader64, Rela64};
use object::pod::slice_from_all_bytes;
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _, SectionHeader as _};

/// The page size of x86-64; segments never share a page.
pub const PAGE: u64 = 4096;

/// The access rights to a segment's memory. No segment is writable and executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    Read,
    /// Read only once the base relocations have been applied (`PT_GNU_RELRO`).
    ReadAfterRelocation,
    /// Read and execute.
    Execute,
    /// Read and write.
    Write,
}

/// A run of whole pages with one kind of access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Address of the first byte relative to the image base; a multiple of [`PAGE`].
    pub address: u64,
    /// Size in bytes in memory. Bytes beyond `data` are zero.
    pub size: u64,
    /// The segment's bytes in the file.
    pub data: Vec<u8>,
    /// The access rights to the memory.
    pub access: Access,
}

/// A program, ready to be written in any format with sections and base relocations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Sorted by address, never overlapping.
    pub segments: Vec<Segment>,
    /// Address of the first instruction relative to the image base.
    pub entry: u64,
    /// Addresses of 64-bit words to which the image base is added, sorted. The words hold their addends.
    pub relocations: Vec<u64>,
}

impl Program {
    /// Reads a static-pie for x86-64.
    ///
    /// # Errors
    /// The file is anything else, a segment is writable and executable or shares a page with another, or a dynamic
    /// relocation is not `R_X86_64_RELATIVE` (the error names it).
    pub fn read(file: &[u8]) -> Result<Self> {
        let header = FileHeader64::<LE>::parse(file).context("not an ELF64 file")?;
        ensure!(
            header.e_type(LE) == elf::ET_DYN && header.e_machine(LE) == elf::EM_X86_64,
            "not a static-pie for x86-64"
        );
        let headers = header.program_headers(LE, file)?;
        let mut segments = Vec::new();
        for load in headers.iter().filter(|h| h.p_type(LE) == elf::PT_LOAD) {
            segments.push(read_segment(load, file)?);
        }
        segments.sort_by_key(|s| s.address);
        if let Some(relro) = headers.iter().find(|h| h.p_type(LE) == elf::PT_GNU_RELRO) {
            split_relro(&mut segments, relro.p_vaddr(LE), relro.p_memsz(LE))?;
        }
        for pair in segments.windows(2) {
            ensure!(
                pair[0].address + pair[0].size <= pair[1].address,
                "two segments share the page at {:#x}; link with -z separate-code",
                pair[1].address
            );
        }
        let mut program = Self {
            segments,
            entry: header.e_entry(LE),
            relocations: Vec::new(),
        };
        for (address, addend) in read_relocations(headers, file, &program)? {
            program.write_word(address, addend)?;
            program.relocations.push(address);
        }
        program.relocations.sort_unstable();
        program.forget_before(end_of_loader_tables(header, file)?);
        Ok(program)
    }

    /// Removes the whole pages of the first segment that lie before `end`.
    fn forget_before(&mut self, end: u64) {
        if let Some(first) = self.segments.first_mut()
            && first.contains(end)
        {
            let pages = (end - first.address) / PAGE * PAGE;
            first.address += pages;
            first.size -= pages;
            first.data.drain(..(pages as usize).min(first.data.len()));
        }
    }

    /// Returns `len` bytes of the file from `address` on.
    fn bytes(&self, address: u64, len: u64) -> Option<&[u8]> {
        let segment = self.segments.iter().find(|s| s.contains(address))?;
        let start = usize::try_from(address - segment.address).ok()?;
        segment
            .data
            .get(start..start.checked_add(usize::try_from(len).ok()?)?)
    }

    fn write_word(&mut self, address: u64, word: u64) -> Result<()> {
        let segment = self
            .segments
            .iter_mut()
            .find(|s| s.contains(address))
            .with_context(|| format!("a relocation at {address:#x} is in no segment"))?;
        ensure!(
            !matches!(segment.access, Access::Execute),
            "a relocation at {address:#x} is in executable memory; build with -C relocation-model=pic"
        );
        let start = usize::try_from(address - segment.address)?;
        if segment.data.len() < start + 8 {
            segment.data.resize(start + 8, 0);
        }
        ensure!(
            segment.data.len() as u64 <= segment.size,
            "a relocation at {address:#x} crosses the end of its segment"
        );
        segment.data[start..start + 8].copy_from_slice(&word.to_le_bytes());
        Ok(())
    }
}

impl Segment {
    fn contains(&self, address: u64) -> bool {
        (self.address..self.address + self.size).contains(&address)
    }
}

/// Returns the end of the tables at the start of memory that only a dynamic loader reads; this program has already
/// applied them.
fn end_of_loader_tables(header: &FileHeader64<LE>, file: &[u8]) -> Result<u64> {
    let sections = header.sections(LE, file)?;
    let mut loaded: Vec<_> = sections
        .iter()
        .filter(|section| section.sh_flags(LE).contains(elf::SHF_ALLOC))
        .collect();
    loaded.sort_by_key(|section| section.sh_addr(LE));
    let tables = loaded.into_iter().take_while(|section| {
        matches!(
            section.sh_type(LE),
            elf::SHT_DYNSYM | elf::SHT_GNU_HASH | elf::SHT_HASH | elf::SHT_STRTAB | elf::SHT_RELA
        )
    });
    let ends = tables.map(|section| section.sh_addr(LE) + section.sh_size(LE));
    Ok(ends.last().unwrap_or(0))
}

/// Reads one `PT_LOAD`, extended downwards to a page boundary.
fn read_segment(load: &ProgramHeader64<LE>, file: &[u8]) -> Result<Segment> {
    let address = load.p_vaddr(LE);
    let flags = load.p_flags(LE);
    let access = match (flags.contains(elf::PF_W), flags.contains(elf::PF_X)) {
        (true, true) => bail!("the segment at {address:#x} is writable and executable"),
        (true, false) => Access::Write,
        (false, true) => Access::Execute,
        (false, false) => Access::Read,
    };
    let content = load
        .data(LE, file)
        .map_err(|()| anyhow::anyhow!("the segment at {address:#x} is not in the file"))?;
    let lead = address % PAGE;
    let mut data = vec![0; usize::try_from(lead)?];
    data.extend_from_slice(content);
    Ok(Segment {
        address: address - lead,
        size: lead + load.p_memsz(LE),
        data,
        access,
    })
}

/// Splits the part that is read-only after relocation from the start of its writable segment. Only whole pages can be
/// protected; the linker pads RELRO to a page.
fn split_relro(segments: &mut Vec<Segment>, start: u64, size: u64) -> Result<()> {
    let end = (start + size).next_multiple_of(PAGE);
    let index = segments
        .iter()
        .position(|s| s.contains(start))
        .context("PT_GNU_RELRO is in no segment")?;
    let segment = &mut segments[index];
    ensure!(
        segment.access == Access::Write && start - segment.address < PAGE,
        "PT_GNU_RELRO at {start:#x} does not begin a writable segment"
    );
    segment.access = Access::ReadAfterRelocation;
    let relro = end - segment.address;
    if segment.size <= relro {
        return Ok(());
    }
    let cut = usize::try_from(relro)?.min(segment.data.len());
    let rest = Segment {
        address: end,
        size: segment.size - relro,
        data: segment.data.split_off(cut),
        access: Access::Write,
    };
    segment.size = relro;
    segments.insert(index + 1, rest);
    Ok(())
}

/// Returns every dynamic relocation as (address, addend).
fn read_relocations(
    headers: &[ProgramHeader64<LE>],
    file: &[u8],
    program: &Program,
) -> Result<Vec<(u64, u64)>> {
    let (mut table, mut size) = (0, 0);
    let dynamic = headers.iter().find_map(|h| h.dynamic(LE, file).transpose());
    for entry in dynamic.transpose()?.unwrap_or_default() {
        match entry.d_tag(LE) {
            elf::DT_RELA => table = entry.d_val(LE),
            elf::DT_RELASZ => size = entry.d_val(LE),
            elf::DT_REL | elf::DT_RELR | elf::DT_JMPREL => {
                bail!(
                    "relocations of a kind other than DT_RELA; link without -z pack-relative-relocs and as static-pie"
                )
            }
            elf::DT_NEEDED => bail!("needs a shared library; link with -nostdlib -static-pie"),
            _ => {}
        }
    }
    if size == 0 {
        return Ok(Vec::new());
    }
    let bytes = program
        .bytes(table, size)
        .context("DT_RELA points outside of the segments")?;
    let entries: &[Rela64<LE>] = slice_from_all_bytes(bytes)
        .map_err(|()| anyhow::anyhow!("DT_RELASZ is no multiple of an entry"))?;
    entries
        .iter()
        .map(|entry| {
            let kind = entry.r_type(LE, false);
            let address = entry.r_offset.get(LE);
            if kind != elf::R_X86_64_RELATIVE {
                let name = elf::machine_names(elf::EM_X86_64).r.name(kind);
                bail!(
                    "the relocation at {address:#x} is {}; only R_X86_64_RELATIVE can be carried over",
                    name.map_or_else(|| format!("of type {}", kind.0), str::to_owned)
                );
            }
            Ok((address, entry.r_addend.get(LE).cast_unsigned()))
        })
        .collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use object::write::elf::{FileHeader, ProgramHeader, Writer};

    /// The properties of the sample program that a test can change.
    #[derive(Clone, Copy)]
    pub struct Sample {
        pub relocation: elf::RelocationType,
        pub code_flags: elf::ProgramFlags,
        pub relro: Option<(u64, u64)>,
    }

    impl Default for Sample {
        fn default() -> Self {
            Self {
                relocation: elf::R_X86_64_RELATIVE,
                code_flags: elf::PF_R | elf::PF_X,
                relro: None,
            }
        }
    }

    /// Builds a static-pie with a page each of read-only data (which holds the relocation table) and of code, and two
    /// of data, of which the file has 16 bytes. The word at 0x3008 is relocated and points to the code.
    pub fn sample(sample: Sample) -> Vec<u8> {
        let mut rodata = Vec::new();
        for word in [0x3008, u64::from(sample.relocation.0), 0x2000] {
            rodata.extend_from_slice(&u64::to_le_bytes(word));
        }
        let dynamic_at = 0x1000 + rodata.len() as u64;
        for (tag, value) in [(7_u64, 0x1000_u64), (8, 24), (0, 0)] {
            rodata.extend_from_slice(&tag.to_le_bytes());
            rodata.extend_from_slice(&value.to_le_bytes());
        }
        let code = vec![0xC3; 5];
        let data = vec![0xAA; 16];

        let mut out = Vec::new();
        let mut writer = Writer::new(object::Endianness::Little, true, &mut out);
        writer.reserve_file_header();
        let extra = u32::from(sample.relro.is_some());
        writer.reserve_program_headers(4 + extra);
        let offsets: Vec<u64> = [&rodata, &code, &data]
            .iter()
            .map(|bytes| writer.reserve(bytes.len() as u64, 4096))
            .collect();
        writer
            .write_file_header(&FileHeader {
                os_abi: elf::ELFOSABI_NONE,
                abi_version: 0,
                e_type: elf::ET_DYN,
                e_machine: elf::EM_X86_64,
                e_entry: 0x2001,
                e_flags: elf::FileFlags(0),
            })
            .unwrap();
        let mut header = |p_type, p_flags, p_offset, p_vaddr, p_filesz, p_memsz| {
            writer.write_program_header(&ProgramHeader {
                p_type,
                p_flags,
                p_offset,
                p_vaddr,
                p_paddr: p_vaddr,
                p_filesz,
                p_memsz,
                p_align: 4096,
            });
        };
        let rodata_len = rodata.len() as u64;
        header(
            elf::PT_LOAD,
            elf::PF_R,
            offsets[0],
            0x1000,
            rodata_len,
            rodata_len,
        );
        header(elf::PT_LOAD, sample.code_flags, offsets[1], 0x2000, 5, 5);
        header(
            elf::PT_LOAD,
            elf::PF_R | elf::PF_W,
            offsets[2],
            0x3000,
            16,
            0x1800,
        );
        header(
            elf::PT_DYNAMIC,
            elf::PF_R,
            offsets[0] + 24,
            dynamic_at,
            48,
            48,
        );
        if let Some((start, size)) = sample.relro {
            header(elf::PT_GNU_RELRO, elf::PF_R, offsets[2], start, size, size);
        }
        for bytes in [&rodata, &code, &data] {
            writer.write_align(4096);
            writer.write(bytes);
        }
        out
    }

    #[test]
    fn segments_keep_their_addresses_and_access() {
        let program = Program::read(&sample(Sample::default())).unwrap();
        let shape: Vec<_> = program
            .segments
            .iter()
            .map(|s| (s.address, s.size, s.access))
            .collect();
        assert_eq!(
            shape,
            [
                (0x1000, 72, Access::Read),
                (0x2000, 5, Access::Execute),
                (0x3000, 0x1800, Access::Write),
            ]
        );
        assert_eq!(program.entry, 0x2001);
    }

    #[test]
    fn a_relocated_word_holds_its_addend() {
        let program = Program::read(&sample(Sample::default())).unwrap();
        assert_eq!(program.relocations, [0x3008]);
        assert_eq!(program.segments[2].data[8..16], 0x2000_u64.to_le_bytes());
    }

    #[test]
    fn relro_becomes_a_segment_of_its_own() {
        let program = Program::read(&sample(Sample {
            relro: Some((0x3000, 0x800)),
            ..Sample::default()
        }))
        .unwrap();
        let shape: Vec<_> = program.segments[2..]
            .iter()
            .map(|s| (s.address, s.size, s.access))
            .collect();
        assert_eq!(
            shape,
            [
                (0x3000, 0x1000, Access::ReadAfterRelocation),
                (0x4000, 0x800, Access::Write),
            ]
        );
    }

    #[test]
    fn another_relocation_type_is_refused_by_name() {
        let error = Program::read(&sample(Sample {
            relocation: elf::R_X86_64_GLOB_DAT,
            ..Sample::default()
        }))
        .unwrap_err();
        assert!(error.to_string().contains("R_X86_64_GLOB_DAT"), "{error}");
    }

    #[test]
    fn writable_code_is_refused() {
        let error = Program::read(&sample(Sample {
            code_flags: elf::PF_R | elf::PF_W | elf::PF_X,
            ..Sample::default()
        }))
        .unwrap_err();
        assert!(
            error.to_string().contains("writable and executable"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_elf_is_refused() {
        assert!(Program::read(b"MZ").is_err());
    }
}
