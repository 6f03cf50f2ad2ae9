//! The flows of frames: those of a flow arrive at one queue of the receiver, in order.
//!
//! The receiver's driver chooses the queue: that of the pair by which it sent to the flow last (VIRTIO 1.2, section
//! 5.1.6.5.6).

use core::array;

use sync::atomic::{AtomicU8, Ordering::Relaxed};

use super::frame::Frame;
use super::header::{ADDRESSES, ETHERNET, TAG};

/// Number of flows that are told apart.
const FLOWS: usize = 256;
/// Bytes behind a frame's addresses that say its flow: the type and a tag, IPv6's header, the protocol's ports.
const READ: usize = 2 + TAG + 40 + 4;
/// The entry of a flow to which the driver has not sent.
const NONE: u8 = 0xFF;

/// The pairs by which a driver sent to each flow last.
#[derive(Debug)]
pub struct Flows([AtomicU8; FLOWS]);

impl Default for Flows {
    fn default() -> Self {
        Self(array::from_fn(|_| AtomicU8::new(NONE)))
    }
}

impl Flows {
    /// Notes that the driver sends to a flow by this pair.
    pub fn note(&self, flow: u8, pair: usize) {
        let entry = &self.0[usize::from(flow)];
        if usize::from(entry.load(Relaxed)) != pair {
            entry.store(pair as u8, Relaxed);
        }
    }

    /// Returns the pair of a flow, of `pairs`.
    #[must_use]
    pub fn pair(&self, flow: u8, pairs: usize) -> usize {
        match usize::from(self.0[usize::from(flow)].load(Relaxed)) {
            pair if pair < pairs => pair,
            _ => usize::from(flow) % pairs,
        }
    }

    /// Forgets all flows.
    pub fn forget(&self) {
        self.0.iter().for_each(|entry| entry.store(NONE, Relaxed));
    }
}

/// Returns the flow of a frame: the same in both directions.
pub fn of(frame: &Frame<'_>) -> u8 {
    *frame.flow.get_or_init(|| read(frame))
}

/// Reads the flow of a frame. One that can't be read has the flow 0: whoever copies it finds out.
#[cold]
#[inline(never)]
fn read(frame: &Frame<'_>) -> u8 {
    let mut bytes = [0; READ];
    match frame.headers {
        [] => {
            let _ = frame.payload.clone().read(frame.memory, &mut bytes);
        }
        headers => {
            let known = headers.len().min(READ);
            bytes[..known].copy_from_slice(&headers[..known]);
        }
    }
    hash(&bytes)
}

fn hash(behind_addresses: &[u8; READ]) -> u8 {
    const MIX: u32 = 0x9E37_79B1;
    let word = |at: usize| u16::from_be_bytes([behind_addresses[at], behind_addresses[at + 1]]);
    let long = |at: usize| u32::from(word(at)) << 16 | u32::from(word(at + 2));
    let at = match word(0) {
        0x8100 => TAG,
        _ => 0,
    };
    let ip = at + ETHERNET - ADDRESSES;
    let (addresses, next, ports) = match word(at) {
        0x0800 => {
            let length = usize::from(behind_addresses[ip] & 0xF) * 4;
            // Only the first fragment of a packet has ports.
            let is_whole = word(ip + 6) & 0x3FFF == 0;
            let ports = (is_whole && ip + length + 4 <= READ).then_some(ip + length);
            (
                long(ip + 12) ^ long(ip + 16),
                behind_addresses[ip + 9],
                ports,
            )
        }
        0x86DD => {
            let words = (0..8).map(|number| long(ip + 8 + 4 * number));
            let addresses = words.fold(0, |sum, word| sum ^ word);
            (addresses, behind_addresses[ip + 6], Some(ip + 40))
        }
        _ => return 0,
    };
    let has_ports = matches!(next, 6 | 17);
    let ports = ports.filter(|_| has_ports);
    let ports = ports.map_or(0, |at| word(at) ^ word(at + 2));
    ((addresses ^ u32::from(ports)).wrapping_mul(MIX) >> 24) as u8
}
