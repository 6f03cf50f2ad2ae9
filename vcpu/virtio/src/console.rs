//! The console: a port for the TD's console, and one for scripts, each with two queues of bytes, one for each direction.
//!
//! A driver that knows of one port alone (without MULTIPORT) finds the TD's console there.
//!
//! Source: VIRTIO 1.2, section 5.3.

mod control;

use alloc::{boxed::Box, sync::Arc};
use core::fmt;

use virtio_spec::Id;
use virtio_spec::console::F;

use crate::chain::{Chain, LONGEST};
use crate::device::{Device, Kind, Work};
use crate::queue::{Fault, Queue};

use control::{Control, MESSAGE, Said};

/// Number of ports: the TD's console, and the one for scripts.
const PORTS: usize = 2;
const SCRIPT: usize = 1;
/// Indices of the queues: for each port what the guest receives and what it transmits, and between them those for
/// messages about ports, to the guest and from it.
const RECEIVE: [usize; PORTS] = [0, 4];
const TRANSMIT: [usize; PORTS] = [1, 5];
const TO_GUEST: usize = 2;
const FROM_GUEST: usize = 3;
/// Largest sizes of the queues.
const QUEUES: &[u16] = &[64, 64, 32, 32, 64, 64];
/// Largest number of bytes in a chain.
const MOST_BYTES: u64 = 64 << 10;
/// Number of bytes after which the rest of the work waits.
const PART: u64 = 16 << 10;
/// Number of chains after which it does.
const CHAINS: usize = 64;
/// Bytes that are copied at a time.
const AT_ONCE: usize = 256;

const MULTIPORT: u64 = F::MULTIPORT.bits().to_ne() as u64;
/// The device configuration: the size of a screen, which this console does not have; the number of ports; a register for
/// emergencies, which it does not have.
const CONFIG: [u8; 12] = [0, 0, 0, 0, PORTS as u8, 0, 0, 0, 0, 0, 0, 0];

/// A stream of bytes in both directions that a port stands for.
pub trait Terminal: fmt::Debug + Send + Sync {
    /// Writes output.
    fn write(&self, bytes: &[u8]);

    /// Takes typed bytes until `into` is full or there are no more. Returns the number of bytes.
    fn read(&self, into: &mut [u8]) -> usize;

    /// Notes whether the guest drives the port. Typed bytes are the port's then.
    fn attach(&self, is_attached: bool);
}

/// The device.
#[derive(Debug)]
pub struct Console {
    ports: [Port; PORTS],
    control: Control,
    /// The queues for messages about ports.
    to_guest: Option<Queue>,
    from_guest: Option<Queue>,
    chain: Box<Chain>,
}

/// A port.
#[derive(Debug)]
struct Port {
    terminal: Arc<dyn Terminal>,
    receive: Option<Queue>,
    transmit: Option<Queue>,
    /// The guest takes bytes. Before, it would lose them.
    is_open: bool,
}

impl Console {
    /// Creates the device of a TD's console, with a port for `script`s.
    #[must_use]
    pub fn new(terminal: Arc<dyn Terminal>, script: Arc<dyn Terminal>) -> Self {
        Self {
            ports: [terminal, script].map(|terminal| Port {
                terminal,
                receive: None,
                transmit: None,
                is_open: false,
            }),
            control: Control::default(),
            to_guest: None,
            from_guest: None,
            chain: Box::default(),
        }
    }

    /// Takes the guest's messages. Returns whether there is more.
    fn hear(&mut self, work: &mut Work<'_>) -> Result<bool, Fault> {
        let Some(queue) = &mut self.from_guest else {
            return Ok(false);
        };
        for _ in 0..CHAINS {
            if !queue.take(work.memory, &mut self.chain)? {
                break;
            }
            let mut message = [0; MESSAGE];
            if self.chain.readable().read(work.memory, &mut message)? != MESSAGE {
                return Err(Fault::Request);
            }
            match self.control.hear(message) {
                Said::Open(SCRIPT, is_open) => self.ports[SCRIPT].open(is_open),
                Said::Open(..) | Said::Nothing => {}
            }
            queue.complete(work.memory, self.chain.head, 0)?;
        }
        work.publish(FROM_GUEST, queue)?;
        queue.request_notification(work.memory)
    }

