//! The most that guests can make a CPU do which works for one of them: what a receiver costs a sender, what a sender costs
//! the next one that wants the receiver's port, and what a part of the work costs a TD that waits for the CPU.
//!
//! A CPU has the port of a receiver locked for a part of what a frame costs, and a connection for a part of what a packet
//! costs.

use std::sync::Arc;

use seam::abi::PAGE_4K;
use vcpu::Peer;
use virtio::net::{Mac, PORTS, Settings, Switch};
use virtio::vsock::{self, Hub, MEMBERS};
use virtio::{Device, Net, Transport, Vsock};

use crate::td::{BUFFERS, Buffer, DEVICE, FAR, Shape, Td};

/// Number of descriptors of a card's queue; the largest numbers in a chain of a card, in a chain of a socket device, and in
/// all buffers of a receiver for one frame.
const QUEUE: u64 = 256;
const DESCRIPTORS: u64 = 64;
const SOCKET_DESCRIPTORS: u64 = 128;
const FOR_FRAME: u64 = 512;
/// Length of the longest frame that is not cut, and of the header before a frame.
const FRAME: u64 = 1518;
const HEADER: u64 = 12;
/// The features of a sender that leaves checksums and segmentation to others, and that of a receiver which takes a frame in
/// several buffers.
const LEAVES: u64 = 1 << 0 | 1 << 11;
const SPREAD: u64 = 1 << 15;
/// The most segments of a large frame, their length, and that of the headers before each.
const SEGMENTS: u64 = 128;
const SEGMENT: u64 = 500;
const HEADERS: u64 = 54;
/// The address of all.
const ALL: u64 = 0xFFFF_FFFF_FFFF;
/// The destination of a message to all vCPUs, and the number of vCPUs of a large TD.
const TO_ALL: u64 = 0xFF;
const VCPUS: u32 = 64;
/// Length of a packet's header, and bytes that a connection holds.
const PACKET: u64 = 44;
const ROOM: u64 = 8 << 10;
/// The fields of a packet without payload: a stream, and the operation that asks for a connection.
const REQUEST_OF_STREAM: u64 = 1 << 32 | 1 << 48;
/// Length of a payload that nobody looks at: a chain has a byte in each buffer.
const SMALL: u64 = 128;

/// A TD with a card.
const CARD: Shape = Shape {
    queues: 2,
    size: QUEUE,
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
    /// Number of chains for each frame.
    chains: u64,
    /// The frame is to be cut.
    is_large: bool,
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
            features: LEAVES,
            ..CARD
        };
        let receivers = 2..2 + receivers;
        Self {
            sender: card(1, sender),
            receivers: receivers.map(|number| card(number, shape)).collect(),
            frame: scattered(DESCRIPTORS, HEADER + FRAME, false),
            chain,
            chains: 1,
            is_large: false,
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
        let start = if self.is_large { large() } else { small() };
        let to = &Mac(to).bytes();
        let start: Vec<_> = [&start[..12], to, &start[18..]].concat();
        let words = start.as_chunks().0.iter();
        let words: Vec<_> = words.map(|word| u64::from_le_bytes(*word)).collect();
        fill(&self.sender, &words);
        for done in 0..count {
            for receiver in &self.receivers {
                if !is_lost || done == 0 {
                    receiver.offer_again(0, &self.chain, self.chains);
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

/// Returns the first bytes of a frame from TD 1 whose checksum covers all behind the addresses.
fn small() -> [u8; 72] {
    let mut start = [0; 72];
    (start[0], start[6], start[8]) = (1, 14, 16);
    start[HEADER as usize + 11] = 1;
    start
}

/// Returns those of a large frame of TCP over IPv4.
fn large() -> [u8; 72] {
    let mut start = small();
    let length = HEADERS - 14 + SEGMENTS * SEGMENT;
    start[1] = 1;
    start[2..4].copy_from_slice(&(HEADERS as u16).to_le_bytes());
    start[4..6].copy_from_slice(&(SEGMENT as u16).to_le_bytes());
    start[6] = 34;
    let frame = &mut start[HEADER as usize..];
    frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    frame[16..18].copy_from_slice(&(length as u16).to_be_bytes());
    (frame[22], frame[23]) = (64, 6);
    frame[46] = 5 << 4;
    start
}

/// Frames to one receiver.
pub fn frames(count: u64) -> u64 {
    Network::scattered(1).send(2, false, count)
}

/// Frames to a receiver whose chain has as many descriptors as can be, and is a byte too short for them.
pub fn refused(count: u64) -> u64 {
    let chain = scattered(DESCRIPTORS, HEADER + FRAME - 1, true);
    Network::new(1, chain, CARD).send(2, true, count)
}

/// Frames that are spread over as many descriptors as a receiver may have for one.
pub fn spread(count: u64) -> u64 {
    let bytes = (HEADER + FRAME).div_ceil(FOR_FRAME);
    let pieces = (0..DESCRIPTORS).map(|at| (place(at % 2 == 0) + bytes * at, bytes, true));
    let shape = Shape {
        features: SPREAD,
        ..CARD
    };
    let network = Network {
        chains: FOR_FRAME / DESCRIPTORS,
        ..Network::new(1, pieces.collect(), shape)
    };
    network.send(2, false, count)
}

/// Large frames that are cut for a receiver.
pub fn cut(count: u64) -> u64 {
    let chain = scattered(FOR_FRAME / SEGMENTS, HEADER + HEADERS + SEGMENT, true);
    let bytes = HEADER + HEADERS + SEGMENTS * SEGMENT;
    let network = Network {
        frame: scattered(DESCRIPTORS, bytes, false),
        chains: SEGMENTS,
        is_large: true,
        ..Network::new(1, chain, CARD)
    };
    network.send(2, false, count)
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

/// Requests of a connection with the last one of as many guests as there can be, all of which the guest may connect with.
/// That one's driver is not ready, and the request is answered by a reset.
pub fn requests(count: u64) -> u64 {
    const OWN: u64 = 3;
    const OTHERS: std::ops::Range<u64> = OWN + 1..OWN + MEMBERS as u64;
    let hub = Arc::new(Hub::new([]));
    let settings = |cid, peers| vsock::Settings {
        cid,
        peers,
        ports: Vec::new(),
    };
    let shape = Shape {
        queues: 2,
        ..Shape::default()
    };
    let asking = td(shape, |peer| {
        let settings = settings(OWN, OTHERS.collect());
        Vsock::new(hub.attach(settings, peer).expect("a free place"))
    });
    let others = OTHERS.map(|cid| hub.attach(settings(cid, vec![OWN]), Arc::new(())));
    let others: Vec<_> = others.map(|other| other.expect("a free place")).collect();
    let to = OTHERS.end - 1;
    fill(
        &asking,
        &[OWN, to, 1 | 2 << 32, REQUEST_OF_STREAM, u64::MAX << 32, 0],
    );
    let packet = [(place(true), PACKET, false)];
    let answer = [(place(false) + 1024, 2 * PACKET, true)];
    let is_refused = |_: &u64| {
        asking.offer(0, &[&answer]);
        asking.offer(1, &[&packet]);
        asking.kick(1) && asking.is_done(0) && asking.is_done(1)
    };
    let refused = (0..count).take_while(is_refused).count() as u64;
    drop(others);
    refused
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
