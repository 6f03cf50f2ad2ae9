//! The virtual functions that a TD has by its configuration: a virtio console, disks, network cards, and a socket
//! device.

use alloc::{
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};

use config::{Port, TdConsole};
use devices::pci::{Function, Usage};
use sync::Mutex;
use vcpu::{Console, Peer, Vm};
use virtio::net::{Count, Gauge, Mac};
use virtio::{Block, Device, Disk, Net, Transport};

use super::{networks::Networks, sockets::Sockets};
use crate::td::{Td, files::Content};

/// A function of the PCI bus.
pub(super) type OnBus = Arc<Mutex<dyn Function>>;

/// The virtual functions of a TD, before its guest exists.
#[derive(Default)]
pub(super) struct Equipment {
    /// The functions, in the order of their devices.
    pub functions: Vec<OnBus>,
    /// Their descriptions for the operator.
    pub fixtures: Vec<Fixture>,
    /// Those that other TDs reach.
    peers: Vec<Arc<Peer>>,
}

/// A virtual function of a TD, for the operator.
#[derive(Debug)]
pub struct Fixture {
    /// The device's number on the TD's bus.
    pub device: u8,
    /// The kind of device.
    pub kind: &'static str,
    /// The file of a disk, or the network of a card.
    pub name: String,
    /// The port of a card.
    pub port: Option<PortFacts>,
}

/// The port of a network card.
#[derive(Debug)]
pub struct PortFacts {
    /// The card's address.
    pub mac: Mac,
    /// The kind of port.
    pub kind: Port,
    /// Bytes per second that the TD may send.
    pub rate: Option<u64>,
    gauge: Gauge,
}

impl PortFacts {
    /// Returns whether the TD has the port. It gives it back at its end.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.gauge.is_taken()
    }

    /// Returns a count of the port in this life of the TD.
    #[must_use]
    pub fn count(&self, count: Count) -> u64 {
        self.gauge.count(count).unwrap_or(0)
    }
}

/// A virtual function of a TD, and its use.
#[derive(Debug)]
pub struct FixtureUse<'f> {
    /// The function.
    pub fixture: &'f Fixture,
    /// Its use in this life of the TD.
    pub usage: Usage,
}

impl Equipment {
    /// Makes the virtual functions of a TD with this console. The first one becomes device `first`.
    ///
    /// # Errors
    /// A sentence: the host has not enough memory for what the TD may write to a disk, or a network has no port for it.
    pub fn new(
        td: &Td,
        console: &Arc<Console>,
        networks: &Networks,
        first: u8,
    ) -> Result<Self, String> {
        let config = td.config();
        let mut all = Self::default();
        if config.console == TdConsole::Virtio {
            let console = virtio::Console::new(console.clone(), console.with_script().clone());
            all.add(console, all.fixture(first, "console", ""));
        }
        for (disk, content) in config.disk.iter().zip(td.disks()) {
            let device = open(disk, content).map_err(|error| error.to_string())?;
            all.add(Block::new(device), all.fixture(first, "disk", &disk.file));
        }
        for (number, net) in config.net.iter().enumerate() {
            let card = networks.attach(config, number)?;
            let mut fixture = all.fixture(first, "network card", &net.network);
            let peer = Arc::new(Peer::new(fixture.device));
            fixture.port = Some(PortFacts {
                mac: card.port.mac(),
                kind: card.kind,
                rate: card.rate,
                gauge: card.port.gauge(),
            });
            let limit = card.limit();
            let device = Net::new(card.port, peer.clone(), limit);
            // Each vCPU sends and receives by queues of its own.
            let device = device.with_pairs(td.vcpus().count().into());
            all.add(device, fixture);
            all.peers.push(peer);
        }
        Ok(all)
    }

    /// Adds the TD's socket device, if it has one. The first function is device `first`.
    ///
    /// # Errors
    /// A sentence: the device has no place among those of other TDs.
    pub fn with_socket(mut self, td: &Td, sockets: &Sockets, first: u8) -> Result<Self, String> {
        if let Some(vsock) = &td.config().vsock {
            let fixture = self.fixture(first, "socket device", "");
            let peer = Arc::new(Peer::new(fixture.device));
            self.add(sockets.device(vsock, peer.clone())?, fixture);
            self.peers.push(peer);
        }
        Ok(self)
    }

    /// Lets other TDs reach the functions of this guest.
    pub fn belong_to(&self, vm: &Arc<Vm>) {
        self.peers.iter().for_each(|peer| peer.belong_to(vm));
    }

    /// Describes the next function.
    fn fixture(&self, first: u8, kind: &'static str, name: &str) -> Fixture {
        Fixture {
            device: first + self.functions.len() as u8,
            kind,
            name: name.into(),
            port: None,
        }
    }

    fn add(&mut self, device: impl Device + 'static, fixture: Fixture) {
        let function = Arc::new(Mutex::new(Transport::new(device)));
        self.functions.push(function);
        self.fixtures.push(fixture);
    }
}

fn open(config: &config::Disk, content: &Content) -> Result<Disk, virtio::NoRoom> {
    let disk = Disk::read_only(Arc::new(content.clone()), config.serial());
    match config.overlay {
        Some(bytes) => disk.with_overlay(bytes),
        None => Ok(disk),
    }
}
