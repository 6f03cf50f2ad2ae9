//! The socket devices of TDs: the hub that connects them, and the host's services at it.

use alloc::{
    format,
    string::{String, ToString},
    sync::Arc,
};

use config::VsockService;
use vcpu::{
    Peer,
    quotes::{self, QuotePort, Quotes},
};
use virtio::{
    Vsock,
    vsock::{Hub, NoPlace, Service, Settings},
};

/// The hub and its services.
#[derive(Debug)]
pub(super) struct Sockets {
    hub: Arc<Hub>,
    quotes: Arc<QuotePort>,
}

impl Default for Sockets {
    fn default() -> Self {
        let quotes = QuotePort::new();
        let service: Arc<dyn Service> = quotes.clone();
        Self {
            hub: Arc::new(Hub::new([(quotes::PORT, service)])),
            quotes,
        }
    }
}

impl Sockets {
    /// Creates the socket device of a TD, which others know as `peer`.
    ///
    /// # Errors
    /// A sentence.
    pub fn device(&self, config: &config::Vsock, peer: Arc<Peer>) -> Result<Vsock, String> {
        let ports = config.services.iter().map(|service| match service {
            VsockService::Quote => quotes::PORT,
        });
        let settings = Settings {
            cid: config.cid,
            peers: config.peers.clone(),
            ports: ports.collect(),
        };
        let member = self.hub.attach(settings, peer);
        Ok(Vsock::new(member.map_err(|no_place| match no_place {
            NoPlace::Taken(_) => format!("{no_place}: give one of them another cid"),
            NoPlace::Full => no_place.to_string(),
        })?))
    }

    /// Creates the quotes of a TD.
    pub fn quotes(&self) -> Quotes {
        Quotes::new(self.quotes.clone())
    }

    /// Finds that the TD with the quoting service has ended, if it has.
    pub fn look(&self) {
        self.quotes.look();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_tds_that_run_have_two_cids() {
        let sockets = Sockets::default();
        let config = config::Vsock {
            cid: 7,
            peers: [8].into(),
            services: [VsockService::Quote].into(),
        };
        let peer = || Arc::new(Peer::new(1));
        let first = sockets.device(&config, peer()).unwrap();
        let refused = sockets.device(&config, peer()).unwrap_err();
        assert_eq!(
            refused,
            "another TD that runs has the vsock cid 7: give one of them another cid"
        );
        drop(first);
        assert!(sockets.device(&config, peer()).is_ok());
    }
}
