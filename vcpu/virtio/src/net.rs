//! The network card: a port of a [`Switch`].
//!
//! Source: VIRTIO 1.2, section 5.1.

mod buffers;
mod control;
mod deliver;
mod flow;
mod frame;
mod header;
mod large;
mod learned;
mod port;
mod rate;
mod receiver;
mod send;
mod spread;
mod sum;
mod switch;

use alloc::{boxed::Box, vec::Vec};
use core::fmt;

use devices::Other;
use virtio_spec::Id;
use virtio_spec::net::{F, S};

use crate::chain::{Chain, LONGEST};
use crate::device::{Device, Kind, News, Traffic, Work};
use crate::queue::{Fault, Queue};

use control::Control;
pub use header::Mac;
use header::{Offloads, has};
pub use port::{Count, PAIRS, Settings};
pub use rate::Rate;
use receiver::{Receiver, Takes};
use send::{Part, Sender};
use switch::ones;
pub use switch::{Attached, Gauge, NoPort, PORTS, Switch};

/// The queues: a pair to receive and to transmit for each of the guest's CPUs, then the control queue.
const QUEUES: [u16; 2 * PAIRS + 1] = [LONGEST as u16; 2 * PAIRS + 1];
/// Largest number of bytes in a chain: a driver that takes large frames whole offers a little more than their 64 KiB.
const MOST_BYTES: u64 = 128 << 10;
/// Largest number of buffers in a chain. Linux has at most 19, FreeBSD 64.
const MOST_SEGMENTS: usize = 64;

const FEATURES: F = F::CSUM
    .union(F::GUEST_CSUM)
    .union(F::HOST_TSO4)
    .union(F::HOST_TSO6)
    .union(F::GUEST_TSO4)
    .union(F::GUEST_TSO6)
    .union(F::MRG_RXBUF)
    .union(F::MAC)
    .union(F::STATUS)
    .union(F::CTRL_VQ)
    .union(F::CTRL_GUEST_OFFLOADS);
/// The work for others that a driver may take and leave at any time.
const DONE: u64 = bits(F::GUEST_CSUM.union(F::GUEST_TSO4).union(F::GUEST_TSO6));

/// Bytes of the device configuration: address, status, number of pairs.
const CONFIG: usize = 10;

const fn receive(pair: usize) -> usize {
    2 * pair
}

const fn transmit(pair: usize) -> usize {
    2 * pair + 1
}

const fn bits(features: F) -> u64 {
    features.bits().to_ne() as u64
}

/// The device.
pub struct Net {
    sender: Sender,
    guest: Other,
    config: [u8; CONFIG],
    /// Number of pairs.
    pairs: usize,
    /// The queue to transmit of each pair that the driver has set up.
    transmits: Box<[Option<Queue>]>,
    /// The pair whose turn it is.
    turn: usize,
    control: Option<Control>,
    /// Room for a command.
    command: Box<Chain>,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net")
            .field("port", &self.sender.port)
            .finish_non_exhaustive()
    }
}

impl Net {
    /// Creates the card of a guest, which others know as `guest`, at a port. `rate` limits what it sends. It has one pair of
    /// queues.
    #[must_use]
    pub fn new(port: Attached, guest: Other, rate: Option<Rate>) -> Self {
        let mut config = [0; CONFIG];
        config[..6].copy_from_slice(&port.mac().bytes());
        config[6..8].copy_from_slice(&S::LINK_UP.bits().to_ne().to_le_bytes());
        let card = Self {
            sender: Sender::new(port, rate),
            guest,
            config,
            pairs: 1,
            transmits: Box::default(),
            turn: 0,
            control: None,
            command: Box::default(),
        };
        card.with_pairs(1)
    }

    /// Gives the card a pair of queues for each of the guest's CPUs, up to [`PAIRS`].
    #[must_use]
    pub fn with_pairs(mut self, cpus: usize) -> Self {
        self.pairs = cpus.clamp(1, PAIRS);
        self.config[8..].copy_from_slice(&(self.pairs as u16).to_le_bytes());
        self
    }

    /// Returns the port.
    #[must_use]
    pub const fn port(&self) -> &Attached {
        &self.sender.port
    }

