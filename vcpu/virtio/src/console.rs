//! The console: two queues of bytes, one for each direction.
//!
//! Source: VIRTIO 1.2, section 5.3.

use alloc::{boxed::Box, sync::Arc};
use core::fmt;

use virtio_spec::Id;

use crate::chain::Chain;
use crate::queue::{Fault, Queue};
use crate::transport::{Device, Kind, Work};

/// Indices of the queues: what the guest receives, and what it transmits.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Largest sizes of the queues.
const QUEUES: &[u16] = &[64, 64];
/// Largest number of bytes in a chain.
const MOST_BYTES: u64 = 64 << 10;
/// Number of bytes after which the rest of the work waits.
const PART: u64 = 16 << 10;
/// Number of chains after which it does.
const CHAINS: usize = 64;
/// Bytes that are copied at a time.
const AT_ONCE: usize = 256;
/// Bytes of the device configuration: the size of a screen, which this console does not have.
const CONFIG: usize = 12;

/// The TD's console, which the device stands for.
pub trait Terminal: fmt::Debug + Send + Sync {
    /// Writes output.
    fn write(&self, bytes: &[u8]);

    /// Takes typed bytes until `into` is full or there are no more. Returns the number of bytes.
    fn read(&self, into: &mut [u8]) -> usize;

    /// Notes whether the guest drives the device. Typed bytes are the device's then.
    fn attach(&self, is_attached: bool);
}

/// The device.
#[derive(Debug)]
pub struct Console {
    terminal: Arc<dyn Terminal>,
    queues: [Option<Queue>; 2],
    chain: Box<Chain>,
}

impl Console {
    /// Creates the device of a console.
    #[must_use]
    pub fn new(terminal: Arc<dyn Terminal>) -> Self {
        Self {
            terminal,
            queues: [None, None],
            chain: Box::default(),
        }
    }

    /// Writes what the guest transmits. Returns whether there is more.
    fn transmit(&mut self, work: &mut Work<'_>) -> Result<bool, Fault> {
        let Some(queue) = &mut self.queues[TRANSMIT] else {
            return Ok(false);
        };
        let mut left = PART;
        for _ in 0..CHAINS {
            if left == 0 || !queue.take(work.memory, &mut self.chain)? {
                break;
            }
            let mut cursor = self.chain.readable();
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
            queue.complete(work.memory, self.chain.head, 0)?;
        }
        work.publish(TRANSMIT, queue)?;
        queue.request_notification(work.memory)
    }

    /// Gives the guest what was typed, as far as it has buffers for it. Returns whether there is more to give.
    fn receive(&mut self, work: &mut Work<'_>) -> Result<bool, Fault> {
        let Some(queue) = &mut self.queues[RECEIVE] else {
            return Ok(false);
        };
        let mut has_more = true;
        for _ in 0..CHAINS {
            if !queue.take(work.memory, &mut self.chain)? {
                has_more = false;
                break;
            }
            let mut cursor = self.chain.writable();
            let mut bytes = [0; AT_ONCE];
            let room = cursor.left().min(AT_ONCE as u64) as usize;
            let count = self.terminal.read(&mut bytes[..room]);
            if count == 0 && room != 0 {
                queue.put_back();
                has_more = false;
                break;
            }
            cursor.write(work.memory, &bytes[..count])?;
            queue.complete(work.memory, self.chain.head, count as u32)?;
        }
        work.publish(RECEIVE, queue)?;
        queue.request_notification(work.memory)?;
        Ok(has_more)
    }
}

impl Device for Console {
    fn kind(&self) -> Kind {
        Kind {
            id: Id::Console,
            class: 0x07_8000,
            features: 0,
            queues: QUEUES,
            most_bytes: MOST_BYTES,
        }
    }

    fn config(&self) -> &[u8] {
        &[0; CONFIG]
    }

    fn start(&mut self, _: u64, queues: Box<[Option<Queue>]>) {
        let mut queues = queues.into_iter();
        self.queues = [queues.next().flatten(), queues.next().flatten()];
        self.terminal.attach(true);
    }

    fn reset(&mut self) {
        self.queues = [None, None];
        self.terminal.attach(false);
    }

    fn serve(&mut self, work: &mut Work<'_>) -> Result<bool, Fault> {
        let sends = self.transmit(work)?;
        Ok(self.receive(work)? || sends)
    }
}
