//! The network card: a port of a [`Switch`].
//!
//! Source: VIRTIO 1.2, section 5.1.

mod deliver;
mod header;
mod learned;
mod port;
mod rate;
mod switch;

use alloc::boxed::Box;
use core::fmt;

use virtio_spec::Id;
use virtio_spec::net::{F, S};

use crate::chain::Chain;
use crate::queue::{Fault, Queue};
use crate::transport::{Device, Kind, News, Traffic, Work};

use deliver::{Frame, Receiver};
use devices::Other;
pub use header::Mac;
use header::{ETHERNET, HEADER, LONGEST, START, Start};
pub use port::{Count, Settings};
pub use rate::Rate;
use switch::Touched;
pub use switch::{Attached, Gauge, NoPort, PORTS, Switch};

const QUEUES: &[u16] = &[256, 256];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Largest number of bytes in a chain.
const MOST_BYTES: u64 = 64 << 10;
/// Number of copied bytes after which the rest of the work waits, and of chains.
const PART: usize = 64 << 10;
const CHAINS: usize = 64;

/// The driver leaves checksums to others; it completes them.
const CHECKSUMS: u64 = bits(F::CSUM);
const COMPLETES: u64 = bits(F::GUEST_CSUM);
const FEATURES: u64 = CHECKSUMS | COMPLETES | bits(F::MAC) | bits(F::STATUS);

const fn bits(feature: F) -> u64 {
    feature.bits().to_ne() as u64
}

/// Bytes of the device configuration: address, status, pairs of queues.
const CONFIG: usize = 10;

/// The device.
pub struct Net {
    port: Attached,
    guest: Other,
    rate: Option<Rate>,
    config: [u8; CONFIG],
    transmit: Option<Queue>,
    chain: Box<Chain>,
    has_checksums: bool,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net")
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl Net {
    /// Creates the card of a guest, which others know as `guest`, at a port. `rate` limits what it sends.
    #[must_use]
    pub fn new(port: Attached, guest: Other, rate: Option<Rate>) -> Self {
        let mut config = [0; CONFIG];
        config[..6].copy_from_slice(&port.mac().bytes());
        config[6..8].copy_from_slice(&S::LINK_UP.bits().to_ne().to_le_bytes());
        config[8] = 1;
        Self {
            port,
            guest,
            rate,
            config,
            transmit: None,
            chain: Box::default(),
            has_checksums: false,
        }
    }

    /// Returns the port.
    #[must_use]
    pub const fn port(&self) -> &Attached {
        &self.port
    }

    /// Sends what the driver has made available. Returns whether there is more.
    fn send(&mut self, work: &mut Work<'_>) -> Result<bool, Fault> {
        let Some(queue) = &mut self.transmit else {
            return Ok(false);
        };
        let mut touched = Touched::default();
        let mut left = PART;
        let mut result = Ok(());
        for _ in 0..CHAINS {
            if left == 0 || !queue.take(work.memory, &mut self.chain)? {
                break;
            }
            let chain = &self.chain;
            let now_us = work.now.monotonic_us;
            let copied = match frame(chain, work, self.has_checksums)? {
                None => {
                    self.port.add(Count::Malformed, 1);
                    Ok(0)
                }
                Some(frame) => {
                    let bytes = frame.bytes;
                    let rate = &mut self.rate;
                    if rate
                        .as_mut()
                        .is_none_or(|rate| rate.take(bytes as u64, now_us))
                    {
                        let copies = self.port.send(&frame, &mut touched);
                        copies.map(|copies| copies * bytes)
                    } else {
                        self.port.add(Count::Limited, 1);
                        Ok(0)
                    }
                }
            };
            match copied {
                // A frame that is not copied costs as much as a short one.
                Ok(bytes) => left = left.saturating_sub(bytes.max(ETHERNET)),
                Err(fault) => {
                    result = Err(fault);
                    break;
                }
            }
            queue.complete(work.memory, chain.head, 0)?;
        }
        self.port.publish(work.memory, touched);
        result?;
        work.publish(TRANSMIT, queue)?;
        queue.request_notification(work.memory)
    }
}

/// Reads the start of the frame in a chain. Returns `None` if it is no frame, or its header lies.
fn frame<'f>(
    chain: &'f Chain,
    work: &Work<'f>,
    has_checksums: bool,
) -> Result<Option<Frame<'f>>, Fault> {
    let mut payload = chain.readable();
    let mut start = [0; START];
    let bytes = (payload.left() as usize).saturating_sub(HEADER);
    if !(ETHERNET..=LONGEST).contains(&bytes) {
        return Ok(None);
    }
    payload.read(work.memory, &mut start)?;
    let start = Start::read(&start, bytes, has_checksums);
    Ok(start.map(|start| Frame {
        memory: work.memory,
        start,
        payload,
        bytes,
    }))
}

impl Device for Net {
    fn kind(&self) -> Kind {
        Kind {
            id: Id::Net,
            class: 0x02_0000,
            features: FEATURES,
            queues: QUEUES,
            most_bytes: MOST_BYTES,
        }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn start(&mut self, features: u64, queues: Box<[Option<Queue>]>) {
        let mut queues = queues.into_iter();
        let receive = queues.next().flatten();
        self.transmit = queues.next().flatten();
        self.has_checksums = features & CHECKSUMS != 0;
        self.port.receive(receive.map(|queue| Receiver {
            guest: self.guest.clone(),
            queue,
            chain: Box::default(),
            has_checksums: features & COMPLETES != 0,
            fault: None,
        }));
    }

    fn reset(&mut self) {
        self.transmit = None;
        self.port.receive(None);
    }

    fn set_master(&mut self, is_on: bool) {
        self.port.open(is_on);
    }

    fn serve(&mut self, work: &mut Work<'_>) -> Result<bool, Fault> {
        if self.news()?.raised != 0 {
            work.raise(RECEIVE);
        }
        if work.is_notified(TRANSMIT) {
            self.send(work)
        } else {
            Ok(false)
        }
    }

    fn news(&mut self) -> Result<News, Fault> {
        let (has_news, fault) = self.port.take_news();
        match fault {
            Some(fault) => Err(fault),
            None => Ok(News {
                raised: u64::from(has_news) << RECEIVE,
                has_more: false,
            }),
        }
    }

    fn traffic(&self) -> Traffic {
        let count = |count| self.port.count(count);
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
        self.port.release();
    }
}
