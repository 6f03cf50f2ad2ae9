//! The way of a frame from a driver's chain to the switch.

use alloc::boxed::Box;
use core::cell::{Cell, OnceCell};

use super::frame::Frame;
use super::header::{ETHERNET, HEADER, LARGEST, MTU, Offloads, START, Start, TAG};
use super::large::Large;
use super::port::Count;
use super::rate::Rate;
use super::switch::{Attached, Touched};
use crate::chain::Chain;
use crate::device::Work;
use crate::queue::{Fault, Queue};

/// The cost after which the rest of the work waits, in copied bytes, and the number of chains.
const PART: usize = 256 << 10;
const CHAINS: usize = 64;
/// The least cost of a port that is tried, and that of a descriptor of a receiver's.
const PORT: usize = 1 << 10;
const DESCRIPTOR: usize = 256;

/// The sending side of a card.
#[derive(Debug)]
pub struct Sender {
    pub port: Attached,
    rate: Option<Rate>,
    /// The work that the driver leaves to others.
    pub leaves: Offloads,
    chain: Box<Chain>,
}

/// The rest of a part of the work, and the ports that have got frames.
#[derive(Debug)]
pub struct Part {
    cost: usize,
    chains: usize,
    touched: Touched,
}

impl Default for Part {
    fn default() -> Self {
        Self {
            cost: PART,
            chains: CHAINS,
            touched: Touched::default(),
        }
    }
}

impl Part {
    pub const fn is_over(&self) -> bool {
        self.cost == 0 || self.chains == 0
    }
}

impl Sender {
    pub fn new(port: Attached, rate: Option<Rate>) -> Self {
        Self {
            port,
            rate,
            leaves: Offloads::default(),
            chain: Box::default(),
        }
    }

    /// Sends what the driver has made available in the queue of a pair, until the part is over.
    pub fn send(
        &mut self,
        pair: usize,
        queue: &mut Queue,
        work: &Work<'_>,
        part: &mut Part,
    ) -> Result<(), Fault> {
        while !part.is_over() && queue.take(work.memory, &mut self.chain)? {
            part.chains -= 1;
            let cost = self.send_chain(pair, work, &mut part.touched)?;
            part.cost = part.cost.saturating_sub(cost);
            queue.complete(work.memory, self.chain.head, 0)?;
        }
        Ok(())
    }

    /// Tells the drivers of all ports that have got frames.
    pub fn publish(&self, work: &Work<'_>, part: &Part) {
        self.port.publish(work.memory, &part.touched);
    }

    /// Sends the frame in the chain. Returns its cost.
    fn send_chain(
        &mut self,
        pair: usize,
        work: &Work<'_>,
        touched: &mut Touched,
    ) -> Result<usize, Fault> {
        let mut payload = self.chain.readable();
        let mut raw = [0; START];
        let bytes = (payload.left() as usize).saturating_sub(HEADER);
        if !(ETHERNET..=LARGEST + ETHERNET + TAG).contains(&bytes) {
            return Ok(self.refuse(Count::Malformed));
        }
        payload.read(work.memory, &mut raw)?;
        let Some(start) = Start::read(&raw, bytes, self.leaves) else {
            return Ok(self.refuse(Count::Malformed));
        };
        let mut frame = Frame {
            memory: work.memory,
            start,
            headers: &[],
            payload,
            bytes,
            large: None,
            read: &Cell::new(0),
            flow: &OnceCell::new(),
        };
        let large;
        if start.segmentation.is_some() {
            large = Large::read(&raw, &start, bytes, work.memory, &mut frame.payload)?;
            let Some(large) = &large else {
                return Ok(self.refuse(Count::Malformed));
            };
            frame.headers = large.behind_addresses();
            frame.start.segmentation = Some(large.segmentation());
            frame.large = Some(large);
        } else if bytes > MTU + ETHERNET + TAG {
            return Ok(self.refuse(Count::Malformed));
        }
        let now_us = work.now.monotonic_us;
        let mut rate = self.rate.as_mut();
        if rate
            .as_mut()
            .is_some_and(|rate| !rate.take(bytes as u64, now_us))
        {
            return Ok(self.refuse(Count::Limited));
        }
        let ports = self.port.send(pair, &frame, touched)?;
        Ok(ports * bytes.max(PORT) + frame.read.get() * DESCRIPTOR)
    }

    #[cold]
    fn refuse(&self, why: Count) -> usize {
        self.port.add(why, 1);
        0
    }
}
