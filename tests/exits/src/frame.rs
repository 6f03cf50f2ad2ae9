//! Frames of 1,500 bytes from one TD's virtio network card to another's, from the notification to the receiver's interrupt.

use std::sync::Arc;

use seam::abi::PAGE_4K;
use vcpu::Peer;
use virtio::net::{Mac, Settings, Switch};
use virtio::{Net, Transport};

use crate::td::{BUFFERS, DEVICE, Td};

/// Length of a frame, and of the header before it.
const FRAME: u64 = 1500;
const HEADER: u64 = 12;
const BUFFER: u64 = 2048;
/// Frames that come with one notification.
const BATCH: u64 = 8;

/// Two TDs of one network.
pub struct Pair {
    tds: [Td; 2],
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
            let peer = Arc::new(Peer::new(DEVICE));
            let td = Td::new(Transport::new(Net::new(port, peer.clone(), None)), 2);
            td.reach(&peer);
            // The driver has become ready.
            td.serve();
            td
        });
        // After the header: to 2, from 1.
        tds[0].set(BUFFERS + 8, 0);
        tds[0].set(BUFFERS + 16, 1 << 56 | 2 << 8);
        Self { tds }
    }

    /// Sends frames, one after the other. Returns the number that arrived, each batch with one interrupt.
    pub fn send(&self, count: u64) -> u64 {
        let [sender, receiver] = &self.tds;
        let chain =
            |number: u64, bytes, is_written| [(BUFFERS + number * PAGE_4K, bytes, is_written)];
        let buffers = [0, 1, 2, 3, 4, 5, 6, 7].map(|number| chain(number, BUFFER, true));
        let frame = chain(0, HEADER + FRAME, false);
        let mut left = count;
        while left > 0 {
            let batch = left.min(BATCH) as usize;
            let buffers = buffers.each_ref().map(|chain| &chain[..]);
            receiver.offer(0, &buffers[..batch]);
            sender.offer(1, &[&frame[..]; BATCH as usize][..batch]);
            let interrupts = receiver.interrupts();
            let is_sent = sender.kick(1) && receiver.interrupts() == interrupts + 1;
            let is_done = receiver.is_done(0) && sender.is_done(1) && receiver.is_interrupted();
            if !is_sent || !is_done {
                return count - left;
            }
            left -= batch as u64;
        }
        count
    }
}
