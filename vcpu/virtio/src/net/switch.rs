//! A switch: the ports of one network, and the way of a frame from one to another.
//!
//! A CPU that sends copies the frame from the sender's memory to the receiver's, once. It takes the lock of the receiver's
//! port for that copy. Those who take it get it in turn, and hold it for one frame, or to hand over a queue; none of them
//! waits for a guest, so no receiver can hold up a sender. A receiver without a free buffer loses the frame.
//!
//! A port has one address, and frames with another source are dropped. Only a trunk port, behind which a guest bridges to
//! another network, has many: the switch learns them. Only trunk ports get frames for addresses that are not known.

use alloc::{boxed::Box, sync::Arc};
use core::fmt;

use devices::Memory;
use sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};

use super::buffers::Lost;
use super::deliver::put;
use super::flow;
use super::frame::Frame;
use super::header::{Mac, Offloads, Start};
use super::learned::Learned;
use super::port::{Count, PAIRS, Port, Settings, Tag};
use super::receiver::Receiver;
use crate::queue::Fault;

/// Largest number of ports.
pub const PORTS: usize = 32;

/// The news of a port that its driver has broken a rule, beside a bit for each pair.
const FAULT: u64 = 1 << PAIRS;

/// The switch.
#[derive(Debug)]
pub struct Switch {
    ports: Box<[Port]>,
    /// One more than the last port that was ever taken.
    end: AtomicUsize,
    learned: Learned,
}

/// A port of a switch. It is given back when this is dropped.
#[derive(Debug)]
pub struct Attached {
    switch: Arc<Switch>,
    index: usize,
    tag: Tag,
    /// Which of the port's guests this is.
    life: u64,
    /// The port was given back.
    is_over: AtomicBool,
}

/// The counts of a port as one guest has it.
#[derive(Clone, Debug)]
pub struct Gauge {
    switch: Arc<Switch>,
    index: usize,
    life: u64,
}

impl Gauge {
    /// Returns whether the guest has the port still.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        let port = &self.switch.ports[self.index];
        let is_its = || port.life.load(SeqCst) == self.life;
        Tag(port.tag.load(SeqCst)).has(Tag::TAKEN) && is_its()
    }

    /// Returns a count, which stays when the guest has given the port back, until another one takes it.
    #[must_use]
    pub fn count(&self, count: Count) -> Option<u64> {
        let port = &self.switch.ports[self.index];
        let value = port.counts[count as usize].load(SeqCst);
        (port.life.load(SeqCst) == self.life).then_some(value)
    }
}

/// The queues to which a batch of frames went: their drivers are told at its end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Touched {
    /// The ports, by a bit for each.
    ports: u32,
    /// The pairs of each port, by a bit for each.
    pairs: [u8; PORTS],
}

impl Touched {
    fn add(&mut self, port: usize, pair: usize) {
        self.ports |= 1 << port;
        self.pairs[port] |= 1 << pair;
    }
}

/// The network has no free port, or another port has this address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPort {
    /// All [`PORTS`] ports are taken.
    Full,
    /// Another port has the address.
    Taken(Mac),
}

impl fmt::Display for NoPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => write!(f, "the network has {PORTS} TDs already"),
            Self::Taken(mac) => write!(f, "another TD of the network has the address {mac}"),
        }
    }
}

impl core::error::Error for NoPort {}

impl Default for Switch {
    fn default() -> Self {
        Self {
            ports: (0..PORTS).map(|_| Port::default()).collect(),
            end: AtomicUsize::new(0),
            learned: Learned::default(),
        }
    }
}

impl Switch {
    /// Attaches a guest. Two calls do not run at the same time.
    ///
    /// # Errors
    /// [`NoPort`].
    pub fn attach(self: &Arc<Self>, settings: Settings) -> Result<Attached, NoPort> {
        let tag = Tag::new(settings);
        let tags = || self.ports.iter().map(|port| Tag(port.tag.load(SeqCst)));
        if tags().any(|other| other.has(Tag::TAKEN) && other.mac() == tag.mac()) {
            return Err(NoPort::Taken(tag.mac()));
        }
        let index = tags().position(|other| !other.has(Tag::TAKEN));
        let index = index.ok_or(NoPort::Full)?;
        let port = &self.ports[index];
        let life = port.life.fetch_add(1, SeqCst) + 1;
        port.counts.iter().for_each(|count| count.store(0, SeqCst));
        port.tag.store(tag.0, SeqCst);
        self.end.fetch_max(index + 1, SeqCst);
        Ok(Attached {
            switch: self.clone(),
            index,
            tag,
            life,
            is_over: AtomicBool::new(false),
        })
    }

