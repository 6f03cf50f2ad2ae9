//! The most that guests can make a CPU do which works for one of them: what a receiver costs a sender, what a sender costs
//! the next one that wants the receiver's port, and what a part of the work costs a TD that waits for the CPU.
//!
//! A CPU has the port of a receiver locked for a part of what a frame costs, and a connection for a part of what a packet
//! costs.

use std::sync::Arc;

use seam::abi::PAGE_4K;
use vcpu::Peer;
use virtio::net::{Mac, PORTS, Settings, Switch};
use virtio::vsock::{self, Hub};
use virtio::{Device, Net, Transport, Vsock};

use crate::td::{BUFFERS, Buffer, DEVICE, FAR, Shape, Td};

/// Largest number of descriptors of a card's queue, and of a socket device's.
const DESCRIPTORS: u64 = 256;
const SOCKET_DESCRIPTORS: u64 = 128;
/// Length of the longest frame, and of the header before it.
const FRAME: u64 = 1518;
const HEADER: u64 = 12;
/// The feature of a sender that leaves checksums to others. They are completed for a receiver without another one.
const CSUM: u64 = 1 << 0;
/// The address of all.
const ALL: u64 = 0xFFFF_FFFF_FFFF;
/// The destination of a message to all vCPUs, and the number of vCPUs of a large TD.
const TO_ALL: u64 = 0xFF;
const VCPUS: u32 = 64;
/// Length of a packet's header, and bytes that a connection holds.
const PACKET: u64 = 44;
const ROOM: u64 = 8 << 10;
/// Length of a payload that nobody looks at: a chain has a byte in each buffer.
const SMALL: u64 = 128;

/// A TD with a card.
const CARD: Shape = Shape {
    queues: 2,
    size: DESCRIPTORS,
    features: 0,
    vcpus: 1,
    destination: 0,
};

/// Returns a chain with so many descriptors. One buffer holds most of it. The others are one byte each, in turn in two pages
/// that are far from each other, of which no more than one is remembered.
fn scattered(descriptors: u64, bytes: u64, is_written: bool) -> Vec<Buffer> {
    let small = descriptors - 1;
    let single = (0..small).map(|at| (place(at % 2 == 0) + at, 1, is_written));
    let large = (place(true) + small, bytes - small, is_written);
    if is_written {
        // The single bytes of sender and receiver are not the same ones.
        std::iter::once(large).chain(single).collect()
    } else {
        single.chain([large]).collect()
    }
}

/// Returns the address of a page for buffers. Both have the same place among the pages that are remembered.
const fn place(is_near: bool) -> u64 {
    if is_near {
        (BUFFERS / PAGE_4K).next_multiple_of(16) * PAGE_4K
    } else {
        FAR
    }
}

/// Writes words from the start of both pages on.
fn fill(td: &Td, words: &[u64]) {
    for page in [true, false].map(place) {
        for (at, word) in (page..).step_by(8).zip(words) {
            td.set(at, *word);
        }
    }
}

/// Creates a TD with a device that others reach.
fn td<D: Device + 'static>(shape: Shape, device: impl FnOnce(Arc<Peer>) -> D) -> Td {
    let peer = Arc::new(Peer::new(DEVICE));
    let td = Td::of(Transport::new(device(peer.clone())), shape);
    td.reach(&peer);
    td.serve();
    td
}

/// A sender, and receivers that have chains of one kind.
struct Network {
    sender: Td,
    receivers: Vec<Td>,
    frame: Vec<Buffer>,
    chain: Vec<Buffer>,
}

impl Network {
    fn new(receivers: u64, chain: Vec<Buffer>, shape: Shape) -> Self {
        let switch = Arc::new(Switch::default());
        let card = |number: u64, shape| {
            let settings = Settings {
                mac: Mac(number),
                is_trunk: false,
                is_isolated: false,
            };
            let port = switch.attach(settings).expect("a free port");
            td(shape, |peer| Net::new(port, peer, None))
        };
        let sender = Shape {
            features: CSUM,
            ..CARD
        };
        let receivers = 2..2 + receivers;
        Self {
            sender: card(1, sender),
            receivers: receivers.map(|number| card(number, shape)).collect(),
            frame: scattered(DESCRIPTORS, HEADER + FRAME, false),
            chain,
        }
    }

