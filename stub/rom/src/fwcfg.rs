//! QEMU's fw_cfg device, accessed through its I/O ports. Source: QEMU, docs/specs/fw_cfg.
#![expect(unsafe_code, reason = "accesses I/O ports")]

use alloc::string::String;
use alloc::vec::Vec;

use crate::cpu;

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
const SIGNATURE: u16 = 0x0000;
const FILE_DIRECTORY: u16 = 0x0019;

/// Maximum size in bytes of a file that is read.
const MAX_FILE: usize = 1 << 20;

/// The files in QEMU's fw_cfg.
pub struct FwCfg {
    files: Vec<(String, u16, usize)>,
}

impl FwCfg {
    /// Reads the directory. Returns `None` if there is no such device.
    pub fn open() -> Option<Self> {
        select(SIGNATURE);
        if read::<4>() != *b"QEMU" {
            return None;
        }
        select(FILE_DIRECTORY);
        let count = u32::from_be_bytes(read()).min(1024);
        let files = (0..count)
            .map(|_| {
                let size = u32::from_be_bytes(read()) as usize;
                let key = u16::from_be_bytes(read());
                let _reserved: [u8; 2] = read();
                let name: [u8; 56] = read();
                let name = name.split(|&b| b == 0).next().unwrap_or_default();
                (String::from_utf8_lossy(name).into_owned(), key, size)
            })
            .collect();
        Some(Self { files })
    }

    /// Returns the contents of the file `name`, if it exists.
    pub fn file(&self, name: &str) -> Option<Vec<u8>> {
        let (_, key, size) = self.files.iter().find(|(n, _, _)| n == name)?;
        select(*key);
        Some((0..(*size).min(MAX_FILE)).map(|_| byte()).collect())
    }
}

fn select(key: u16) {
    // SAFETY: the monitor reads fw_cfg before firmware resumes, so no other reader is in the middle of a file.
    unsafe { cpu::out16(SELECTOR, key) };
}

fn byte() -> u8 {
    // SAFETY: as for `select`.
    unsafe { cpu::in8(DATA) }
}

fn read<const N: usize>() -> [u8; N] {
    core::array::from_fn(|_| byte())
}
