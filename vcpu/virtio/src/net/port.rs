//! A port of a switch: its settings in one word, its receiver, and its counts.

use core::array;

use sync::FairMutex;
use sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};

use super::flow::{self, Flows};
use super::frame::Frame;
use super::header::Mac;
use super::receiver::Receiver;

/// Largest number of a card's pairs of queues.
pub const PAIRS: usize = 8;
/// Number of counts.
const COUNTS: usize = 8;

/// The settings of a port.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The port's address.
    pub mac: Mac,
    /// Any source is allowed, and learned.
    pub is_trunk: bool,
    /// Frames go to and come from trunk ports only.
    pub is_isolated: bool,
}

/// The counts of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Count {
    /// Frames that came from the port's guest and were delivered at least once.
    Sent,
    /// Their bytes.
    SentBytes,
    /// Frames that its guest received.
    Received,
    /// Their bytes.
    ReceivedBytes,
    /// Frames for its guest that found no buffer, or a guest that was not ready.
    Full,
    /// Frames from its guest with another source.
    Spoofed,
    /// Frames from its guest that are too long or too short, or whose header lies.
    Malformed,
    /// Frames from its guest beyond its rate.
    Limited,
}

/// A port, taken or free.
#[derive(Debug)]
pub struct Port {
    /// The port's holder and settings: see [`Tag`]. It changes only while there is no receiver.
    pub tag: AtomicU64,
    /// Number of guests that have had the port.
    pub life: AtomicU64,
    /// The receiving side of each pair of queues. A flood of frames does not keep another sender out.
    pub receivers: [FairMutex<Option<Receiver>>; PAIRS],
    /// Number of pairs that the driver uses.
    pub pairs: AtomicUsize,
    pub flows: Flows,
    /// The guest lets its card access memory.
    pub is_open: AtomicBool,
    /// The receivers that have to be interrupted, by a bit for each; then a bit for a broken rule.
    pub news: AtomicU64,
    pub counts: [AtomicU64; COUNTS],
}

/// A port's settings in one word; 0 is a free port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(pub u64);

impl Tag {
    pub const TAKEN: u64 = 1 << 63;
    pub const TRUNK: u64 = 1 << 62;
    pub const ISOLATED: u64 = 1 << 61;
    const MAC: u64 = (1 << 48) - 1;

    pub const fn new(settings: Settings) -> Self {
        let mut tag = Self::TAKEN | settings.mac.0 & Self::MAC;
        if settings.is_trunk {
            tag |= Self::TRUNK;
        }
        if settings.is_isolated {
            tag |= Self::ISOLATED;
        }
        Self(tag)
    }

    pub const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    pub const fn mac(self) -> Mac {
        Mac(self.0 & Self::MAC)
    }

    /// Returns whether this is a guest's port with this address.
    pub const fn is_of(self, mac: Mac) -> bool {
        self.0 & (Self::TAKEN | Self::MAC) == Self::TAKEN | mac.0
    }

    /// Returns whether frames go from this port to `other`.
    pub const fn reaches(self, other: Self) -> bool {
        let is_shut = self.has(Self::ISOLATED) || other.has(Self::ISOLATED);
        !is_shut || self.has(Self::TRUNK) || other.has(Self::TRUNK)
    }
}

impl Default for Port {
    fn default() -> Self {
        Self {
            tag: AtomicU64::new(0),
            life: AtomicU64::new(0),
            receivers: array::from_fn(|_| FairMutex::new(None)),
            pairs: AtomicUsize::new(1),
            flows: Flows::default(),
            is_open: AtomicBool::new(false),
            news: AtomicU64::new(0),
            counts: [const { AtomicU64::new(0) }; COUNTS],
        }
    }
}

impl Port {
    /// Returns the pair that receives a frame.
    pub fn pair_for(&self, frame: &Frame<'_>) -> usize {
        match self.pairs.load(Relaxed) {
            1 => 0,
            pairs => self.flows.pair(flow::of(frame), pairs),
        }
    }

    /// Counts.
    pub fn add(&self, count: Count, more: u64) {
        self.counts[count as usize].fetch_add(more, SeqCst);
    }
}
