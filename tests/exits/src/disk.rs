//! Requests for a block of 4 KiB of a virtio disk, from the notification to the interrupt.

use std::sync::Arc;

use seam::abi::PAGE_4K;
use virtio::{Block, Disk, Image, Transport};

use crate::td::{BUFFERS, Td};

/// Requests that come with one notification.
const BATCH: u64 = 16;
/// The page with headers and statuses, and those with the data.
const HEADERS: u64 = BUFFERS;
const STATUSES: u64 = BUFFERS + 0x800;
const DATA: u64 = BUFFERS + PAGE_4K;

/// The content of the disk.
#[derive(Debug)]
struct Sevens(Vec<u8>);

impl Image for Sevens {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Creates a TD with a disk.
pub fn td() -> Td {
    let image = Arc::new(Sevens(vec![7; 1 << 20]));
    let disk = Disk::read_only(image, "bench").with_overlay(1 << 20);
    let block = Block::new(disk.expect("memory for the overlay"));
    Td::new(Transport::new(block), 1)
}

/// Makes requests to read or to write a block, in batches. Returns the number that succeeded.
pub fn request(td: &Td, is_write: bool, count: u64) -> u64 {
    let chain = |number: u64| {
        [
            (HEADERS + 16 * number, 16, false),
            (DATA + PAGE_4K * number, PAGE_4K, !is_write),
            (STATUSES + 8 * number, 1, true),
        ]
    };
    let chains: Vec<_> = (0..BATCH).map(chain).collect();
    let chains: Vec<_> = chains.iter().map(|chain| &chain[..]).collect();
    for number in 0..BATCH {
        td.set(HEADERS + 16 * number, is_write.into());
        td.set(HEADERS + 16 * number + 8, 8 * number);
    }
    let mut left = count;
    while left > 0 {
        let batch = left.min(BATCH);
        td.offer(0, &chains[..batch as usize]);
        if !(td.kick(0) && td.is_done(0) && td.is_interrupted()) {
            return count - left;
        }
        left -= batch;
    }
    let is_good = |number: &u64| td.get(STATUSES + 8 * number) & 0xFF == 0;
    if (0..BATCH.min(count)).all(|number| is_good(&number)) {
        count
    } else {
        0
    }
}
