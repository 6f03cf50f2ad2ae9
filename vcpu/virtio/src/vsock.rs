//! The socket device: stream connections to services of the host, and to other guests, through a [`Hub`].
//!
//! The memory of all connections is taken when the device is created. A guest that does not take what is for it holds up
//! its own connections alone. Its packets that belong to no connection are answered; once too many of these answers wait
//! for buffers, the guest's next packets wait as well.
//!
//! Source: VIRTIO 1.2, section 5.10.

mod connection;
mod credit;
mod header;
mod hub;
mod link;
mod sockets;

use alloc::boxed::Box;
use core::fmt;

use devices::{Memory, Now};
use virtio_spec::Id;

use crate::chain::{Chain, LONGEST};
use crate::device::{Device, Kind, News, Traffic, Work};
use crate::queue::{Fault, Queue};

use header::HEADER;
#[cfg(test)]
pub use header::Header;
pub use header::{Address, Shut};
pub use hub::{Attached, Caller, Hub, MEMBERS, NoPlace, Service, Settings};
pub use link::{CAPACITY, End, Link, Seen};
use sockets::Sockets;

/// Indices of the queues: what the guest receives, and what it transmits. The third one, for events, is not used.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Largest sizes of the queues.
const QUEUES: &[u16] = &[128, 128, 8];
/// Largest number of bytes in a chain.
const MOST_BYTES: u64 = (64 << 10) + HEADER as u64;
/// Number of bytes after which the rest of the work waits, and of chains.
const PART: usize = 32 << 10;
const CHAINS: usize = 64;

/// The device.
pub struct Vsock {
    config: [u8; 8],
    receive: Option<Queue>,
    transmit: Option<Queue>,
    chain: Box<Chain>,
    sockets: Sockets,
    traffic: Traffic,
}

impl fmt::Debug for Vsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vsock")
            .field("cid", &u64::from_le_bytes(self.config))
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

impl Vsock {
    /// Creates the device of a guest.
    #[must_use]
    pub fn new(member: Attached) -> Self {
        Self {
            config: member.cid().to_le_bytes(),
            receive: None,
            transmit: None,
            chain: Box::default(),
            sockets: Sockets::new(member),
            traffic: Traffic::default(),
        }
    }

    /// Returns the number of connections.
    #[must_use]
    pub const fn connections(&self) -> usize {
        self.sockets.count()
    }

    /// Takes what the guest has sent. Returns whether there is more to take.
    fn transmit(&mut self, work: &mut Work<'_>) -> Result<bool, Fault> {
        let Some(queue) = &mut self.transmit else {
            return Ok(false);
        };
        let mut left = PART;
        for _ in 0..CHAINS {
            if left == 0 || self.sockets.is_full() || !queue.take(work.memory, &mut self.chain)? {
                break;
            }
            let bytes = self.sockets.heed(&self.chain, work)?;
            left = left.saturating_sub(bytes);
            self.traffic.from_guest += bytes as u64;
            queue.complete(work.memory, self.chain.head, 0)?;
        }
        work.publish(TRANSMIT, queue)?;
        queue.request_notification(work.memory)
    }

    /// Gives the guest what is for it, as far as it has buffers. Returns whether more may come at once.
    fn receive(&mut self, work: &mut Work<'_>) -> Result<bool, Fault> {
        let Some(queue) = &mut self.receive else {
            return Ok(false);
        };
        let mut left = PART;
        let mut has_buffers = true;
        for _ in 0..CHAINS {
            let pending = self.sockets.next().filter(|_| left > 0);
            let Some(pending) = pending else {
                break;
            };
            has_buffers = queue.take(work.memory, &mut self.chain)?;
            if !has_buffers {
                break;
            }
            let mut into = self.chain.writable();
            if into.left() <= HEADER as u64 {
                return Err(Fault::Request);
            }
            let bytes = self.sockets.write(pending, &mut into, work)?;
            left = left.saturating_sub(bytes);
            self.traffic.to_guest += bytes as u64;
            queue.complete(work.memory, self.chain.head, bytes as u32)?;
        }
        work.publish(RECEIVE, queue)?;
        let has_new = queue.request_notification(work.memory)?;
        // The other sides may answer to what the guest took.
        Ok(if has_buffers { left < PART } else { has_new })
    }

    fn work(&mut self, work: &mut Work<'_>) -> Result<bool, Fault> {
        self.sockets.take_asked();
        let sends = self.transmit(work)?;
        let was_full = self.sockets.is_full();
        // Services answer at once.
        self.sockets.tell(work.memory, work.now);
        let receives = self.receive(work)?;
        self.sockets.tell(work.memory, work.now);
        let is_stuck = was_full && self.sockets.is_full();
        Ok(receives || sends && !is_stuck)
    }
}

impl Device for Vsock {
    fn kind(&self) -> Kind {
        Kind {
            id: Id::Vsock,
            class: 0x07_8000,
            features: 0,
            queues: QUEUES,
            most_bytes: MOST_BYTES,
            most_segments: LONGEST,
        }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn start(&mut self, _: u64, queues: Box<[Option<Queue>]>) {
        let mut queues = queues.into_iter();
        self.receive = queues.next().flatten();
        self.transmit = queues.next().flatten();
        self.sockets.listen();
    }

    fn reset(&mut self) {
        (self.receive, self.transmit) = (None, None);
        self.sockets.clear();
    }

    fn serve(&mut self, work: &mut Work<'_>) -> Result<bool, Fault> {
        let served = self.work(work);
        if served.is_err() {
            self.sockets.clear();
            self.sockets.tell(work.memory, work.now);
        }
        served
    }

    fn rest(&mut self, memory: &dyn Memory, now: Now) {
        self.sockets.tell(memory, now);
    }

    fn news(&mut self) -> Result<News, Fault> {
        // All of it is work with the guest's memory.
        Ok(News {
            has_more: true,
            ..News::default()
        })
    }

    fn traffic(&self) -> Traffic {
        Traffic {
            dropped: self.sockets.refused(),
            ..self.traffic
        }
    }

    fn retire(&mut self) {
        self.reset();
        self.sockets.leave();
    }
}
