//! Messages of Intel's Quote Generation Service: a length of four bytes, big-endian, and a message of that length.
//!
//! Source: `qgs_msg_lib` of Intel's SGX Data Center Attestation Primitives.

use core::fmt;
use core::ops::Range;

use seam::abi::TdReport;

/// Bytes of a report.
pub const REPORT: usize = size_of::<TdReport>();
/// Bytes of the length before a message.
pub const LENGTH: usize = 4;
/// Bytes of a message's header, and of the two sizes that follow it.
const HEADER: usize = 16;
const SIZES: usize = 8;
const PREFIX: usize = LENGTH + HEADER + SIZES;
/// Bytes of a request for a quote, with its length.
pub const REQUEST: usize = PREFIX + REPORT;

const MAJOR: u16 = 1;
const MINOR: u16 = 1;
const GET_QUOTE_REQUEST: u32 = 0;
const GET_QUOTE_RESPONSE: u32 = 1;

/// Returns the request for the quote of a report.
pub fn request(report: &[u8; REPORT]) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    let size = (REQUEST - LENGTH) as u32;
    bytes[..LENGTH].copy_from_slice(&size.to_be_bytes());
    bytes[4..6].copy_from_slice(&MAJOR.to_le_bytes());
    bytes[6..8].copy_from_slice(&MINOR.to_le_bytes());
    for (at, value) in [
        (8, GET_QUOTE_REQUEST),
        (12, size),
        // The error, which answers have.
        (16, 0),
        (20, REPORT as u32),
        // No list of attestation keys.
        (24, 0),
    ] {
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    bytes[PREFIX..].copy_from_slice(report);
    bytes
}

/// Reason why an answer has no quote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoQuote {
    /// The service could not make one, and says why.
    Refused(u32),
    /// The message is none of the service's.
    Malformed,
}

impl fmt::Display for NoQuote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(code) => write!(f, "the quoting service answers with error {code:#x}"),
            Self::Malformed => f.write_str("the quoting service's answer can't be understood"),
        }
    }
}

/// Returns the length of a message with its length before it, as its first bytes tell.
pub const fn whole(length: [u8; LENGTH]) -> usize {
    (u32::from_be_bytes(length) as usize).saturating_add(LENGTH)
}

/// Returns the place of the quote in an answer with its length before it.
///
/// # Errors
/// [`NoQuote`].
pub fn quote(answer: &[u8]) -> Result<Range<usize>, NoQuote> {
    let word = |at: usize| {
        let bytes = answer.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let word = |at| word(at).ok_or(NoQuote::Malformed);
    let is_known = word(4)? as u16 == MAJOR && word(8)? == GET_QUOTE_RESPONSE;
    if !is_known || word(12)? as usize != answer.len() - LENGTH {
        return Err(NoQuote::Malformed);
    }
    match word(16)? {
        0 => {}
        code => return Err(NoQuote::Refused(code)),
    }
    let (id, quote) = (word(20)? as usize, word(24)? as usize);
    let start = PREFIX.checked_add(id);
    let end = start.and_then(|start| start.checked_add(quote));
    match (start, end) {
        (Some(start), Some(end)) if end == answer.len() && quote > 0 => Ok(start..end),
        _ => Err(NoQuote::Malformed),
    }
}

#[cfg(test)]
pub(super) mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// Returns an answer, as a service makes it.
    pub fn answer(error: u32, id: &[u8], quote: &[u8]) -> Vec<u8> {
        let size = (HEADER + SIZES + id.len() + quote.len()) as u32;
        let words = [size, error, id.len() as u32, quote.len() as u32];
        let mut bytes = Vec::from(size.to_be_bytes());
        bytes.extend([1, 0, 1, 0, 1, 0, 0, 0]);
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(id);
        bytes.extend(quote);
        bytes
    }

    #[test]
    fn a_request_is_the_report_behind_sizes() {
        let bytes = request(&[7; REPORT]);
        // 1,048 bytes: header, sizes, report.
        assert_eq!(bytes[..8], [0, 0, 4, 0x18, 1, 0, 1, 0]);
        assert_eq!(bytes[8..16], [0, 0, 0, 0, 0x18, 4, 0, 0]);
        assert_eq!(bytes[16..28], [0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0]);
        assert!(bytes[28..].iter().all(|byte| *byte == 7));
        assert_eq!(whole([0, 0, 4, 0x18]), bytes.len());
    }

    #[test]
    fn the_quote_is_behind_the_chosen_key() {
        let bytes = answer(0, b"key", b"quote");
        assert_eq!(bytes[quote(&bytes).unwrap()], *b"quote");
        assert_eq!(quote(&answer(5, b"", b"")), Err(NoQuote::Refused(5)));
        assert_eq!(quote(&answer(0, b"", b"")), Err(NoQuote::Malformed));
        for at in [4, 8, 12, 20, 24] {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            assert_eq!(quote(&wrong), Err(NoQuote::Malformed), "{at}");
        }
        for short in 0..bytes.len() {
            assert!(quote(&bytes[..short]).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_answer_is_misread(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(place) = quote(&bytes) {
                prop_assert!(place.end == bytes.len() && place.start >= PREFIX);
            }
        }
    }
}
