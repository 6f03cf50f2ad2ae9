//! The control queue: the driver says how many pairs of queues it uses, and what of its work it leaves or does.
//!
//! Source: VIRTIO 1.2, section 5.1.6.5.

use virtio_spec::net::{Ctrl, ctrl};

use super::header::Offloads;
use super::switch::Attached;
use crate::chain::Chain;
use crate::device::Work;
use crate::queue::{Fault, Queue};

/// Number of commands after which the rest waits.
const COMMANDS: usize = 16;
/// Bytes of a command that are read: class, command, and the longest argument.
const BYTES: usize = 10;
/// Answers.
const DONE: u8 = 0;
const REFUSED: u8 = 1;

/// The control queue of a driver.
#[derive(Debug)]
pub struct Control {
    pub queue: Queue,
    /// The queue's index.
    pub index: usize,
    /// Number of pairs that the driver has set up.
    pub pairs: usize,
    /// The bits of the work that it can do, if it may say which of that it does.
    pub offloads: Option<u64>,
}

impl Control {
    /// Answers commands. Returns whether there are more.
    pub fn serve(
        &mut self,
        port: &Attached,
        chain: &mut Chain,
        work: &mut Work<'_>,
    ) -> Result<bool, Fault> {
        for _ in 0..COMMANDS {
            if !self.queue.take(work.memory, chain)? {
                break;
            }
            let mut command = [0; BYTES];
            let read = chain.readable().read(work.memory, &mut command)?;
            let answer = match command.get(..read) {
                Some(command) => self.obey(port, command),
                None => REFUSED,
            };
            if chain.writable().write(work.memory, &[answer])? == 0 {
                return Err(Fault::Request);
            }
            self.queue.complete(work.memory, chain.head, 1)?;
        }
        work.publish(self.index, &mut self.queue)?;
        self.queue.request_notification(work.memory)
    }

    fn obey(&self, port: &Attached, command: &[u8]) -> u8 {
        const PAIRS: [u8; 2] = [Ctrl::Mq as u8, ctrl::Mq::VqPairsSet as u8];
        const OFFLOADS: [u8; 2] = [Ctrl::GuestOffloads as u8, ctrl::GuestOffloads::Set as u8];
        let Some((kind, argument)) = command.split_first_chunk() else {
            return REFUSED;
        };
        let is_done = match *kind {
            PAIRS => self.set_pairs(port, argument),
            OFFLOADS => self.set_offloads(port, argument),
            _ => None,
        };
        is_done.map_or(REFUSED, |()| DONE)
    }

    fn set_pairs(&self, port: &Attached, argument: &[u8]) -> Option<()> {
        let pairs = u16::from_le_bytes(argument.try_into().ok()?).into();
        let fits = (1..=self.pairs).contains(&pairs);
        fits.then(|| port.set_pairs(pairs))
    }

    fn set_offloads(&self, port: &Attached, argument: &[u8]) -> Option<()> {
        let bits = u64::from_le_bytes(argument.try_into().ok()?);
        let is_able = bits & !self.offloads? == 0;
        is_able.then(|| port.set_offloads(Offloads::received(bits)))
    }
}