    /// Sends the messages that are due, as far as the guest has buffers for them.
    fn say(&mut self, work: &mut Work<'_>) -> Result<(), Fault> {
        let Some(queue) = &mut self.to_guest else {
            return Ok(());
        };
        while let Some(message) = self.control.next()
            && queue.take(work.memory, &mut self.chain)?
        {
            let mut into = self.chain.writable();
            if into.write(work.memory, &message)? != message.len() {
                return Err(Fault::Request);
            }
            self.control.sent();
            queue.complete(work.memory, self.chain.head, message.len() as u32)?;
        }
        work.publish(TO_GUEST, queue)?;
        queue.request_notification(work.memory).map(drop)
    }
}

impl Port {
    fn open(&mut self, is_open: bool) {
        self.is_open = is_open;
        self.terminal.attach(is_open);
    }

    fn reset(&mut self) {
        (self.receive, self.transmit) = (None, None);
        self.open(false);
    }

    /// Writes what the guest transmits. Returns whether there is more.
    fn transmit(
        &mut self,
        index: usize,
        chain: &mut Chain,
        work: &mut Work<'_>,
    ) -> Result<bool, Fault> {
        let Some(queue) = &mut self.transmit else {
            return Ok(false);
        };
        let mut left = PART;
        for _ in 0..CHAINS {
            if left == 0 || !queue.take(work.memory, chain)? {
                break;
            }
            let mut cursor = chain.readable();
            left = left.saturating_sub(cursor.left());
            let mut bytes = [0; AT_ONCE];
            loop {
                let count = cursor.read(work.memory, &mut bytes)?;
                if count == 0 {
                    break;
                }
                self.terminal.write(&bytes[..count]);
                work.has_output = true;
            }
            queue.complete(work.memory, chain.head, 0)?;
        }
        work.publish(index, queue)?;
        queue.request_notification(work.memory)
    }

    /// Gives the guest what was typed, as far as it has buffers for it. Returns whether there is more to give.
    fn receive(
        &mut self,
        index: usize,
        chain: &mut Chain,
        work: &mut Work<'_>,
    ) -> Result<bool, Fault> {
        let Some(queue) = self.receive.as_mut().filter(|_| self.is_open) else {
            return Ok(false);
        };
        let mut has_more = true;
        for _ in 0..CHAINS {
            let mark = queue.mark();
            if !queue.take(work.memory, chain)? {
                has_more = false;
                break;
            }
            let mut cursor = chain.writable();
            let mut bytes = [0; AT_ONCE];
            let room = cursor.left().min(AT_ONCE as u64) as usize;
            let count = self.terminal.read(&mut bytes[..room]);
            if count == 0 && room != 0 {
                queue.go_back(mark);
                has_more = false;
                break;
            }
            cursor.write(work.memory, &bytes[..count])?;
            queue.complete(work.memory, chain.head, count as u32)?;
        }
        work.publish(index, queue)?;
        queue.request_notification(work.memory)?;
        Ok(has_more)
    }
}

impl Device for Console {
    fn kind(&self) -> Kind {
        Kind {
            id: Id::Console,
            class: 0x07_8000,
            features: MULTIPORT,
            queues: QUEUES,
            most_bytes: MOST_BYTES,
            most_segments: LONGEST,
        }
    }

    fn config(&self) -> &[u8] {
        &CONFIG
    }

    fn start(&mut self, features: u64, mut queues: Box<[Option<Queue>]>) {
        let mut queue = |index: usize| queues.get_mut(index).and_then(Option::take);
        let [console, script] = &mut self.ports;
        (console.receive, console.transmit) = (queue(RECEIVE[0]), queue(TRANSMIT[0]));
        console.open(true);
        if features & MULTIPORT != 0 {
            (self.to_guest, self.from_guest) = (queue(TO_GUEST), queue(FROM_GUEST));
            (script.receive, script.transmit) = (queue(RECEIVE[1]), queue(TRANSMIT[1]));
        }
    }

    fn reset(&mut self) {
        self.ports.iter_mut().for_each(Port::reset);
        (self.to_guest, self.from_guest) = (None, None);
        self.control = Control::default();
    }

    fn serve(&mut self, work: &mut Work<'_>) -> Result<bool, Fault> {
        let mut has_more = self.hear(work)?;
        self.say(work)?;
        for (number, port) in self.ports.iter_mut().enumerate() {
            has_more |= port.transmit(TRANSMIT[number], &mut self.chain, work)?;
            has_more |= port.receive(RECEIVE[number], &mut self.chain, work)?;
        }
        Ok(has_more)
    }
}
