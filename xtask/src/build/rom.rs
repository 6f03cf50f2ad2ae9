//! Wrapping of an EFI driver as a PCI option ROM.
//!
//! Source: UEFI 2.10, 14.4.2 "PCI Option ROMs" (EFI_PCI_EXPANSION_ROM_HEADER); PCI Firmware 3.0, 5.1.2 (PCIR).

use anyhow::{Result, ensure};

use super::pe::Subsystem;

/// Offset of the image: the size of both headers, rounded up.
const IMAGE_OFFSET: usize = 0x40;

/// Offset of the PCI data structure, right after the header.
const PCIR_OFFSET: usize = 0x1C;

/// Unit in bytes of the headers' length fields, which have 16 bits.
const UNIT: usize = 512;

/// The PCI function that carries the ROM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciId {
    /// The vendor ID.
    pub vendor: u16,
    /// The device ID.
    pub device: u16,
}

/// QEMU's `pci-testdev`, which has no function of its own here.
pub const PCI_TESTDEV: PciId = PciId {
    vendor: 0x1B36,
    device: 0x0005,
};

/// Wraps a PE32+ boot service driver for x86-64.
///
/// # Errors
/// The image is larger than the format allows (32 MiB).
pub fn wrap(image: &[u8], id: PciId) -> Result<Vec<u8>> {
    let size = (IMAGE_OFFSET + image.len()).next_multiple_of(UNIT);
    ensure!(
        size / UNIT <= usize::from(u16::MAX),
        "the driver has {} bytes; an option ROM holds at most 32 MiB",
        image.len()
    );
    let units = u16::try_from(size / UNIT)?;
    let mut rom = vec![0; size];
    let mut at =
        |offset: usize, bytes: &[u8]| rom[offset..offset + bytes.len()].copy_from_slice(bytes);

    at(0x00, &0xAA55_u16.to_le_bytes());
    at(0x02, &units.to_le_bytes());
    at(0x04, &0x0EF1_u32.to_le_bytes()); // EFI image signature
    at(0x08, &Subsystem::BootServiceDriver.number().to_le_bytes());
    at(0x0A, &object::pe::IMAGE_FILE_MACHINE_AMD64.0.to_le_bytes());
    at(0x0C, &0_u16.to_le_bytes()); // not compressed
    at(0x16, &u16::try_from(IMAGE_OFFSET)?.to_le_bytes());
    at(0x18, &u16::try_from(PCIR_OFFSET)?.to_le_bytes());

    at(PCIR_OFFSET, b"PCIR");
    at(PCIR_OFFSET + 0x04, &id.vendor.to_le_bytes());
    at(PCIR_OFFSET + 0x06, &id.device.to_le_bytes());
    at(PCIR_OFFSET + 0x0A, &24_u16.to_le_bytes()); // length of this structure
    at(PCIR_OFFSET + 0x0C, &[3]); // revision
    at(PCIR_OFFSET + 0x0D, &[0, 0, 0xFF]); // class: unclassified
    at(PCIR_OFFSET + 0x10, &units.to_le_bytes());
    at(PCIR_OFFSET + 0x14, &[3]); // code type: EFI
    at(PCIR_OFFSET + 0x15, &[0x80]); // the last image of the ROM

    at(IMAGE_OFFSET, image);
    Ok(rom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(rom: &[u8], offset: usize) -> u16 {
        u16::from_le_bytes([rom[offset], rom[offset + 1]])
    }

    #[test]
    fn firmware_finds_the_image_through_the_header() {
        let rom = wrap(b"MZ and the rest", PCI_TESTDEV).unwrap();
        assert_eq!(word(&rom, 0), 0xAA55);
        let image = usize::from(word(&rom, 0x16));
        assert!(rom[image..].starts_with(b"MZ and the rest"));
    }

    #[test]
    fn the_pci_data_structure_names_the_device_and_is_the_last() {
        let rom = wrap(b"MZ", PCI_TESTDEV).unwrap();
        let pcir = usize::from(word(&rom, 0x18));
        assert_eq!(&rom[pcir..pcir + 4], b"PCIR");
        assert_eq!((word(&rom, pcir + 4), word(&rom, pcir + 6)), (0x1B36, 5));
        assert_eq!(rom[pcir + 0x15] & 0x80, 0x80);
    }

    #[test]
    fn the_length_counts_whole_units() {
        let rom = wrap(&[0; 1000], PCI_TESTDEV).unwrap();
        assert_eq!(rom.len(), 1536);
        assert_eq!(word(&rom, 2), 3);
    }

    #[test]
    fn an_image_that_does_not_fit_is_refused() {
        assert!(wrap(&vec![0; 32 << 20], PCI_TESTDEV).is_err());
    }
}
