//! Files on the HTTP server that the program was loaded from by UEFI HTTP boot.
//!
//! Each file is read over a connection of its own, from the address that the firmware got for its own download. The
//! firmware's device path has both, this address and the program's URL.
//!
//! Sources: UEFI Specification 2.10, sections 10.3.4.12 (IPv4 device path), 10.3.4.23 (URI device path), 24.7 (HTTP
//! boot).

mod connection;

use alloc::{
    format,
    string::{String, ToString},
};

use uefi::{
    Handle, Status, boot,
    proto::{
        device_path::{DevicePath, messaging},
        network::http::HttpBinding,
    },
};
use uefi_raw::protocol::network::http::{HttpMethod, HttpStatusCode};

use self::connection::{Answer, Connection};
use super::{source::Store, url::Folder};

/// Number of times that a request is made if the connection fails or the server does not answer.
const ATTEMPTS: usize = 2;
/// Maximum size in bytes of one piece of a file.
const PIECE: usize = 1 << 20;

/// A folder on an HTTP server.
pub(super) struct Http {
    /// The URL of the program.
    pub program: String,
    folder: Folder,
    /// The network card.
    card: Handle,
    local: Option<Local>,
}

/// The machine's IPv4 address and subnet mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Local {
    address: [u8; 4],
    mask: [u8; 4],
}

/// An HTTP boot, as a device path describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Boot {
    url: String,
    folder: Folder,
    /// The machine's address. If it is `None`, the firmware's default address is used.
    local: Option<Local>,
    is_ipv6: bool,
}

impl Boot {
    /// Returns `None` if the path has no URL of an HTTP server.
    fn of(path: &DevicePath) -> Option<Self> {
        let uri = |node| <&messaging::Uri>::try_from(node).ok();
        let uri = path.node_iter().find_map(uri)?;
        let text = core::str::from_utf8(uri.value()).ok()?;
        let url = text.trim_end_matches('\0').to_string();
        let ipv4 = |node| <&messaging::Ipv4>::try_from(node).ok();
        let ipv6 = |node| <&messaging::Ipv6>::try_from(node).is_ok();
        let local = path.node_iter().find_map(ipv4).map(|node| Local {
            address: node.local_ip_address(),
            mask: node.subnet_mask(),
        });
        Some(Self {
            folder: Folder::of(&url)?,
            url,
            local: local.filter(|local| local.address != [0; 4]),
            is_ipv6: path.node_iter().any(ipv6),
        })
    }
}

impl Http {
    /// Finds the server that the program was loaded from, by the path of the device, if it was. The error is the reason
    /// why files can't be read from there.
    pub fn of(path: &DevicePath) -> Option<Result<Self, String>> {
        let boot = Boot::of(path)?;
        if boot.is_ipv6 {
            let why = "HTTP boot over IPv6 can load the program alone: use HTTP boot over IPv4";
            return Some(Err(format!("{}: {why}", boot.url)));
        }
        let mut rest = path;
        let Ok(card) = boot::locate_device_path::<HttpBinding>(&mut rest) else {
            let why = "the firmware has no HTTP protocol for the network card (EFI_HTTP_PROTOCOL)";
            return Some(Err(format!("{}: {why}", boot.url)));
        };
        Some(Ok(Self {
            program: boot.url,
            folder: boot.folder,
            card,
            local: boot.local,
        }))
    }

    /// Makes a request, again if it fails. Returns the connection, which has the answer's body, and the answer.
    fn request(&self, method: HttpMethod, path: &str) -> Result<(Connection, Answer), String> {
        let url = self.folder.file(path);
        let attempt = || {
            let mut connection = Connection::open(self.card, self.local)?;
            let answer = connection.request(method, &url, self.folder.host())?;
            Ok((connection, answer))
        };
        let mut result = attempt();
        for _ in 1..ATTEMPTS {
            if result.is_err() {
                result = attempt();
            }
        }
        result.map_err(failure)
    }
}

impl Store for Http {
    fn name(&self, path: &str) -> String {
        self.folder.file(path)
    }

    fn len(&mut self, path: &str) -> Result<Option<u64>, String> {
        let (_, answer) = self.request(HttpMethod::HEAD, path)?;
        match answer.status {
            HttpStatusCode::STATUS_200_OK => answer.length.map(Some).ok_or_else(|| {
                "the server does not say how long the file is (no Content-Length)".into()
            }),
            HttpStatusCode::STATUS_404_NOT_FOUND | HttpStatusCode::STATUS_410_GONE => Ok(None),
            status => Err(refusal(status)),
        }
    }

