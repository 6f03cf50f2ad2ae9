//! The control queue: the driver says how many pairs of queues it uses.
//!
//! Source: VIRTIO 1.2, section 5.1.6.5.

use virtio_spec::net::{Ctrl, ctrl};

use super::switch::Attached;
use crate::chain::Chain;
use crate::device::Work;
use crate::queue::{Fault, Queue};

/// Number of commands after which the rest waits.
const COMMANDS: usize = 16;
/// Bytes of a command that are read: class, command, and the number of pairs.
const BYTES: usize = 4;
/// Answers.
const DONE: u8 = 0;
const REFUSED: u8 = 1;

/// The commands of a driver that has offered at most `most` pairs.
#[derive(Debug)]
pub struct Control {
    pub queue: Queue,
    /// The queue's index.
    pub index: usize,
    /// Number of pairs that the driver has set up.
    pub pairs: usize,
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
        const CLASS: u8 = Ctrl::Mq as u8;
        const PAIRS_SET: u8 = ctrl::Mq::VqPairsSet as u8;
        match *command {
            [CLASS, PAIRS_SET, low, high] => {
                let pairs = usize::from(u16::from_le_bytes([low, high]));
                if (1..=self.pairs).contains(&pairs) {
                    port.set_pairs(pairs);
                    return DONE;
                }
                REFUSED
            }
            _ => REFUSED,
        }
    }
}
