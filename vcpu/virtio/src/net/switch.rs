//! A switch: the ports of one network, and the way of a frame from one to another.
//!
//! A CPU that sends copies the frame from the sender's memory to the receiver's, once. It takes the lock of the receiver's
//! port for that copy. Those who take it hold it for one frame, or to hand over a queue; none of them waits for a guest,
//! so no receiver can hold up a sender. A receiver without a free buffer loses the frame.
//!
//! A port has one address, and frames with another source are dropped. Only a trunk port, behind which a guest bridges to
//! another network, has many: the switch learns them. Only trunk ports get frames for addresses that are not known.

use alloc::{boxed::Box, sync::Arc};
use core::fmt;

use devices::Memory;
use sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use super::deliver::{Frame, Lost, Receiver, put};
use super::header::{Mac, Start};
use super::learned::Learned;
use super::port::{Count, Port, Settings, Tag};
use crate::queue::Fault;

/// Largest number of ports.
pub const PORTS: usize = 32;

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

/// The ports to which a batch of frames went: their drivers are told at its end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Touched(u32);

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

    /// Delivers a frame to one port, if that is still the one with this tag.
    fn deliver(&self, index: usize, tag: Tag, frame: &Frame<'_>) -> Result<(), Lost> {
        let port = &self.ports[index];
        let mut receiver = port.receiver.lock();
        if port.tag.load(SeqCst) != tag.0 {
            return Err(Lost::Full);
        }
        let delivered = match &mut *receiver {
            Some(receiver) if receiver.fault.is_none() && port.is_open.load(SeqCst) => {
                put(receiver, frame)
            }
            _ => Err(Lost::Full),
        };
        match delivered {
            Ok(()) => {
                port.add(Count::Received, 1);
                port.add(Count::ReceivedBytes, frame.bytes as u64);
            }
            Err(Lost::Receiver(fault)) => {
                if let Some(receiver) = &mut *receiver {
                    receiver.fault = Some(fault);
                    port.has_news.store(true, SeqCst);
                    frame.memory.ring(&receiver.guest);
                }
            }
            Err(Lost::Full) => port.add(Count::Full, 1),
            Err(Lost::Sender(_)) => {}
        }
        delivered
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
        self.receive(None);
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

    /// Lets frames come to this port, or no more. Returns after the last one that was on its way.
    pub fn receive(&self, receiver: Option<Receiver>) {
        *self.port().receiver.lock() = receiver;
        self.port().has_news.store(false, SeqCst);
    }

    /// Notes whether the guest lets its card access memory. If it does not, no frame comes when this returns.
    pub fn open(&self, is_open: bool) {
        let _none = self.port().receiver.lock();
        self.port().is_open.store(is_open, SeqCst);
    }

    /// Takes the news for the guest: whether there are any, and the rule that its driver broke, if it did.
    #[must_use]
    pub fn take_news(&self) -> (bool, Option<Fault>) {
        if !self.port().has_news.swap(false, SeqCst) {
            return (false, None);
        }
        let receiver = self.port().receiver.lock();
        (true, receiver.as_ref().and_then(|receiver| receiver.fault))
    }

    /// Sends a frame to the port of its destination; to all that it reaches if it is for a group; and to all trunk ports if
    /// its destination is not known. Returns the number of copies.
    ///
    /// # Errors
    /// [`Fault`]: the sender's memory is not shared.
    pub fn send(&self, frame: &Frame<'_>, touched: &mut Touched) -> Result<usize, Fault> {
        let Start { from, to, .. } = frame.start;
        if self.tag.has(Tag::TRUNK) {
            if !from.is_group() {
                self.switch.learned.learn(from, self.index);
            }
        } else if from != self.mac() {
            self.add(Count::Spoofed, 1);
            return Ok(0);
        }
        let ports = match self.destination(to) {
            Some(only) => only..only + 1,
            None => 0..self.switch.end.load(SeqCst),
        };
        let mut copies = 0;
        for index in ports {
            let tag = Tag(self.switch.ports[index].tag.load(SeqCst));
            let is_other = index != self.index && tag.has(Tag::TAKEN);
            // Any other port has one address, which is known.
            let may_have = tag.mac() == to || tag.has(Tag::TRUNK) || to.is_group();
            if !is_other || !may_have || !self.tag.reaches(tag) {
                continue;
            }
            match self.switch.deliver(index, tag, frame) {
                Ok(()) => {
                    touched.0 |= 1 << index;
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
        Ok(copies)
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

    /// Tells the drivers of all touched ports of their frames.
    pub fn publish(&self, memory: &dyn Memory, touched: Touched) {
        let is_touched = |(index, _): &(usize, &Port)| touched.0 >> index & 1 != 0;
        for (_, port) in self.switch.ports.iter().enumerate().filter(is_touched) {
            let mut receiver = port.receiver.lock();
            // Another guest's, if the port has changed hands: it is told what it knows.
            let Some(receiver) = receiver.as_mut().filter(|_| port.is_open.load(SeqCst)) else {
                continue;
            };
            let Receiver { guest, queue, .. } = receiver;
            let mut told = Ok(true);
            if memory.with_other(guest, &mut |memory| told = queue.publish(memory)) {
                receiver.fault = receiver.fault.or(told.err());
            }
            if told != Ok(false) {
                port.has_news.store(true, SeqCst);
                memory.ring(&receiver.guest);
            }
        }
    }

    fn port(&self) -> &Port {
        &self.switch.ports[self.index]
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.release();
    }
}