    fn read(&mut self, path: &str, buffer: &mut [u8]) -> Result<usize, String> {
        let (mut connection, answer) = self.request(HttpMethod::GET, path)?;
        if answer.status != HttpStatusCode::STATUS_200_OK {
            return Err(refusal(answer.status));
        }
        let wanted = buffer.len();
        match answer.length {
            Some(length) if length != wanted as u64 => {
                return Err(format!(
                    "it had {wanted} bytes, and now it has {length}: it changed while it was read"
                ));
            }
            _ => {}
        }
        let mut got = 0;
        while got < wanted {
            let end = wanted.min(got + PIECE);
            match connection.receive(&mut buffer[got..end]) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(status) => {
                    return Err(format!("{} after {got} of {wanted} bytes", failure(status)));
                }
            }
        }
        Ok(got)
    }

    fn go_to_root(&mut self) -> bool {
        self.folder.go_to_root()
    }
}

/// Statuses of network protocols (UEFI Specification 2.10, appendix D) that `uefi` does not name.
const UNREACHABLE_NETWORK: Status = network_error(100);
const UNREACHABLE_HOST: Status = network_error(101);
const CLOSED: Status = network_error(104);
const RESET: Status = network_error(105);
const REFUSED: Status = network_error(106);

const fn network_error(number: usize) -> Status {
    Status(Status::ERROR_BIT | number)
}

/// Returns a failed connection in words.
fn failure(status: Status) -> String {
    match status {
        Status::TIMEOUT => "the server did not answer in time".into(),
        UNREACHABLE_NETWORK | UNREACHABLE_HOST => "the server can't be reached".into(),
        CLOSED | RESET => "the server closed the connection".into(),
        REFUSED => "the server refused the connection".into(),
        status => format!("the connection failed ({status})"),
    }
}

/// Returns the status of an answer that brings no file, in words: "the server answers 403 FORBIDDEN".
fn refusal(status: HttpStatusCode) -> String {
    let name = format!("{status:?}");
    let name = name.trim_start_matches("STATUS_").replace('_', " ");
    format!("the server answers {name}")
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use uefi::proto::device_path::{
        build::{self, DevicePathBuilder},
        messaging::Ipv4AddressOrigin,
    };

    use super::*;

    fn ipv4(address: [u8; 4]) -> build::messaging::Ipv4 {
        build::messaging::Ipv4 {
            local_ip_address: address,
            remote_ip_address: [0; 4],
            local_port: 0,
            remote_port: 80,
            protocol: 6,
            ip_address_origin: Ipv4AddressOrigin::DHCP,
            gateway_ip_address: [10, 77, 1, 1],
            subnet_mask: [255, 255, 255, 0],
        }
    }

    fn boot(address: [u8; 4], url: &[u8]) -> Option<Boot> {
        let mut bytes = Vec::new();
        let path = DevicePathBuilder::with_vec(&mut bytes)
            .push(&ipv4(address))
            .unwrap()
            .push(&build::messaging::Uri { value: url })
            .unwrap();
        Boot::of(path.finalize().unwrap())
    }

    #[test]
    fn the_device_path_has_the_url_and_the_address() {
        let found = boot([10, 77, 1, 20], b"http://boot/a/seamark.efi\0").unwrap();
        assert_eq!(found.url, "http://boot/a/seamark.efi");
        assert_eq!(found.folder.file("k"), "http://boot/a/k");
        let local = Local {
            address: [10, 77, 1, 20],
            mask: [255, 255, 255, 0],
        };
        assert_eq!(found.local, Some(local));
        assert!(!found.is_ipv6);
    }

    #[test]
    fn without_an_address_the_default_one_is_used() {
        assert_eq!(boot([0; 4], b"http://boot/x").unwrap().local, None);
    }

    #[test]
    fn a_path_without_a_usable_url_is_no_http_boot() {
        for url in [&b""[..], b"\0", b"tftp://a/b", b"\xFF\xFF", b"seamark.efi"] {
            assert_eq!(boot([10, 77, 1, 20], url), None);
        }
        let mut bytes = Vec::new();
        let path = DevicePathBuilder::with_vec(&mut bytes);
        let path = path.push(&ipv4([10, 77, 1, 20])).unwrap();
        assert_eq!(Boot::of(path.finalize().unwrap()), None);
    }

    #[test]
    fn an_answer_without_a_file_is_told_as_http_names_it() {
        assert_eq!(
            refusal(HttpStatusCode::STATUS_503_SERVICE_UNAVAILABLE),
            "the server answers 503 SERVICE UNAVAILABLE"
        );
    }
}
