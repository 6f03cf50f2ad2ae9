//! Signing: the seal goes into a section of the program, and the program is signed for Secure Boot.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use config::seal::{SECTION, Seal};
use sha2::{Digest, Sha256};

/// The sizes of PE32+ structures, and offsets of fields in them (Microsoft PE Format).
const SIGNATURE_AND_COFF: usize = 24;
const SECTION_HEADER: usize = 40;
const SECTION_ALIGNMENT: usize = 32;
const FILE_ALIGNMENT: usize = 36;
const SIZE_OF_IMAGE: usize = 56;
const SIZE_OF_HEADERS: usize = 60;
const CHECKSUM: usize = 64;
/// IMAGE_SCN_CNT_INITIALIZED_DATA, IMAGE_SCN_MEM_READ.
const READ_ONLY_DATA: u32 = 0x4000_0040;

/// Returns the seal of configurations and the files that they name.
pub(super) fn seal(configs: &[(String, Vec<u8>)], files: &[(String, Vec<u8>)]) -> Seal {
    let digest = |(path, bytes): &(String, Vec<u8>)| (path.clone(), Sha256::digest(bytes).into());
    Seal {
        configs: configs.to_owned(),
        files: files.iter().map(digest).collect(),
    }
}

/// Adds the seal to a PE32+ program, as a read-only section behind all others.
///
/// # Errors
/// The program is no PE32+, has a seal, or has no room for another section header.
pub(super) fn add(program: &mut Vec<u8>, seal: &Seal) -> Result<()> {
    let pe = read(program, 0x3C)? as usize;
    ensure!(
        program.get(pe..pe + 4) == Some(b"PE\0\0"),
        "the program is no PE"
    );
    let count = (read(program, pe + 4)? >> 16) as usize;
    let optional = pe + SIGNATURE_AND_COFF;
    let optional_size = (read(program, pe + 20)? & 0xFFFF) as usize;
    let table = optional + optional_size;
    let headers_end = read(program, optional + SIZE_OF_HEADERS)? as usize;
    let at = table + count * SECTION_HEADER;
    ensure!(
        at + SECTION_HEADER <= headers_end,
        "the program has no room for another section header"
    );
    for row in 0..count {
        let row = table + row * SECTION_HEADER;
        ensure!(
            program.get(row..row + 8) != Some(&SECTION[..]),
            "the program has a seal already"
        );
    }
    let content = seal.to_bytes();
    let alignment = read(program, optional + SECTION_ALIGNMENT)?;
    let file_alignment = read(program, optional + FILE_ALIGNMENT)? as usize;
    let address = read(program, optional + SIZE_OF_IMAGE)?.next_multiple_of(alignment);
    let length = u32::try_from(content.len()).context("the configuration is too large")?;
    let start = program.len().next_multiple_of(file_alignment);
    program.resize(start, 0);
    program.extend_from_slice(&content);
    program.resize(program.len().next_multiple_of(file_alignment), 0);
    let raw = u32::try_from(program.len() - start)?;
    let mut header = Vec::from(SECTION);
    for field in [
        length,
        address,
        raw,
        u32::try_from(start)?,
        0,
        0,
        0,
        READ_ONLY_DATA,
    ] {
        header.extend(field.to_le_bytes());
    }
    program[at..at + SECTION_HEADER].copy_from_slice(&header);
    let count = u16::try_from(count + 1)?;
    program[pe + 6..pe + 8].copy_from_slice(&count.to_le_bytes());
    let size = (address + length).next_multiple_of(alignment);
    write(program, optional + SIZE_OF_IMAGE, size);
    // UEFI does not look at it, and sbsign computes it anew.
    write(program, optional + CHECKSUM, 0);
    Ok(())
}

/// Signs a program with sbsign.
///
/// # Errors
/// sbsign is missing (package sbsigntool) or refuses the key or the certificate.
pub(super) fn sign(program: &[u8], key: &Path, certificate: &Path) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir().context("can't create a temporary directory")?;
    let (plain, signed) = (folder.path().join("plain"), folder.path().join("signed"));
    fs::write(&plain, program)?;
    let output = Command::new("sbsign")
        .arg("--key")
        .arg(key)
        .arg("--cert")
        .arg(certificate)
        .arg("--output")
        .args([&signed, &plain])
        .output()
        .context("can't start sbsign: install the package sbsigntool")?;
    ensure!(
        output.status.success(),
        "sbsign with the key {} and the certificate {}: {}",
        key.display(),
        certificate.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    fs::read(&signed).context("sbsign has written nothing")
}

fn read(program: &[u8], at: usize) -> Result<u32> {
    let bytes = program.get(at..at + 4).context("the program is no PE")?;
    Ok(u32::from_le_bytes(bytes.try_into()?))
}

fn write(program: &mut [u8], at: usize, value: u32) {
    program[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PE32+ with one section and room for `rows` section headers.
    fn program(rows: usize) -> Vec<u8> {
        let (pe, optional_size) = (0x40usize, 240usize);
        let table = pe + SIGNATURE_AND_COFF + optional_size;
        let mut bytes = vec![0; 0x600];
        bytes[..2].copy_from_slice(b"MZ");
        write(&mut bytes, 0x3C, pe as u32);
        bytes[pe..pe + 4].copy_from_slice(b"PE\0\0");
        bytes[pe + 6] = 1;
        bytes[pe + 20] = optional_size as u8;
        let optional = pe + SIGNATURE_AND_COFF;
        write(&mut bytes, optional + SECTION_ALIGNMENT, 0x1000);
        write(&mut bytes, optional + FILE_ALIGNMENT, 0x200);
        write(&mut bytes, optional + SIZE_OF_IMAGE, 0x3000);
        let headers = table + rows * SECTION_HEADER;
        write(&mut bytes, optional + SIZE_OF_HEADERS, headers as u32);
        bytes[table..table + 5].copy_from_slice(b".text");
        bytes
    }

    fn sample() -> Seal {
        seal(
            &[(config::FILE_NAME.to_owned(), b"[host]\n".to_vec())],
            &[("vmlinuz".to_owned(), b"kernel".to_vec())],
        )
    }

    #[test]
    fn the_loader_finds_the_seal_in_the_program() {
        let mut program = program(2);
        add(&mut program, &sample()).unwrap();
        let table = 0x40 + SIGNATURE_AND_COFF + 240 + SECTION_HEADER;
        assert_eq!(program[table..table + 8], SECTION);
        let field = |at| read(&program, table + at).unwrap() as usize;
        let (length, address, start) = (field(8), field(12), field(20));
        assert_eq!((address, start), (0x3000, 0x600));
        let found = Seal::parse(&program[start..start + length]);
        assert_eq!(found, Ok(sample()));
        let size = read(&program, 0x40 + SIGNATURE_AND_COFF + SIZE_OF_IMAGE).unwrap();
        assert_eq!(size, 0x4000);
        assert_eq!(program[0x46], 2);
    }

    #[test]
    fn a_program_without_room_or_with_a_seal_is_refused() {
        assert!(add(&mut program(1), &sample()).is_err());
        assert!(add(&mut b"MZ".to_vec(), &sample()).is_err());
        let mut sealed = program(3);
        add(&mut sealed, &sample()).unwrap();
        let error = add(&mut sealed, &sample()).unwrap_err();
        assert!(error.to_string().contains("a seal already"), "{error}");
    }
}
