//! Frames of 1,500 bytes from one TD's virtio network card to another's, from the notification to the receiver's interrupt.

use std::sync::Arc;

use seam::abi::PAGE_4K;
use virtio::net::{Mac, Settings, Switch};
use virtio::{Net, Transport};

use crate::td::{BUFFERS, Reach, Td};

/// Length of a frame, and of the header before it.
const FRAME: u64 = 1500;
const HEADER: u64 = 12;
const BUFFER: u64 = 2048;
/// Frames that come with one notification.
const BATCH: u64 = 8;

/// Two TDs of one network.
pub struct Pair {
    tds: [(Td, Arc<Reach>); 2],
}

impl Pair {
    pub fn new() -> Self {
        let switch = Arc::new(Switch::default());
        let tds = [1, 2].map(|number| {
            let settings = Settings {
                mac: Mac(number),
                is_trunk: false,
                is_isolated: false,
            };
            let port = switch.attach(settings).expect("a free port");
            let reach = Arc::new(Reach::new());
            let card = Net::new(port, reach.clone(), None);
            let td = Td::new(Transport::new(card), 2, Some(&reach));
            // The driver has become ready.
            td.attend(&reach);
            (td, reach)
        });
        let (sender, reach) = &tds[0];
        // After the header: to 2, from 1.
        sender.set(Some(reach), BUFFERS + 8, 0);
        sender.set(Some(reach), BUFFERS + 16, 1 << 56 | 2 << 8);
        Self { tds }
    }

    /// Sends frames, one after the other. Returns the number that arrived.
    pub fn send(&self, count: u64) -> u64 {
        let [(sender, from), (receiver, into)] = &self.tds;
        let chain =
            |number: u64, bytes, is_written| [(BUFFERS + number * PAGE_4K, bytes, is_written)];
        let buffers = [0, 1, 2, 3, 4, 5, 6, 7].map(|number| chain(number, BUFFER, true));
        let frame = chain(0, HEADER + FRAME, false);
        let mut left = count;
        while left > 0 {
            let batch = left.min(BATCH) as usize;
            let buffers = buffers.each_ref().map(|chain| &chain[..]);
            receiver.offer(Some(into), 0, &buffers[..batch]);
            sender.offer(Some(from), 1, &[&frame[..]; BATCH as usize][..batch]);
            let is_sent = sender.kick_with(1, from) && receiver.attend(into);
            let is_done = receiver.is_done(Some(into), 0) && sender.is_done(Some(from), 1);
            if !is_sent || !is_done {
                return count - left;
            }
            left -= batch as u64;
        }
        count
    }
}
