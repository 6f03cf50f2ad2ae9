//! The block device: requests for the sectors of a [`Disk`].
//!
//! Source: VIRTIO 1.2, section 5.2.

mod disk;
mod request;

use alloc::boxed::Box;

use virtio_spec::Id;
use virtio_spec::blk::F;

use crate::chain::{Chain, LONGEST};
use crate::device::{Device, Kind, Work};
use crate::queue::{Fault, Queue};

pub use disk::{Disk, Image, NoRoom};
use request::{AT_ONCE, Begun, Long, MOST_CLEARED, SECTOR, serve};

const QUEUES: &[u16] = &[128];
/// Largest size and number of the segments of a request, for drivers that ask.
const SEGMENT: u32 = 4096;
const SEGMENTS: u32 = 64;
/// Largest number of bytes in a chain. OVMF reads a whole program with one request, of up to 1 GiB, a header and a status.
///
/// Source: EDK II, OvmfPkg/VirtioBlkDxe, `SynchronousRequest`.
const MOST_BYTES: u64 = (1 << 30) + 17;
/// Number of bytes after which the rest of the work waits, and of chains.
const PART: u64 = AT_ONCE;
const CHAINS: usize = 64;

/// The features of every disk, and of one that can be written.
const FEATURES: u64 = bits(F::SIZE_MAX) | bits(F::SEG_MAX) | bits(F::BLK_SIZE) | bits(F::FLUSH);
const WRITABLE: u64 = bits(F::DISCARD) | bits(F::WRITE_ZEROES);
const READ_ONLY: u64 = bits(F::RO);

const fn bits(feature: F) -> u64 {
    feature.bits().to_ne() as u64
}

/// Bytes of the device configuration.
const CONFIG: usize = 60;

/// The device.
#[derive(Debug)]
pub struct Block {
    disk: Disk,
    config: [u8; CONFIG],
    queue: Option<Queue>,
    chain: Box<Chain>,
    /// The request in `chain`, as long as its bytes are being copied.
    long: Option<Long>,
}

impl Block {
    /// Creates the device of a disk.
    #[must_use]
    pub fn new(disk: Disk) -> Self {
        Self {
            config: configuration(&disk),
            disk,
            queue: None,
            chain: Box::default(),
            long: None,
        }
    }

    /// Returns the disk.
    #[must_use]
    pub const fn disk(&self) -> &Disk {
        &self.disk
    }
}

impl Device for Block {
    fn kind(&self) -> Kind {
        Kind {
            id: Id::Block,
            class: 0x01_0000,
            features: FEATURES
                | if self.disk.is_writable() {
                    WRITABLE
                } else {
                    READ_ONLY
                },
            queues: QUEUES,
            most_bytes: MOST_BYTES,
            most_segments: LONGEST,
        }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn start(&mut self, _: u64, queues: Box<[Option<Queue>]>) {
        self.queue = queues.into_iter().next().flatten();
    }

    fn reset(&mut self) {
        (self.queue, self.long) = (None, None);
    }

    fn serve(&mut self, work: &mut Work<'_>) -> Result<bool, Fault> {
        let Some(queue) = &mut self.queue else {
            return Ok(false);
        };
        if let Some(long) = &mut self.long {
            if let Some(written) = long.go_on(&mut self.disk, &self.chain, work.memory)? {
                self.long = None;
                queue.complete(work.memory, self.chain.head, written)?;
            }
        } else {
            let mut left = PART;
            for _ in 0..CHAINS {
                if left == 0 || !queue.take(work.memory, &mut self.chain)? {
                    break;
                }
                match serve(&mut self.disk, &self.chain, work.memory)? {
                    Begun::Done(done) => {
                        left = left.saturating_sub(done.cost);
                        queue.complete(work.memory, self.chain.head, done.written)?;
                    }
                    Begun::Long(long) => {
                        self.long = Some(long);
                        break;
                    }
                }
            }
        }
        work.publish(0, queue)?;
        Ok(queue.request_notification(work.memory)? || self.long.is_some())
    }

    fn retire(&mut self) {
        self.reset();
        self.disk.forget();
    }
}

fn configuration(disk: &Disk) -> [u8; CONFIG] {
    let mut config = [0; CONFIG];
    let sectors = disk.bytes() / SECTOR;
    config[..8].copy_from_slice(&sectors.to_le_bytes());
    let discard = (MOST_CLEARED / SECTOR) as u32;
    for (at, value) in [
        (8, SEGMENT),
        (12, SEGMENTS),
        (20, SECTOR as u32),
        // Discard: sectors, segments, alignment of sectors; write zeroes: sectors and segments.
        (36, discard),
        (40, 1),
        (44, disk::BLOCK as u32 / SECTOR as u32),
        (48, discard),
        (52, 1),
        // Zeroes may be written by discarding.
        (56, 1),
    ] {
        config[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    config
}
