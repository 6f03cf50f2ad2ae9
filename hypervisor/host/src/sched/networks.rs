//! The networks of this host: a switch for each, to which the cards of TDs are attached.

use alloc::{format, string::String, sync::Arc, vec::Vec};

use config::Port;
use sync::Mutex;
use virtio::net::{Attached, Mac, NoPort, Rate, Settings, Switch};

/// The networks.
#[derive(Debug, Default)]
pub(super) struct Networks {
    all: Vec<(config::Network, Arc<Switch>)>,
    /// Serialises attachments.
    attaching: Mutex<()>,
}

/// A card in its network.
#[derive(Debug)]
pub(super) struct Card {
    pub port: Attached,
    pub kind: Port,
    /// Bytes per second that the TD may send.
    pub rate: Option<u64>,
}

impl Card {
    /// Returns the limit of what the TD sends.
    pub fn limit(&self) -> Option<Rate> {
        self.rate.map(Rate::new)
    }
}

impl Networks {
    /// Creates the networks, without any card.
    pub fn new(networks: &[config::Network]) -> Self {
        let all = networks.iter();
        Self {
            all: all
                .map(|network| (network.clone(), Arc::default()))
                .collect(),
            attaching: Mutex::new(()),
        }
    }

    /// Returns the networks, in the order of the configuration.
    pub fn all(&self) -> impl Iterator<Item = &config::Network> {
        self.all.iter().map(|(network, _)| network)
    }

    /// Attaches the card of this number of a TD.
    ///
    /// # Errors
    /// A sentence.
    pub fn attach(&self, td: &config::Td, card: usize) -> Result<Card, String> {
        let (net, mac) = td.net.get(card).zip(td.mac(card)).ok_or("no such card")?;
        let name = &net.network;
        let mut all = self.all.iter();
        let Some((network, switch)) = all.find(|(network, _)| network.name == *name) else {
            return Err(format!(
                "its card is in network {name:?}, which this host does not have: write a [[network]] with this name into \
                 seamark.toml, or correct the mistake in it that \"boot\" shows"
            ));
        };
        let kind = net.port_in(network);
        let settings = Settings {
            mac: Mac::of(mac.0),
            is_trunk: kind == Port::Trunk,
            is_isolated: kind == Port::Isolated,
        };
        let attached = {
            let _alone = self.attaching.lock();
            switch.attach(settings)
        };
        let port = attached.map_err(|no_port| match no_port {
            NoPort::Full => format!("network {name:?}: {no_port}: terminate one of them"),
            NoPort::Taken(_) => {
                format!("network {name:?}: {no_port}: give one of the cards another mac")
            }
        })?;
        Ok(Card {
            port,
            kind,
            rate: net.rate.or(network.rate),
        })
    }
}
