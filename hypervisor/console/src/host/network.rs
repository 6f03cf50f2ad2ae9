//! Networks of TDs: reports of `net`.

use alloc::{string::String, vec::Vec};

use serde::Serialize;

/// A network of this host.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, Serialize)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// True if its cards are isolated unless their TD's configuration says otherwise.
    pub isolated: bool,
    /// Bytes per second that a card may send unless its TD's configuration says otherwise.
    pub rate_bytes: Option<u64>,
    /// The cards of TDs that have a life, by TD.
    pub cards: Vec<NetworkCard>,
}

impl From<&config::Network> for Network {
    fn from(network: &config::Network) -> Self {
        Self {
            name: network.name.clone(),
            isolated: network.isolated,
            rate_bytes: network.rate,
            cards: Vec::new(),
        }
    }
}

/// A TD's card in a network, with the counts of this life of the TD.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, Serialize)]
pub struct NetworkCard {
    /// The TD's name.
    pub td: String,
    /// The card's number on the TD's bus.
    pub device: u8,
    /// The card's address.
    pub mac: String,
    /// The kind of its port: `open`, `isolated` or `trunk`.
    pub port: &'static str,
    /// Bytes per second that it may send.
    pub rate_bytes: Option<u64>,
    /// True while the guest's driver is ready.
    pub running: bool,
    /// Frames from the TD that reached another card at least.
    pub sent_frames: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames that the TD received.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames for the TD that found no buffer, or a driver that was not ready.
    pub no_buffer: u64,
    /// Frames from the TD whose source is not its address.
    pub spoofed: u64,
    /// Frames from the TD that are too long or too short, or whose header lies.
    pub malformed: u64,
    /// Frames from the TD beyond its rate.
    pub limited: u64,
}

impl NetworkCard {
    /// Returns the number of frames that were dropped.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.no_buffer + self.spoofed + self.malformed + self.limited
    }
}
