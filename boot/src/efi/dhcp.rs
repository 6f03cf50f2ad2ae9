//! The server and the boot file, as a DHCP answer names them.
//!
//! Sources: RFC 2131 (DHCP), RFC 2132 sections 9.3 to 9.7 (options 52, 54, 66, 67).

use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use core::net::{IpAddr, Ipv4Addr};

/// The part of an answer that concerns the boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Boot {
    /// The addresses that may be the TFTP server's, best first: the header's, option 66 and the DHCP server's own
    /// (option 54). Firmware differs in which it takes. There is at least one.
    pub servers: Vec<IpAddr>,
    /// The boot file, which may be empty.
    pub file: String,
}

/// Reads a DHCP answer. Returns `None` if it names no server.
pub(super) fn parse(packet: &[u8; 1472]) -> Option<Boot> {
    let options = Options(packet);
    // The fields of the header, unless the options take their place.
    let header = Ipv4Addr::new(packet[20], packet[21], packet[22], packet[23]);
    let named = options.text(66).and_then(|name| name.parse().ok());
    let identifier = options
        .find(54)
        .and_then(|value| <[u8; 4]>::try_from(value).ok())
        .map(Ipv4Addr::from);
    let mut servers = Vec::new();
    for server in [Some(header), named, identifier].into_iter().flatten() {
        if !server.is_unspecified() && !servers.contains(&IpAddr::V4(server)) {
            servers.push(IpAddr::V4(server));
        }
    }
    if servers.is_empty() {
        return None;
    }
    let holds_options = options.find(52).is_some_and(|value| value[0] & 1 != 0);
    let field = if holds_options {
        String::new()
    } else {
        text(&packet[108..236])
    };
    Some(Boot {
        servers,
        file: options.text(67).unwrap_or(field),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(options: &[(u8, &[u8])]) -> [u8; 1472] {
        let mut packet = [0; 1472];
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

    fn servers_and_file(packet: &[u8; 1472]) -> (Vec<String>, String) {
        let boot = parse(packet).unwrap();
        let servers = boot.servers.iter().map(ToString::to_string);
        (servers.collect(), boot.file)
    }

    fn expected(servers: &[&str], file: &str) -> (Vec<String>, String) {
        let servers = servers.iter().map(ToString::to_string);
        (servers.collect(), file.into())
    }

    #[test]
    fn the_header_names_server_and_file() {
        let mut packet = packet(&[]);
        packet[20..24].copy_from_slice(&[10, 0, 2, 2]);
        packet[108..116].copy_from_slice(b"boot.efi");
        let expected = expected(&["10.0.2.2"], "boot.efi");
        assert_eq!(servers_and_file(&packet), expected);
    }

    #[test]
    fn options_66_and_67_are_enough() {
        let packet = packet(&[
            (53, &[5]),
            (66, b"192.168.7.1\0"),
            (67, b"seamark/seamark.efi"),
        ]);
        let expected = expected(&["192.168.7.1"], "seamark/seamark.efi");
        assert_eq!(servers_and_file(&packet), expected);
    }

    #[test]
    fn every_address_that_may_be_the_server_s_is_listed_once() {
        let mut packet = packet(&[(54, &[10, 0, 0, 1]), (66, b"192.168.7.1"), (67, b"a.efi")]);
        packet[108..113].copy_from_slice(b"b.efi");
        let two = expected(&["192.168.7.1", "10.0.0.1"], "a.efi");
        assert_eq!(servers_and_file(&packet), two);
        packet[20..24].copy_from_slice(&[10, 0, 2, 2]);
        let three = expected(&["10.0.2.2", "192.168.7.1", "10.0.0.1"], "a.efi");
        assert_eq!(servers_and_file(&packet), three);
        packet[20..24].copy_from_slice(&[10, 0, 0, 1]);
        let two = expected(&["10.0.0.1", "192.168.7.1"], "a.efi");
        assert_eq!(servers_and_file(&packet), two);
    }

    #[test]
    fn a_name_that_is_no_address_leaves_the_dhcp_server() {
        let packet = packet(&[(66, b"tftp.example"), (54, &[10, 0, 0, 1]), (67, b"a")]);
        assert_eq!(servers_and_file(&packet), expected(&["10.0.0.1"], "a"));
    }

    #[test]
    fn a_file_field_that_holds_options_is_no_name() {
        let mut packet = packet(&[(52, &[1]), (54, &[10, 0, 0, 1])]);
        packet[108..111].copy_from_slice(&[12, 1, b'x']);
        assert_eq!(servers_and_file(&packet), expected(&["10.0.0.1"], ""));
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
