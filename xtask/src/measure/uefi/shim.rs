//! shim, as Debian signs it: what it measures before it starts GRUB.
//!
//! Source: shim 15.8, mok.c (import of MOK variables) and include/sbat.h; and the logs of boots without Secure Boot.

use anyhow::{Context, Result};

use super::pe::Image;
use super::variables::record;
use crate::measure::event::{Event, Kind, Register};

/// The program that shim starts, from its own directory.
pub const NEXT: &str = "grubx64.efi";

/// The program that shim starts instead when firmware has started it without a boot entry: it makes boot entries.
pub const NOT_PREDICTED: [&str; 1] = ["EFI/BOOT/fbx64.efi"];

/// SHIM_LOCK_GUID (605DAB50-E046-4300-ABB6-3DD810DD8B23).
pub const GUID: [u8; 16] = [
    0x50, 0xAB, 0x5D, 0x60, 0x46, 0xE0, 0x00, 0x43, 0xAB, 0xB6, 0x3D, 0xD8, 0x10, 0xDD, 0x8B, 0x23,
];
/// EFI_CERT_X509_GUID (A5C059A1-94E4-4AA7-87B5-AB155C2BF072).
const X509: [u8; 16] = [
    0xA1, 0x59, 0xC0, 0xA5, 0xE4, 0x94, 0xA7, 0x4A, 0x87, 0xB5, 0xAB, 0x15, 0x5C, 0x2B, 0xF0, 0x72,
];
/// The revocations that shim sets without Secure Boot.
pub const SBAT_LEVEL: &[u8] = b"sbat,1,2021030218\n";

/// Returns whether an image is shim.
pub fn is_one(image: &Image<'_>) -> bool {
    image.section(".vendor_cert").is_some()
}

/// Returns the events of the variables that shim makes: its vendor's certificate, what the vendor has revoked, the
/// revoked generations, and that these lists are trusted.
pub fn events(image: &Image<'_>) -> Result<Vec<Event>> {
    let section = image.section(".vendor_cert").context("it is no shim")?;
    let word = |at: usize| -> Result<usize> {
        let bytes = section
            .get(at..at + 4)
            .context("its .vendor_cert is too short")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let part = |size: usize, offset: usize| -> Result<&[u8]> {
        let (size, offset) = (word(size)?, word(offset)?);
        let part = section.get(offset..offset.saturating_add(size));
        part.context("its .vendor_cert is damaged")
    };
    let (certificate, revoked) = (part(0, 8)?, part(4, 12)?);
    let ipl = |name: &str, content: &[u8]| Event::of(Register::Rtmr2, Kind::IPL, name, content);
    let level = record(&GUID, "SbatLevel", SBAT_LEVEL);
    Ok(vec![
        ipl("MokList", &signature_list(certificate)),
        ipl("MokListX", revoked),
        Event::of(
            Register::Rtmr0,
            Kind::VARIABLE_AUTHORITY,
            "SbatLevel",
            &level,
        ),
        ipl("MokListTrusted", &[1]),
    ])
}

/// Returns an EFI_SIGNATURE_LIST with one certificate of shim's.
fn signature_list(certificate: &[u8]) -> Vec<u8> {
    const HEADER: usize = 28;
    let entry = GUID.len() + certificate.len();
    let mut list = X509.to_vec();
    for word in [HEADER + entry, 0, entry] {
        list.extend((word as u32).to_le_bytes());
    }
    list.extend(GUID);
    list.extend(certificate);
    list
}
