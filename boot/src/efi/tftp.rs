//! Files on the TFTP server that the program was loaded from by PXE.
//!
//! Sources: RFC 2348 (TFTP block size); UEFI Specification 2.10, section 24.3 (EFI_PXE_BASE_CODE_PROTOCOL).
#![expect(unsafe_code, reason = "the block size can't be given in another way")]

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::net::IpAddr;

use uefi::{
    CStr8, Handle, Status, StatusExt,
    boot::ScopedProtocol,
    proto::network::pxe::{BaseCode, Mode},
};
use uefi_raw::{
    IpAddress,
    protocol::network::pxe::{PxeBaseCodeProtocol, PxeBaseCodeTftpOpcode},
};

use super::{
    dhcp,
    source::{Store, folder_of, open},
};

/// The TFTP block size in bytes to ask for: the largest that fits into an Ethernet frame. Without it, a block has 512
/// bytes, and each costs a round trip.
const BLOCK: usize = 1428;

/// A folder on a TFTP server.
pub(super) struct Tftp {
    base_code: ScopedProtocol<BaseCode>,
    /// The server's address.
    pub server: IpAddr,
    /// The folder of the files, empty or with a separator at its end.
    folder: String,
}

impl Tftp {
    /// Finds the server that the device was booted from, if it was. The error is the reason why files can't be read
    /// from there.
    pub fn of(device: Handle) -> Option<Result<Self, String>> {
        let mut base_code = open::<BaseCode>(device)?;
        let mode = base_code.mode();
        if mode.using_ipv6() {
            let why = "PXE over IPv6 can load the program alone: use PXE over IPv4, or HTTP boot";
            return Some(Err(why.into()));
        }
        let boot = answer(mode)?;
        let server = boot.servers.iter().find(|server| {
            // With one address there is no choice.
            boot.servers.len() == 1 || size(&mut base_code, **server, &boot.file).is_ok()
        });
        let server = server.or(boot.servers.first()).copied()?;
        Some(Ok(Self {
            base_code,
            server,
            folder: folder_of(&boot.file, '/'),
        }))
    }

    /// Returns the name of the file at `path` on the server.
    fn full(&self, path: &str) -> String {
        format!("{}{path}", self.folder)
    }
}

impl Store for Tftp {
    fn name(&self, path: &str) -> String {
        let path = self.full(path);
        format!("tftp://{}/{}", self.server, path.trim_start_matches('/'))
    }

    fn len(&mut self, path: &str) -> Result<Option<u64>, String> {
        let name = self.full(path);
        match size(&mut self.base_code, self.server, &name) {
            Ok(len) => Ok(Some(len)),
            // The server reports "not found" with an error packet, which the firmware returns as this status.
            Err(Status::NOT_FOUND | Status::TFTP_ERROR) => Ok(None),
            Err(status) => Err(status.to_string()),
        }
    }

    fn read(&mut self, path: &str, buffer: &mut [u8]) -> Result<usize, String> {
        let name = terminated(&self.full(path));
        CStr8::from_bytes_with_nul(&name)
            .map_err(|_| Status::INVALID_PARAMETER)
            .and_then(|name| read(&mut self.base_code, self.server, name, buffer))
            .map_err(|status| status.to_string())
    }

    fn go_to_root(&mut self) -> bool {
        let moved = !self.folder.is_empty();
        self.folder.clear();
        moved
    }
}

/// Returns the first DHCP answer that names a server: PXE's own, the proxy's, or the server's.
fn answer(mode: &Mode) -> Option<dhcp::Boot> {
    let packets = [
        (mode.pxe_reply_received(), mode.pxe_reply()),
        (mode.proxy_offer_received(), mode.proxy_offer()),
        (mode.dhcp_ack_received(), mode.dhcp_ack()),
    ];
    let mut received = packets.into_iter().filter(|(received, _)| *received);
    received.find_map(|(_, packet)| dhcp::parse(packet.as_ref()))
}

fn terminated(name: &str) -> Vec<u8> {
    format!("{name}\0").into_bytes()
}

/// Asks for the size of a file. The block size is not at issue: the transfer ends with the answer.
fn size(base_code: &mut BaseCode, server: IpAddr, name: &str) -> Result<u64, Status> {
    let name = terminated(name);
    let name = CStr8::from_bytes_with_nul(&name).map_err(|_| Status::INVALID_PARAMETER)?;
    base_code
        .tftp_get_file_size(&server, name)
        .map_err(|e| e.status())
}

/// Reads a file into `buffer`. Returns its length.
fn read(
    base_code: &mut ScopedProtocol<BaseCode>,
    server: IpAddr,
    name: &CStr8,
    buffer: &mut [u8],
) -> Result<usize, Status> {
    let this = (&raw mut **base_code).cast::<PxeBaseCodeProtocol>();
    let mut length = buffer.len() as u64;
    let server = IpAddress::from(server);
    let block = BLOCK;
    // SAFETY: `BaseCode` is a transparent wrapper of the protocol, which is open; the buffer has the stated length, and
    // the name ends with a zero.
    let status = unsafe {
        ((*this).mtftp)(
            this,
            PxeBaseCodeTftpOpcode::TFTP_READ_FILE,
            buffer.as_mut_ptr().cast(),
            false.into(),
            &raw mut length,
            &raw const block,
            &raw const server,
            name.as_ptr().cast(),
            core::ptr::null(),
            false.into(),
        )
    };
    status
        .to_result_with_val(|| length as usize)
        .map_err(|e| e.status())
}
