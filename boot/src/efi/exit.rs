//! ExitBootServices, which the firmware may refuse at first: it fails when the memory map has changed since it was
//! read.
//!
//! Source: UEFI Specification 2.10, sections 7.2 (EFI_BOOT_SERVICES.GetMemoryMap) and 7.4
//! (EFI_BOOT_SERVICES.ExitBootServices).

use alloc::{vec, vec::Vec};

use uefi::{
    Status, StatusExt,
    boot::{self as services, MemoryAttribute, MemoryDescriptor, MemoryType},
    table,
};

/// Number of attempts. Event handlers of the firmware change the map once or twice.
const ATTEMPTS: usize = 8;
/// Room in bytes for entries beyond those of the first map: the buffer's own allocation adds some.
const SPARE_BYTES: usize = 8192;
/// Size in bytes of the part of an entry that every version has.
const ENTRY_BYTES: usize = 40;

/// The sizes and the key of a memory map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Meta {
    /// Size of the map in bytes.
    bytes: usize,
    /// Distance in bytes from one entry to the next.
    stride: usize,
    /// The map's version.
    key: usize,
}

/// The two services that work even after a first refusal.
trait Services {
    /// Reads the memory map into `buffer`. If it is too small, the error comes with the size that is needed.
    fn map(&mut self, buffer: &mut [u64]) -> Result<Meta, (Status, usize)>;
    /// Ends boot services if `key` is that of the current map.
    fn exit(&mut self, key: usize) -> Status;
}

/// The memory map at a moment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Map {
    words: Vec<u64>,
    meta: Meta,
}

impl Map {
    /// Returns the entries.
    pub fn entries(&self) -> impl Iterator<Item = MemoryDescriptor> + '_ {
        let stride = self.meta.stride / 8;
        let words = self.words.get(..self.meta.bytes / 8).unwrap_or(&[]);
        let is_known = stride >= ENTRY_BYTES / 8;
        let chunks = words.chunks_exact(if is_known { stride } else { usize::MAX });
        chunks.map(|entry| MemoryDescriptor {
            ty: MemoryType(entry[0] as u32),
            phys_start: entry[1],
            virt_start: entry[2],
            page_count: entry[3],
            att: MemoryAttribute::from_bits_retain(entry[4]),
            ..MemoryDescriptor::default()
        })
    }
}

/// Reads the firmware's memory map.
///
/// # Errors
/// The firmware's status.
pub(super) fn map() -> Result<Map, Status> {
    let mut words = buffer(&mut Firmware)?;
    let meta = Firmware.map(&mut words).map_err(|(status, _)| status)?;
    Ok(Map { words, meta })
}

/// Ends the firmware's boot services. Returns the final memory map.
///
/// # Errors
/// The firmware's status if it refuses, however often it is asked.
///
/// # Safety
/// Nothing may use boot services after success.
pub(super) unsafe fn exit_boot_services() -> Result<Map, Status> {
    // Nothing may be allocated from the firmware after a first refusal.
    let mut words = buffer(&mut Firmware)?;
    let meta = exit(&mut Firmware, &mut words)?;
    Ok(Map { words, meta })
}

/// Allocates a buffer for the memory map.
fn buffer(services: &mut impl Services) -> Result<Vec<u64>, Status> {
    match services.map(&mut []) {
        Err((Status::BUFFER_TOO_SMALL, bytes)) => {
            Ok(vec![0; bytes.saturating_add(SPARE_BYTES).div_ceil(8)])
        }
        Err((status, _)) => Err(status),
        Ok(_) => Err(Status::BAD_BUFFER_SIZE),
    }
}

fn exit(services: &mut impl Services, words: &mut [u64]) -> Result<Meta, Status> {
    for _ in 1..ATTEMPTS {
        let meta = services.map(words).map_err(|(status, _)| status)?;
        match services.exit(meta.key) {
            Status::SUCCESS => return Ok(meta),
            // The map changed in between.
            Status::INVALID_PARAMETER => {}
            other => return Err(other),
        }
    }
    let meta = services.map(words).map_err(|(status, _)| status)?;
    services
        .exit(meta.key)
        .to_result_with_val(|| meta)
        .map_err(|e| e.status())
}

