//! The traffic on a link, as QEMU has recorded it: IPv4 datagrams of UDP.
//!
//! Sources: the file format of libpcap (pcap-savefile); RFC 791, RFC 768; RFC 2131 section 2; RFC 1350 section 5, RFC 2347.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// The recorded datagrams.
pub struct Capture(Vec<Datagram>);

struct Datagram {
    to: Ipv4Addr,
    to_port: u16,
    payload: Vec<u8>,
}

/// A request for a file by TFTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TftpRequest {
    /// The server.
    pub server: Ipv4Addr,
    /// The name of the file.
    pub name: String,
    /// Names and values of the options.
    pub options: Vec<(String, String)>,
}

impl TftpRequest {
    /// Returns the block size in bytes that the client asks for, if it does.
    pub fn block_size(&self) -> Option<u32> {
        let found = self.options.iter().find(|(name, _)| name == "blksize");
        found.and_then(|(_, value)| value.parse().ok())
    }

    /// Returns true if the client asks for the file's content, and not for its size alone.
    pub fn reads(&self) -> bool {
        !self.options.iter().any(|(name, _)| name == "tsize")
    }
}

/// The boot fields in the header of a DHCP server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFields {
    /// `siaddr`, the next server.
    pub next_server: Ipv4Addr,
    /// `sname` and `file`, without zeros.
    pub names: String,
}

impl BootFields {
    /// Returns true if they name neither a server nor a file.
    pub fn are_empty(&self) -> bool {
        self.next_server.is_unspecified() && self.names.is_empty()
    }
}

impl Capture {
    /// Reads a capture.
    ///
    /// # Errors
    /// It can't be read, or is no capture.
    pub fn read(file: &Path) -> Result<Self> {
        let bytes = fs::read(file).with_context(|| format!("can't read {}", file.display()))?;
        Self::parse(&bytes).with_context(|| format!("{} is no capture", file.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        const HEADER: usize = 24;
        const RECORD: usize = 16;
        ensure!(
            bytes.starts_with(&0xA1B2_C3D4u32.to_le_bytes()) && bytes.len() >= HEADER,
            "wrong magic"
        );
        let mut rest = &bytes[HEADER..];
        let mut datagrams = Vec::new();
        // The last record may be incomplete.
        while let Some((record, after)) = rest.split_at_checked(RECORD) {
            let length = u32::from_le_bytes(record[8..12].try_into()?) as usize;
            let Some((frame, after)) = after.split_at_checked(length) else {
                break;
            };
            datagrams.extend(datagram(frame));
            rest = after;
        }
        Ok(Self(datagrams))
    }

    /// Returns the clients' requests for files by TFTP, in order.
    pub fn tftp_requests(&self) -> Vec<TftpRequest> {
        let to_server = self.0.iter().filter(|d| d.to_port == 69);
        to_server.filter_map(tftp_request).collect()
    }

    /// Returns the block sizes that TFTP servers have agreed to, in order.
    pub fn agreed_block_sizes(&self) -> Vec<u32> {
        const OACK: &[u8] = &[0, 6];
        let agreed = self.0.iter().filter_map(|d| {
            let words = words(d.payload.strip_prefix(OACK)?);
            let at = words.iter().position(|word| word == "blksize")?;
            words.get(at + 1)?.parse().ok()
        });
        agreed.collect()
    }

    /// Returns the boot fields of every answer of a DHCP server.
    pub fn dhcp_answers(&self) -> Vec<BootFields> {
        let answers = self.0.iter().filter(|d| d.to_port == 68);
        let fields = answers.filter_map(|d| {
            let header = d.payload.get(..236)?;
            Some(BootFields {
                next_server: address(&header[20..24])?,
                names: words(&header[44..236]).concat(),
            })
        });
        fields.collect()
    }
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

/// Returns the UDP datagram in an Ethernet frame.
fn datagram(frame: &[u8]) -> Option<Datagram> {
    let packet = frame.get(14..).filter(|_| frame[12..14] == [8, 0])?;
    let header = usize::from(packet.first()? & 15) * 4;
    let udp = packet
        .get(header..)
        .filter(|_| packet.get(9) == Some(&17))?;
    let length = usize::from(u16::from_be_bytes(udp.get(4..6)?.try_into().ok()?));
    Some(Datagram {
        to: address(packet.get(16..20)?)?,
        to_port: u16::from_be_bytes(udp.get(2..4)?.try_into().ok()?),
        payload: udp.get(8..length)?.to_owned(),
    })
}

fn tftp_request(datagram: &Datagram) -> Option<TftpRequest> {
    const RRQ: &[u8] = &[0, 1];
    let mut words = words(datagram.payload.strip_prefix(RRQ)?).into_iter();
    let name = words.next()?;
    let _mode = words.next()?;
    let mut options = Vec::new();
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        options.push((name.to_ascii_lowercase(), value));
    }
    Some(TftpRequest {
        server: datagram.to,
        name,
        options,
    })
}

/// Returns the strings between zeros that are not empty.
fn words(bytes: &[u8]) -> Vec<String> {
    let words = bytes.split(|b| *b == 0).filter(|word| !word.is_empty());
    words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A capture of one datagram to 10.77.1.1.
    fn capture(port: u16, payload: &[u8]) -> Capture {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0]);
        frame.extend([10, 77, 1, 10, 10, 77, 1, 1, 4, 0]);
        frame.extend(port.to_be_bytes());
        frame.extend((payload.len() as u16 + 8).to_be_bytes());
        frame.extend([0, 0]);
        frame.extend(payload);
        let mut bytes = 0xA1B2_C3D4u32.to_le_bytes().to_vec();
        bytes.extend([0; 20 + 8]);
        bytes.extend((frame.len() as u32).to_le_bytes().repeat(2));
        bytes.extend(frame);
        // An incomplete record.
        bytes.extend([0; 9]);
        Capture::parse(&bytes).unwrap()
    }

    #[test]
    fn a_request_has_its_name_and_its_block_size() {
        let capture = capture(69, b"\0\x01a/k\0octet\0blksize\x001428\0windowsize\x004\0");
        let requests = capture.tftp_requests();
        assert_eq!(requests.len(), 1);
        assert_eq!(requests[0].name, "a/k");
        assert_eq!(requests[0].server, Ipv4Addr::new(10, 77, 1, 1));
        assert_eq!(requests[0].block_size(), Some(1428));
        assert!(requests[0].reads());
    }

    #[test]
    fn an_agreement_has_its_block_size() {
        let capture = capture(1024, b"\0\x06blksize\x001428\0tsize\x007\0");
        assert_eq!(capture.agreed_block_sizes(), [1428]);
        assert!(capture.tftp_requests().is_empty());
    }

    #[test]
    fn an_answer_of_dhcp_has_its_boot_fields() {
        let mut packet = [0; 300];
        packet[20..24].copy_from_slice(&[10, 0, 2, 2]);
        packet[108..113].copy_from_slice(b"b.efi");
        let fields = BootFields {
            next_server: Ipv4Addr::new(10, 0, 2, 2),
            names: "b.efi".to_owned(),
        };
        assert_eq!(capture(68, &packet).dhcp_answers(), [fields]);
    }

    #[test]
    fn what_is_no_capture_is_an_error() {
        assert!(Capture::parse(b"").is_err());
        assert!(Capture::parse(&[0; 40]).is_err());
    }
}
