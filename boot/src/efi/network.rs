//! The network that the firmware booted from: the server and the boot file, as DHCP has named them, and reading files
//! from there by TFTP.
//!
//! Sources: RFC 2131 (DHCP), RFC 2132 sections 9.3 to 9.7 (options 52, 54, 66, 67), RFC 2348 (TFTP block size); UEFI
//! Specification 2.10, section 24.3 (EFI_PXE_BASE_CODE_PROTOCOL).

use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use core::net::{IpAddr, Ipv4Addr};

use uefi::{CStr8, Status, StatusExt, boot::ScopedProtocol, proto::network::pxe::BaseCode};
use uefi_raw::{
    IpAddress,
    protocol::network::pxe::{PxeBaseCodeProtocol, PxeBaseCodeTftpOpcode},
};

/// The TFTP block size in bytes to ask for: the largest that fits into an Ethernet frame. Without it, a block has 512
/// bytes, and each costs a round trip.
const BLOCK: usize = 1428;

/// The answers of DHCP about the boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Boot {
    /// The TFTP server.
    pub server: IpAddr,
    /// The boot file, which may be empty.
    pub file: String,
    /// The address of the network card.
    pub mac: Vec<u8>,
}

/// Finds the server and the boot file in the DHCP answers that the firmware has kept: PXE's own, the proxy's, and the
/// server's, in this order.
pub(super) fn boot(base_code: &BaseCode) -> Option<Boot> {
    let mode = base_code.mode();
    if mode.using_ipv6() {
        return None;
    }
    let packets = [
        (mode.pxe_reply_received(), mode.pxe_reply()),
        (mode.proxy_offer_received(), mode.proxy_offer()),
        (mode.dhcp_ack_received(), mode.dhcp_ack()),
    ];
    let received = packets.into_iter().filter(|(received, _)| *received);
    received
        .filter_map(|(_, packet)| parse(packet.as_ref()))
        .next()
}

/// Reads a DHCP answer. Returns `None` if it names no server.
fn parse(packet: &[u8; 1472]) -> Option<Boot> {
    let options = Options(packet);
    // The fields of the header, unless the options take their place.
    let header = Ipv4Addr::new(packet[20], packet[21], packet[22], packet[23]);
    let named = options.text(66).and_then(|name| name.parse().ok());
    let identifier = options
        .find(54)
        .and_then(|value| <[u8; 4]>::try_from(value).ok())
        .map(Ipv4Addr::from);
    let server = named
        .or(Some(header))
        .filter(|server: &Ipv4Addr| !server.is_unspecified())
        .or(identifier)?;
    let holds_options = options.find(52).is_some_and(|value| value[0] & 1 != 0);
    let field = if holds_options {
        String::new()
    } else {
        text(&packet[108..236])
    };
    let length = usize::from(packet[2]).min(16);
    Some(Boot {
        server: IpAddr::V4(server),
        file: options.text(67).unwrap_or(field),
        mac: packet[28..28 + length].to_vec(),
    })
}

/// The options of a DHCP packet.
struct Options<'a>(&'a [u8; 1472]);

impl<'a> Options<'a> {
    /// Returns the value of an option, which is not empty.
    fn find(&self, code: u8) -> Option<&'a [u8]> {
        const COOKIE: [u8; 4] = [99, 130, 83, 99];
        const PAD: u8 = 0;
        const END: u8 = 255;
        if self.0[236..240] != COOKIE {
            return None;
        }
        let mut rest = &self.0[240..];
        loop {
            match *rest {
                [PAD, ..] => rest = &rest[1..],
                [END, ..] | [] | [_] => return None,
                [found, length, ref value @ ..] => {
                    let (value, after) = value.split_at_checked(length.into())?;
                    if found == code && !value.is_empty() {
                        return Some(value);
                    }
                    rest = after;
                }
            }
        }
    }

    fn text(&self, code: u8) -> Option<String> {
        self.find(code).map(text).filter(|text| !text.is_empty())
    }
}

/// Returns the text up to the first zero byte.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim().to_string()
}

/// Reads a file by TFTP into `buffer`. Returns its length.
///
/// # Errors
/// The firmware's status.
pub(super) fn read(
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(options: &[(u8, &[u8])]) -> [u8; 1472] {
        let mut packet = [0; 1472];
        packet[2] = 6;
        packet[28..34].copy_from_slice(&[0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        packet[236..240].copy_from_slice(&[99, 130, 83, 99]);
        let mut at = 240;
        for (code, value) in options {
            packet[at] = *code;
            packet[at + 1] = value.len() as u8;
            packet[at + 2..at + 2 + value.len()].copy_from_slice(value);
            at += 2 + value.len();
        }
        packet[at] = 255;
        packet
    }

    fn server_and_file(packet: &[u8; 1472]) -> (String, String) {
        let boot = parse(packet).unwrap();
        (boot.server.to_string(), boot.file)
    }

    #[test]
    fn the_header_names_server_and_file() {
        let mut packet = packet(&[]);
        packet[20..24].copy_from_slice(&[10, 0, 2, 2]);
        packet[108..116].copy_from_slice(b"boot.efi");
        let boot = parse(&packet).unwrap();
        assert_eq!(boot.file, "boot.efi");
        assert_eq!(boot.server.to_string(), "10.0.2.2");
        assert_eq!(boot.mac, [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    }

    #[test]
    fn options_66_and_67_are_enough() {
        let packet = packet(&[
            (53, &[5]),
            (66, b"192.168.7.1\0"),
            (67, b"seamark/seamark.efi"),
        ]);
        let expected = ("192.168.7.1".into(), "seamark/seamark.efi".into());
        assert_eq!(server_and_file(&packet), expected);
    }

    #[test]
    fn options_come_before_the_header() {
        let mut packet = packet(&[(66, b"192.168.7.1"), (67, b"a.efi")]);
        packet[20..24].copy_from_slice(&[10, 0, 2, 2]);
        packet[108..113].copy_from_slice(b"b.efi");
        let expected = ("192.168.7.1".into(), "a.efi".into());
        assert_eq!(server_and_file(&packet), expected);
    }

    #[test]
    fn a_name_that_is_no_address_leaves_the_dhcp_server() {
        let packet = packet(&[(66, b"tftp.example"), (54, &[10, 0, 0, 1]), (67, b"a")]);
        assert_eq!(server_and_file(&packet), ("10.0.0.1".into(), "a".into()));
    }

    #[test]
    fn a_file_field_that_holds_options_is_no_name() {
        let mut packet = packet(&[(52, &[1]), (54, &[10, 0, 0, 1])]);
        packet[108..111].copy_from_slice(&[12, 1, b'x']);
        assert_eq!(server_and_file(&packet), ("10.0.0.1".into(), String::new()));
    }

    #[test]
    fn without_a_server_there_is_nothing() {
        assert_eq!(parse(&packet(&[(67, b"a.efi")])), None);
        assert_eq!(parse(&[0; 1472]), None);
    }

    proptest! {
        #[test]
        fn any_packet_is_survived(
            start in prop::collection::vec(any::<u8>(), 240),
            options in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let mut packet = [0; 1472];
            packet[..240].copy_from_slice(&start);
            packet[240..240 + options.len()].copy_from_slice(&options);
            parse(&packet);
            packet[236..240].copy_from_slice(&[99, 130, 83, 99]);
            parse(&packet);
        }
    }
}
