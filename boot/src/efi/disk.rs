//! Files on the file system that the program was loaded from.
#![expect(
    unsafe_code,
    reason = "a buffer for the firmware's structures is aligned"
)]

use alloc::{
    format,
    string::{String, ToString},
    vec,
    vec::Vec,
};

use uefi::{
    CStr16, CString16, Handle, Status,
    boot::ScopedProtocol,
    proto::{
        device_path::{DevicePath, DeviceSubType, DeviceType},
        loaded_image::LoadedImage,
        media::{
            file::{File, FileAttribute, FileHandle, FileInfo, FileMode},
            fs::SimpleFileSystem,
        },
    },
};

use super::source::{Store, folder_of, open};

/// A volume.
pub(super) struct Disk {
    /// The path of the program.
    pub program: String,
    fs: ScopedProtocol<SimpleFileSystem>,
    /// The folder of the files, with a separator at its end.
    folder: String,
}

impl Disk {
    /// Opens the file system of the device that the image was loaded from, if it has one.
    pub fn of(device: Handle, image: &LoadedImage) -> Option<Self> {
        let fs = open::<SimpleFileSystem>(device)?;
        let program = image.file_path().map(path_text).unwrap_or_default();
        Some(Self {
            folder: folder_of(&program, '\\'),
            program,
            fs,
        })
    }

    fn open(&mut self, path: &str) -> Result<FileHandle, Status> {
        let full = format!("{}{}", self.folder, path.replace('/', "\\"));
        let name = CString16::try_from(full.as_str()).map_err(|_| Status::INVALID_PARAMETER)?;
        let mut root = self.fs.open_volume().map_err(|e| e.status())?;
        root.open(&name, FileMode::Read, FileAttribute::empty())
            .map_err(|e| e.status())
    }

    fn length(&mut self, path: &str) -> Result<u64, Status> {
        let mut file = self.open(path)?;
        let mut buffer = vec![0u64; 64];
        // SAFETY: any byte pattern of the buffer is initialised, and it is aligned to 8 bytes.
        let bytes =
            unsafe { core::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<u8>(), 512) };
        file.get_info::<FileInfo>(bytes)
            .map(|info| info.file_size())
            .map_err(|e| e.status())
    }
}

impl Store for Disk {
    fn name(&self, path: &str) -> String {
        path.into()
    }

    fn len(&mut self, path: &str) -> Result<Option<u64>, String> {
        match self.length(path) {
            Ok(len) => Ok(Some(len)),
            Err(Status::NOT_FOUND) => Ok(None),
            Err(status) => Err(status.to_string()),
        }
    }

    fn read(&mut self, path: &str, buffer: &mut [u8]) -> Result<usize, String> {
        self.open(path)
            .and_then(|file| file.into_regular_file().ok_or(Status::UNSUPPORTED))
            .and_then(|mut file| file.read(buffer).map_err(|e| e.status()))
            .map_err(|status| status.to_string())
    }

    fn go_to_root(&mut self) -> bool {
        let moved = self.folder != "\\";
        self.folder = "\\".into();
        moved
    }
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