    /// Receivers whose buffers are as scattered as the sender's.
    fn scattered(receivers: u64) -> Self {
        let chain = scattered(DESCRIPTORS, HEADER + FRAME, true);
        Self::new(receivers, chain, CARD)
    }

    /// Sends so many frames, whose checksum has to be completed. Returns `count` if all of them came, or if `is_lost` none
    /// of them.
    fn send(&self, to: u64, is_lost: bool, count: u64) -> u64 {
        // The checksum covers all behind the addresses.
        let header = 1 | 14 << 48;
        let to = to.swap_bytes() >> 16;
        fill(&self.sender, &[header, 16 | to << 32, to >> 32 | 1 << 56]);
        for done in 0..count {
            for receiver in &self.receivers {
                if !is_lost || done == 0 {
                    receiver.offer(0, &[&self.chain]);
                }
            }
            self.sender.offer(1, &[&self.frame]);
            let mut all = self.receivers.iter();
            let is_sent = self.sender.kick(1) && self.sender.is_done(1);
            if !is_sent || all.any(|receiver| receiver.is_done(0) == is_lost) {
                return done;
            }
        }
        count
    }
}

/// Frames to one receiver.
pub fn frames(count: u64) -> u64 {
    Network::scattered(1).send(2, false, count)
}

/// Frames to a receiver whose chain is as long as can be, and one byte too short for them.
pub fn refused(count: u64) -> u64 {
    let chain = scattered(DESCRIPTORS, HEADER + FRAME - 1, true);
    Network::new(1, chain, CARD).send(2, true, count)
}

/// Frames that a receiver with many vCPUs has interrupt them all.
pub fn interrupts(count: u64) -> u64 {
    let shape = Shape {
        vcpus: VCPUS,
        destination: TO_ALL,
        ..CARD
    };
    let whole = |is_written| vec![(place(true), HEADER + FRAME, is_written)];
    let network = Network {
        frame: whole(false),
        ..Network::new(1, whole(true), shape)
    };
    network.send(2, false, count)
}

/// Frames to all ports of a network.
pub fn broadcasts(count: u64) -> u64 {
    Network::scattered(PORTS as u64 - 1).send(ALL, false, count)
}

/// Packets between the socket devices of two TDs, each as large as the room of a connection.
pub fn packets(count: u64) -> u64 {
    const REQUEST: u16 = 1;
    const RESPONSE: u16 = 2;
    const DATA: u16 = 5;
    let hub = Arc::new(Hub::new([]));
    let shape = Shape {
        queues: 2,
        ..Shape::default()
    };
    let tds = [3, 4].map(|cid| {
        let settings = vsock::Settings {
            cid,
            peers: vec![7 - cid],
            ports: Vec::new(),
        };
        td(shape, |peer| {
            Vsock::new(hub.attach(settings, peer).expect("a free place"))
        })
    });
    let small = scattered(SOCKET_DESCRIPTORS, PACKET + SMALL, false);
    let large = scattered(SOCKET_DESCRIPTORS, PACKET + ROOM, false);
    let room = scattered(SOCKET_DESCRIPTORS, PACKET + ROOM, true);
    let offer = |side: usize, op: u16, packet: &[Buffer], bytes: u64| {
        // From a port of the same number as the TD; a stream; room for all that comes.
        let (own, other) = (3 + side as u64, 4 - side as u64);
        let kind = 1 << 32 | u64::from(op) << 48;
        let ports = own | other << 32;
        fill(
            &tds[side],
            &[own, other, ports, bytes | kind, u64::MAX << 32, 0],
        );
        tds[side].offer(1, &[packet]);
        tds[side].kick(1) && tds[side].is_done(1)
    };
    let take = |side: usize| {
        tds[side].offer(0, &[&room]);
        tds[side].kick(0) && tds[side].is_done(0)
    };
    let is_open =
        offer(0, REQUEST, &small, SMALL) && take(1) && offer(1, RESPONSE, &small, SMALL) && take(0);
    let is_sent = |_: &u64| offer(0, DATA, &large, ROOM) && take(1);
    (0..count).take_while(|at| is_open && is_sent(at)).count() as u64
}