/// The firmware's services.
struct Firmware;

impl Services for Firmware {
    fn map(&mut self, buffer: &mut [u64]) -> Result<Meta, (Status, usize)> {
        let mut meta = Meta {
            bytes: size_of_val(buffer),
            ..Meta::default()
        };
        let mut version = 0;
        let table = table::system_table_raw().ok_or((Status::NOT_READY, 0))?;
        // SAFETY: the table is the firmware's, whose boot services last; the buffer has the stated size.
        let status = unsafe {
            let services = (*table.as_ptr()).boot_services;
            ((*services).get_memory_map)(
                &raw mut meta.bytes,
                buffer.as_mut_ptr().cast(),
                &raw mut meta.key,
                &raw mut meta.stride,
                &raw mut version,
            )
        };
        status
            .to_result_with_val(|| meta)
            .map_err(|e| (e.status(), meta.bytes))
    }

    fn exit(&mut self, key: usize) -> Status {
        let Some(table) = table::system_table_raw() else {
            return Status::NOT_READY;
        };
        // SAFETY: as in `map`; the caller of `exit_boot_services` gives the services up.
        unsafe {
            let services = (*table.as_ptr()).boot_services;
            ((*services).exit_boot_services)(services::image_handle().as_ptr(), key)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Firmware whose map changes `restless` times after it was read.
    struct Restless {
        restless: usize,
        key: usize,
        answer: Status,
        exits: usize,
    }

    impl Restless {
        fn new(restless: usize) -> Self {
            Self {
                restless,
                key: 1,
                answer: Status::SUCCESS,
                exits: 0,
            }
        }
    }

    impl Services for Restless {
        fn map(&mut self, buffer: &mut [u64]) -> Result<Meta, (Status, usize)> {
            if buffer.len() < 12 {
                return Err((Status::BUFFER_TOO_SMALL, 96));
            }
            buffer[..12].copy_from_slice(&[7, 0x1000, 0, 4, 8, 99, 0, 0x9000, 0, 1, 0, 99]);
            let key = self.key;
            if self.restless > 0 {
                self.restless -= 1;
                self.key += 1;
            }
            Ok(Meta {
                bytes: 96,
                stride: 48,
                key,
            })
        }

        fn exit(&mut self, key: usize) -> Status {
            self.exits += 1;
            if key == self.key {
                self.answer
            } else {
                Status::INVALID_PARAMETER
            }
        }
    }

    #[test]
    fn a_map_that_changes_is_read_again() {
        for restless in 0..ATTEMPTS {
            let mut firmware = Restless::new(restless);
            let mut words = buffer(&mut firmware).unwrap();
            let meta = exit(&mut firmware, &mut words).unwrap();
            assert_eq!(firmware.exits, restless + 1);
            let map = Map { words, meta };
            let entries: Vec<_> = map.entries().map(|e| (e.ty, e.phys_start)).collect();
            assert_eq!(
                entries,
                [
                    (MemoryType::CONVENTIONAL, 0x1000),
                    (MemoryType::RESERVED, 0x9000)
                ]
            );
        }
    }

    #[test]
    fn a_firmware_that_never_agrees_is_an_error() {
        let mut firmware = Restless::new(usize::MAX);
        let mut words = buffer(&mut firmware).unwrap();
        assert_eq!(
            exit(&mut firmware, &mut words),
            Err(Status::INVALID_PARAMETER)
        );
        assert_eq!(firmware.exits, ATTEMPTS);
        let mut firmware = Restless::new(0);
        firmware.answer = Status::UNSUPPORTED;
        assert_eq!(exit(&mut firmware, &mut words), Err(Status::UNSUPPORTED));
        assert_eq!(firmware.exits, 1);
    }

    #[test]
    fn sizes_that_can_not_be_give_no_entries() {
        for (bytes, stride) in [(96, 0), (96, 8), (usize::MAX, 48), (96, usize::MAX)] {
            let meta = Meta {
                bytes,
                stride,
                key: 0,
            };
            let map = Map {
                words: vec![0; 12],
                meta,
            };
            assert_eq!(map.entries().count(), 0, "{meta:?}");
        }
    }
}
