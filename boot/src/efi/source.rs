//! The place from which the program was loaded, and the files there.
#![expect(
    unsafe_code,
    reason = "protocols are opened without taking them away from the firmware's drivers"
)]

use alloc::{boxed::Box, format, string::String, vec::Vec};

use uefi::{
    Handle,
    boot::{self, OpenProtocolAttributes, OpenProtocolParams, ScopedProtocol},
    proto::{
        ProtocolPointer,
        device_path::{DevicePath, messaging},
        loaded_image::LoadedImage,
    },
};

use super::{disk::Disk, http::Http, tftp::Tftp};
use crate::Source;

/// Maximum size in bytes of a file loaded at boot: 4 GiB.
const MAX_FILE: u64 = 4 << 30;

/// A store of files. Paths are relative to the program's folder, or to the root after [`Store::go_to_root`].
pub(super) trait Store {
    /// Returns the full name of the file at `path`, for people.
    fn name(&self, path: &str) -> String;

    /// Returns the length in bytes of the file at `path`, or `None` if there is no such file.
    ///
    /// # Errors
    /// The reason why the length is unknown, for people.
    fn len(&mut self, path: &str) -> Result<Option<u64>, String>;

    /// Reads the file at `path` into `buffer`. Returns the number of bytes.
    ///
    /// # Errors
    /// The reason, for people.
    fn read(&mut self, path: &str, buffer: &mut [u8]) -> Result<usize, String>;

    /// Switches from the program's folder to the root of the volume or server. Returns whether that is another place.
    fn go_to_root(&mut self) -> bool;
}

/// The place from which the program was loaded, ready for reading.
pub(super) struct Place {
    /// Description for people.
    pub source: Source,
    /// The address of the network card that the firmware booted from, if it did.
    pub mac: Option<Vec<u8>>,
    /// The files, or the reason why they can't be read, if there should be any.
    store: Result<Box<dyn Store>, Option<String>>,
}

impl Place {
    /// Determines where the running image was loaded from.
    pub fn of_image(image: &LoadedImage) -> Self {
        let device = image.device();
        let path = device.and_then(open::<DevicePath>);
        let path = path.as_deref();
        let mut place = Self {
            source: Source::Unknown,
            mac: path.and_then(mac),
            store: Err(None),
        };
        let Some(device) = device else {
            return place;
        };
        // A disk image that was loaded by HTTP is a disk, although its path leads over the network.
        if let Some(disk) = Disk::of(device, image) {
            place.source = Source::Disk(disk.program.clone());
            place.store = Ok(Box::new(disk));
        } else if let Some(found) = path.and_then(Http::of) {
            match found {
                Ok(http) => {
                    place.source = Source::Http(http.program.clone());
                    place.store = Ok(Box::new(http));
                }
                Err(why) => place.store = Err(Some(why)),
            }
        } else if let Some(found) = Tftp::of(device) {
            match found {
                Ok(tftp) => {
                    place.source = Source::Pxe(tftp.server);
                    place.store = Ok(Box::new(tftp));
                }
                Err(why) => place.store = Err(Some(why)),
            }
        }
        place
    }

    /// As [`Store::name`].
    pub fn name(&self, path: &str) -> String {
        match &self.store {
            Ok(store) => store.name(path),
            Err(_) => path.into(),
        }
    }

    /// As [`Store::go_to_root`].
    pub fn go_to_root(&mut self) -> bool {
        self.store.as_mut().is_ok_and(|store| store.go_to_root())
    }

    /// As [`Store::len`], for a file that is not too large.
    ///
    /// # Errors
    /// A sentence that names the file, for the operator.
    pub fn len(&mut self, path: &str) -> Result<Option<u64>, String> {
        let len = match &mut self.store {
            Ok(store) => store.len(path),
            Err(None) => Ok(None),
            Err(Some(why)) => Err(why.clone()),
        };
        match len {
            Ok(Some(len)) if len > MAX_FILE => Err(format!(
                "{}: {len} bytes are more than 4 GiB",
                self.name(path)
            )),
            Ok(len) => Ok(len),
            Err(why) => Err(format!("{}: {why}", self.name(path))),
        }
    }

    /// Reads the file at `path` into `buffer`, which has the length that [`Self::len`] returned.
    ///
    /// # Errors
    /// A sentence that names the file, for the operator.
    pub fn read(&mut self, path: &str, buffer: &mut [u8]) -> Result<(), String> {
        let wanted = buffer.len();
        let got = match &mut self.store {
            Ok(store) => store.read(path, buffer),
            Err(why) => Err(why.clone().unwrap_or_default()),
        };
        match got {
            Ok(n) if n == wanted => Ok(()),
            Ok(n) => Err(format!(
                "{}: {n} of {wanted} bytes could be read",
                self.name(path)
            )),
            Err(why) => Err(format!("{}: {why}", self.name(path))),
        }
    }
}

/// Returns the address of the network card on a device path.
fn mac(path: &DevicePath) -> Option<Vec<u8>> {
    /// The interface types whose addresses have six bytes: unknown, Ethernet.
    const SIX_BYTES: [u8; 2] = [0, 1];
    let mut nodes = path.node_iter();
    let node = nodes.find_map(|node| <&messaging::MacAddress>::try_from(node).ok())?;
    let length = if SIX_BYTES.contains(&node.interface_type()) {
        6
    } else {
        32
    };
    Some(node.mac_address()[..length].to_vec())
}

/// Returns the folder of a path, with its last separator. It is empty if the path has none.
pub(super) fn folder_of(path: &str, separator: char) -> String {
    path.rfind(separator)
        .map_or_else(String::new, |at| path[..=at].into())
}

/// Opens a protocol that others may be using too.
pub(super) fn open<P: ProtocolPointer + ?Sized>(handle: Handle) -> Option<ScopedProtocol<P>> {
    let params = OpenProtocolParams {
        handle,
        agent: boot::image_handle(),
        controller: None,
    };
    // SAFETY: the handle is this image's, or the device that it was loaded from, which stays connected while boot
    // services last, or a child that the caller made; nothing else runs while the protocol is called.
    unsafe { boot::open_protocol(params, OpenProtocolAttributes::GetProtocol) }.ok()
}

#[cfg(test)]
mod tests {
    use uefi::proto::device_path::build::{self, DevicePathBuilder};

    use super::*;

    #[test]
    fn files_are_looked_for_next_to_the_program() {
        assert_eq!(folder_of("\\EFI\\BOOT\\BOOTX64.EFI", '\\'), "\\EFI\\BOOT\\");
        assert_eq!(folder_of("boot.efi", '/'), "");
    }

    #[test]
    fn the_device_path_has_the_card_s_address() {
        let address = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
        let mut mac_address = [0; 32];
        mac_address[..6].copy_from_slice(&address);
        let mut bytes = Vec::new();
        let node = build::messaging::MacAddress {
            mac_address,
            interface_type: 1,
        };
        let builder = DevicePathBuilder::with_vec(&mut bytes);
        let path = builder.push(&node).unwrap().finalize().unwrap();
        assert_eq!(mac(path), Some(address.to_vec()));
        let mut bytes = Vec::new();
        let path = DevicePathBuilder::with_vec(&mut bytes).finalize().unwrap();
        assert_eq!(mac(path), None);
    }
}