    /// Delivers a frame to one port, if that is still the one with this tag. Returns the pair that got it.
    fn deliver(&self, index: usize, tag: Tag, frame: &Frame<'_>) -> Result<usize, Lost> {
        let port = &self.ports[index];
        let pair = port.pair_for(frame);
        let mut receiver = port.receivers[pair].lock();
        if port.tag.load(SeqCst) != tag.0 {
            return Err(Lost::Full);
        }
        let delivered = match &mut *receiver {
            Some(receiver) if receiver.fault.is_none() && port.is_open.load(SeqCst) => {
                put(port, receiver, frame)
            }
            _ => Err(Lost::Full),
        };
        match delivered {
            Ok(()) | Err(Lost::Sender(_)) => {}
            Err(Lost::Receiver(fault)) => {
                if let Some(receiver) = &mut *receiver {
                    receiver.fault = Some(fault);
                    port.news.fetch_or(FAULT, SeqCst);
                    frame.memory.ring(&receiver.guest);
                }
            }
            Err(Lost::Full) => port.add(Count::Full, 1),
        }
        delivered.map(|()| pair)
    }
}

impl Attached {
    /// Returns the port's address.
    #[must_use]
    pub const fn mac(&self) -> Mac {
        self.tag.mac()
    }

    /// Returns the counts, for those who read them.
    #[must_use]
    pub fn gauge(&self) -> Gauge {
        Gauge {
            switch: self.switch.clone(),
            index: self.index,
            life: self.life,
        }
    }

    /// Gives the port back: no frame comes to it any more, and another guest may take it. Called again, it does nothing.
    pub fn release(&self) {
        if self.is_over.swap(true, SeqCst) {
            return;
        }
        self.close();
        self.port().tag.store(0, SeqCst);
        if self.tag.has(Tag::TRUNK) {
            self.switch.learned.forget(self.index);
        }
    }

    /// Returns one of the port's counts.
    #[must_use]
    pub fn count(&self, count: Count) -> u64 {
        self.port().counts[count as usize].load(SeqCst)
    }

    /// Counts.
    pub fn add(&self, count: Count, more: u64) {
        self.port().add(count, more);
    }

    /// Lets frames come to a pair of the port, or no more. Returns after the last one that was on its way.
    pub fn receive(&self, pair: usize, receiver: Option<Receiver>) {
        *self.port().receivers[pair].lock() = receiver;
        self.port().news.fetch_and(!(1 << pair), SeqCst);
    }

    /// Lets no frame come any more. Returns after the last one that was on its way.
    pub fn close(&self) {
        (0..PAIRS).for_each(|pair| self.receive(pair, None));
        self.set_pairs(1);
        self.port().flows.forget();
    }

    /// Sets the number of pairs that the driver uses: 1 to [`PAIRS`].
    pub fn set_pairs(&self, pairs: usize) {
        self.port().pairs.store(pairs, SeqCst);
    }

    /// Sets the work that the driver does for others.
    pub fn set_offloads(&self, offloads: Offloads) {
        for receiver in &self.port().receivers {
            if let Some(receiver) = &mut *receiver.lock() {
                receiver.takes.offloads = offloads;
            }
        }
    }

    /// Notes whether the guest lets its card access memory. If it does not, no frame comes when this returns.
    pub fn open(&self, is_open: bool) {
        self.port().is_open.store(is_open, SeqCst);
        // A CPU that saw the old value had one of the locks.
        self.port()
            .receivers
            .iter()
            .for_each(|receiver| drop(receiver.lock()));
    }

    /// Takes the news for the guest: the pairs that have some, by a bit for each.
    ///
    /// # Errors
    /// [`Fault`]: the guest's driver has broken this rule.
    pub fn take_news(&self) -> Result<u64, Fault> {
        if self.port().news.load(SeqCst) == 0 {
            return Ok(0);
        }
        let news = self.port().news.swap(0, SeqCst);
        match news & FAULT {
            0 => Ok(news),
            _ => self.fault().map_or(Ok(news & !FAULT), Err),
        }
    }

