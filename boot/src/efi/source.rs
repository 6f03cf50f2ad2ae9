//! The place from which the program was loaded, and the files there: a file system, or TFTP through PXE Base Code.
#![expect(
    unsafe_code,
    reason = "protocols are opened without taking them away from the firmware's drivers"
)]

use alloc::{format, string::String, vec, vec::Vec};
use core::net::IpAddr;

use uefi::{
    CStr8, CStr16, CString16, Handle, Status,
    boot::{self, OpenProtocolAttributes, OpenProtocolParams, ScopedProtocol},
    proto::{
        ProtocolPointer,
        device_path::{DevicePath, DeviceSubType, DeviceType},
        loaded_image::LoadedImage,
        media::file::{File, FileAttribute, FileInfo, FileMode},
        media::fs::SimpleFileSystem,
        network::pxe::BaseCode,
    },
};

use super::network;
use crate::Source;

/// Maximum size in bytes of a file loaded at boot: 4 GiB.
const MAX_FILE: u64 = 4 << 30;

/// The place from which the program was loaded, ready for reading.
pub struct Place {
    /// Description for people.
    pub source: Source,
    way: Way,
}

enum Way {
    Disk {
        fs: ScopedProtocol<SimpleFileSystem>,
        folder: String,
    },
    Pxe {
        base_code: ScopedProtocol<BaseCode>,
        server: IpAddr,
        folder: String,
        mac: Vec<u8>,
    },
    Nowhere,
}

impl Place {
    /// Determines where the running image was loaded from.
    pub fn of_image(image: &LoadedImage) -> Self {
        let Some(device) = image.device() else {
            return Self::nowhere();
        };
        let path = image.file_path().map(path_text).unwrap_or_default();
        if let Some(fs) = open::<SimpleFileSystem>(device) {
            let folder = folder_of(&path, '\\');
            return Self {
                source: Source::Disk(path),
                way: Way::Disk { fs, folder },
            };
        }
        let Some(base_code) = open::<BaseCode>(device) else {
            return Self::nowhere();
        };
        match network::boot(&base_code) {
            Some(network::Boot { server, file, mac }) => Self {
                source: Source::Pxe(server),
                way: Way::Pxe {
                    base_code,
                    server,
                    folder: folder_of(&file, '/'),
                    mac,
                },
            },
            None => Self::nowhere(),
        }
    }

    /// Returns the address of the network card that the firmware booted from, if it did.
    pub fn mac(&self) -> Option<&[u8]> {
        match &self.way {
            Way::Pxe { mac, .. } => Some(mac),
            _ => None,
        }
    }

    fn nowhere() -> Self {
        Self {
            source: Source::Unknown,
            way: Way::Nowhere,
        }
    }

    /// Switches from the program's folder to the root of the volume or server. Returns whether that is another place.
    pub fn go_to_root(&mut self) -> bool {
        let (folder, root) = match &mut self.way {
            Way::Disk { folder, .. } => (folder, "\\"),
            Way::Pxe { folder, .. } => (folder, ""),
            Way::Nowhere => return false,
        };
        let moved = folder != root;
        *folder = root.into();
        moved
    }

