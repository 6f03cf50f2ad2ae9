//! The networks of TDs and the virtual devices, for the operator.

use alloc::{string::ToString, vec::Vec};

use console::host::{
    device::TdDevice,
    network::{Network, NetworkCard},
};
use host::{
    platform::Running,
    sched::{FixtureUse, PortCount as Count, PortFacts, Scheduler},
};

/// Returns the networks with the cards of these TDs, which have a number and a name each.
pub fn networks<P: Running>(scheduler: &Scheduler<'_, P>, tds: &[(u32, &str)]) -> Vec<Network> {
    let mut networks: Vec<_> = scheduler.networks().map(Network::from).collect();
    for (id, td) in tds {
        scheduler.fixtures(*id, &mut |used| {
            let name = &used.fixture.name;
            let port = used.fixture.port.as_ref().filter(|port| port.is_taken());
            let network = networks.iter_mut().find(|network| network.name == *name);
            if let Some((port, network)) = port.zip(network) {
                network.cards.push(card(td, &used, port));
            }
        });
    }
    networks
}

fn card(td: &str, used: &FixtureUse<'_>, port: &PortFacts) -> NetworkCard {
    NetworkCard {
        td: td.into(),
        device: used.fixture.device,
        mac: port.mac.to_string(),
        port: port.kind.name(),
        rate_bytes: port.rate,
        running: used.usage.is_running,
        sent_frames: port.count(Count::Sent),
        sent_bytes: port.count(Count::SentBytes),
        received_frames: port.count(Count::Received),
        received_bytes: port.count(Count::ReceivedBytes),
        no_buffer: port.count(Count::Full),
        spoofed: port.count(Count::Spoofed),
        malformed: port.count(Count::Malformed),
        limited: port.count(Count::Limited),
    }
}

/// Returns the virtual devices of a TD.
pub fn devices<P: Running>(scheduler: &Scheduler<'_, P>, id: u32) -> Vec<TdDevice> {
    let mut devices = Vec::new();
    scheduler.fixtures(id, &mut |used| {
        let FixtureUse { fixture, usage } = used;
        devices.push(TdDevice {
            device: fixture.device,
            kind: fixture.kind,
            name: Some(fixture.name.clone()).filter(|name| !name.is_empty()),
            running: usage.is_running,
            queues: usage.queues,
            notifications: usage.notifications,
            interrupts: usage.interrupts,
            to_guest_bytes: usage.to_guest,
            from_guest_bytes: usage.from_guest,
            dropped: usage.dropped,
            problem: usage.fault,
        });
    });
    devices
}