    /// Returns the rule that the guest's driver has broken.
    #[cold]
    fn fault(&self) -> Option<Fault> {
        let mut receivers = self.port().receivers.iter();
        receivers.find_map(|receiver| receiver.lock().as_ref()?.fault)
    }

    /// Sends a frame of one of the guest's pairs to the port of its destination; to all that it reaches if it is for a group; and to all trunk ports if
    /// its destination is not known. Returns the number of ports that were tried.
    ///
    /// # Errors
    /// [`Fault`]: the sender's memory is not shared.
    pub fn send(
        &self,
        pair: usize,
        frame: &Frame<'_>,
        touched: &mut Touched,
    ) -> Result<usize, Fault> {
        let Start { from, to, .. } = frame.start;
        if self.tag.has(Tag::TRUNK) {
            if !from.is_group() {
                self.switch.learned.learn(from, self.index);
            }
        } else if from != self.mac() {
            self.add(Count::Spoofed, 1);
            return Ok(0);
        }
        if self.port().pairs.load(Relaxed) > 1 {
            self.port().flows.note(flow::of(frame), pair);
        }
        let ports = match self.destination(to) {
            Some(only) => only..only + 1,
            None => 0..self.switch.end.load(SeqCst),
        };
        let (mut tried, mut copies) = (0, 0);
        for index in ports {
            let tag = Tag(self.switch.ports[index].tag.load(SeqCst));
            let is_other = index != self.index && tag.has(Tag::TAKEN);
            // Any other port has one address, which is known.
            let may_have = tag.mac() == to || tag.has(Tag::TRUNK) || to.is_group();
            if !is_other || !may_have || !self.tag.reaches(tag) {
                continue;
            }
            tried += 1;
            match self.switch.deliver(index, tag, frame) {
                Ok(pair) => {
                    touched.add(index, pair);
                    copies += 1;
                }
                Err(Lost::Sender(fault)) => return Err(fault),
                Err(Lost::Full | Lost::Receiver(_)) => {}
            }
        }
        if copies > 0 {
            self.add(Count::Sent, 1);
            self.add(Count::SentBytes, frame.bytes as u64);
        }
        Ok(tried)
    }

    /// Returns the only port to which frames to this address go; `None` if it is not known, or a group's.
    fn destination(&self, to: Mac) -> Option<usize> {
        if to.is_group() {
            return None;
        }
        let end = self.switch.end.load(SeqCst);
        let mut ports = self.switch.ports[..end].iter();
        let own = ports.position(|port| Tag(port.tag.load(SeqCst)).is_of(to));
        own.or_else(|| self.switch.learned.find(to))
    }

    /// Tells the drivers of all touched queues of their frames.
    pub fn publish(&self, memory: &dyn Memory, touched: &Touched) {
        for index in ones(touched.ports.into()) {
            for pair in ones(touched.pairs[index].into()) {
                publish(&self.switch.ports[index], pair, memory);
            }
        }
    }

    fn port(&self) -> &Port {
        &self.switch.ports[self.index]
    }
}

/// Returns the numbers of the bits that are set.
pub fn ones(mut bits: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let number = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
        bits &= bits - 1;
        Some(number)
    })
}

/// Tells a port's driver of the frames in the queue of a pair.
fn publish(port: &Port, pair: usize, memory: &dyn Memory) {
    let mut receiver = port.receivers[pair].lock();
    // Another guest's, if the port has changed hands: it is told what it knows.
    let Some(receiver) = receiver.as_mut().filter(|_| port.is_open.load(SeqCst)) else {
        return;
    };
    let Receiver { guest, queue, .. } = receiver;
    let mut told = Ok(true);
    if memory.with_other(guest, &mut |memory| told = queue.publish(memory)) {
        receiver.fault = receiver.fault.or(told.err());
    }
    let news = match told {
        Ok(false) => return,
        Ok(true) => 1 << pair,
        Err(_) => FAULT,
    };
    port.news.fetch_or(news, SeqCst);
    memory.ring(&receiver.guest);
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.release();
    }
}