    /// Returns the length in bytes of the file at `path`, next to the program unless [`Self::go_to_root`] was called.
    /// Returns `None` if there is no such file.
    ///
    /// # Errors
    /// The reason why the length is unknown, for the operator.
    pub fn len(&mut self, path: &str) -> Result<Option<u64>, String> {
        let len = match &mut self.way {
            Way::Nowhere => return Ok(None),
            Way::Disk { fs, folder } => open_file(fs, folder, path).and_then(|mut file| {
                let mut buffer = vec![0u64; 64];
                // SAFETY: any byte pattern of the buffer is initialised, and it is aligned to 8 bytes.
                let bytes = unsafe {
                    core::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<u8>(), 512)
                };
                file.get_info::<FileInfo>(bytes)
                    .map(|info| info.file_size())
                    .map_err(|e| e.status())
            }),
            Way::Pxe {
                base_code,
                server,
                folder,
                ..
            } => {
                let name = tftp_name(folder, path);
                CStr8::from_bytes_with_nul(&name)
                    .map_err(|_| Status::INVALID_PARAMETER)
                    .and_then(|name| {
                        base_code
                            .tftp_get_file_size(server, name)
                            .map_err(|e| e.status())
                    })
            }
        };
        match len {
            Ok(len) if len > MAX_FILE => Err(format!("{path}: {len} bytes are more than 4 GiB")),
            Ok(len) => Ok(Some(len)),
            // A TFTP server reports "not found" with an error packet, which the firmware returns as this status.
            Err(Status::NOT_FOUND | Status::TFTP_ERROR) => Ok(None),
            Err(status) => Err(format!("{path}: {status}")),
        }
    }

    /// Reads the file at `path` into `buffer`, which has the length that [`Self::len`] returned.
    ///
    /// # Errors
    /// The reason why the file can't be read, for the operator.
    pub fn read(&mut self, path: &str, buffer: &mut [u8]) -> Result<(), String> {
        let wanted = buffer.len();
        let got = match &mut self.way {
            Way::Nowhere => Err(Status::NOT_FOUND),
            Way::Disk { fs, folder } => open_file(fs, folder, path)
                .and_then(|file| file.into_regular_file().ok_or(Status::UNSUPPORTED))
                .and_then(|mut file| file.read(buffer).map_err(|e| e.status())),
            Way::Pxe {
                base_code,
                server,
                folder,
                ..
            } => {
                let name = tftp_name(folder, path);
                CStr8::from_bytes_with_nul(&name)
                    .map_err(|_| Status::INVALID_PARAMETER)
                    .and_then(|name| network::read(base_code, *server, name, buffer))
            }
        };
        match got {
            Ok(n) if n == wanted => Ok(()),
            Ok(n) => Err(format!("{path}: {n} of {wanted} bytes could be read")),
            Err(status) => Err(format!("{path}: {status}")),
        }
    }
}

/// Opens a protocol that others may be using too.
pub(super) fn open<P: ProtocolPointer + ?Sized>(handle: Handle) -> Option<ScopedProtocol<P>> {
    let params = OpenProtocolParams {
        handle,
        agent: boot::image_handle(),
        controller: None,
    };
    // SAFETY: the handle is this image's, or the device that it was loaded from, which stays connected while boot
    // services last; nothing else runs while the protocol is called.
    unsafe { boot::open_protocol(params, OpenProtocolAttributes::GetProtocol) }.ok()
}

fn open_file(
    fs: &mut SimpleFileSystem,
    folder: &str,
    path: &str,
) -> Result<uefi::proto::media::file::FileHandle, Status> {
    let full = format!("{folder}{}", path.replace('/', "\\"));
    let name = CString16::try_from(full.as_str()).map_err(|_| Status::INVALID_PARAMETER)?;
    let mut root = fs.open_volume().map_err(|e| e.status())?;
    root.open(&name, FileMode::Read, FileAttribute::empty())
        .map_err(|e| e.status())
}

fn tftp_name(folder: &str, path: &str) -> Vec<u8> {
    format!("{folder}{path}\0").into_bytes()
}

/// Returns the file path nodes of a device path, joined.
fn path_text(path: &DevicePath) -> String {
    let mut text = String::new();
    for node in path.node_iter() {
        if node.full_type() != (DeviceType::MEDIA, DeviceSubType::MEDIA_FILE_PATH) {
            continue;
        }
        let units: Vec<u16> = node
            .data()
            .chunks_exact(2)
            .map(|c| u16::from_le_bytes([c[0], c[1]]))
            .collect();
        if let Ok(part) = CStr16::from_u16_until_nul(&units) {
            text.push_str(&String::from(part));
        }
    }
    text
}

/// Returns the folder of a path, with its last separator. It is empty if the path has none.
fn folder_of(path: &str, separator: char) -> String {
    path.rfind(separator)
        .map_or_else(String::new, |at| path[..=at].into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_looked_for_next_to_the_program() {
        assert_eq!(folder_of("\\EFI\\BOOT\\BOOTX64.EFI", '\\'), "\\EFI\\BOOT\\");
        assert_eq!(folder_of("boot.efi", '/'), "");
        assert_eq!(tftp_name("seamark/", "a/b"), b"seamark/a/b\0");
    }
}