    /// Sends what the driver has made available, each pair in its turn. Returns whether there is more.
    fn send(&mut self, work: &mut Work<'_>) -> Result<bool, Fault> {
        let mut part = Part::default();
        let pairs = self.transmits.len();
        let mut result = Ok(false);
        for number in 0..pairs {
            let pair = (self.turn + number) % pairs;
            let Some(queue) = &mut self.transmits[pair] else {
                continue;
            };
            if !work.is_notified(transmit(pair)) {
                continue;
            }
            if part.is_over() {
                (self.turn, result) = (pair, Ok(true));
                break;
            }
            match send(&mut self.sender, pair, queue, work, &mut part) {
                Ok(has_more) => result = result.map(|before| before | has_more),
                Err(fault) => {
                    result = Err(fault);
                    break;
                }
            }
        }
        self.sender.publish(work, &part);
        result
    }
}

/// Sends what is in the queue of a pair, and tells the driver. Returns whether there is more.
fn send(
    sender: &mut Sender,
    pair: usize,
    queue: &mut Queue,
    work: &mut Work<'_>,
    part: &mut Part,
) -> Result<bool, Fault> {
    sender.send(pair, queue, work, part)?;
    work.publish(transmit(pair), queue)?;
    queue.request_notification(work.memory)
}

impl Device for Net {
    fn kind(&self) -> Kind {
        let features = match self.pairs {
            1 => FEATURES,
            _ => FEATURES.union(F::MQ),
        };
        Kind {
            id: Id::Net,
            class: 0x02_0000,
            features: bits(features),
            queues: &QUEUES[..2 * self.pairs + 1],
            most_bytes: MOST_BYTES,
            most_segments: MOST_SEGMENTS,
        }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn start(&mut self, features: u64, queues: Box<[Option<Queue>]>) {
        let has = |feature| has(features, feature);
        let pairs = match has(F::MQ) && has(F::CTRL_VQ) {
            true => self.pairs,
            false => 1,
        };
        self.sender.leaves = Offloads::sent(features);
        let takes = Takes {
            offloads: Offloads::received(features),
            spread: has(F::MRG_RXBUF),
        };
        let mut queues = queues.into_iter();
        let mut transmits = Vec::with_capacity(pairs);
        for pair in 0..pairs {
            let receiver = queues.next().flatten();
            transmits.push(queues.next().flatten());
            self.sender.port.receive(
                pair,
                receiver.map(|queue| Receiver {
                    guest: self.guest.clone(),
                    queue,
                    chain: Box::default(),
                    takes,
                    fault: None,
                }),
            );
        }
        (self.transmits, self.turn) = (transmits.into(), 0);
        // Without MQ the control queue is the third one.
        let control = queues.next().flatten().filter(|_| has(F::CTRL_VQ));
        self.control = control.map(|queue| Control {
            queue,
            index: 2 * pairs,
            pairs,
            offloads: has(F::CTRL_GUEST_OFFLOADS).then_some(features & DONE),
        });
    }

    fn reset(&mut self) {
        self.transmits = Box::default();
        self.control = None;
        self.sender.port.close();
    }

    fn set_master(&mut self, is_on: bool) {
        self.sender.port.open(is_on);
    }

    fn serve(&mut self, work: &mut Work<'_>) -> Result<bool, Fault> {
        let News { raised, .. } = self.news()?;
        work.raise_all(raised);
        let has_commands = match &mut self.control {
            Some(control) if work.is_notified(control.index) => {
                control.serve(&self.sender.port, &mut self.command, work)?
            }
            _ => false,
        };
        Ok(self.send(work)? | has_commands)
    }

    fn news(&mut self) -> Result<News, Fault> {
        let news = self.sender.port.take_news()?;
        Ok(News {
            raised: ones(news).fold(0, |raised, pair| raised | 1 << receive(pair)),
            has_more: false,
        })
    }

    fn traffic(&self) -> Traffic {
        let count = |count| self.sender.port.count(count);
        let dropped = [
            Count::Full,
            Count::Spoofed,
            Count::Malformed,
            Count::Limited,
        ];
        Traffic {
            to_guest: count(Count::ReceivedBytes),
            from_guest: count(Count::SentBytes),
            dropped: dropped.map(count).iter().sum(),
        }
    }

    fn retire(&mut self) {
        self.reset();
        self.sender.port.release();
    }
}
