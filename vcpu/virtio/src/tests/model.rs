//! A queue against a model: every chain comes once, in order, with the bytes that the driver put there, and comes back
//! once; notifications and interrupts come when the other side asked for them.

use std::collections::VecDeque;
use std::vec::Vec;

use proptest::prelude::*;

use super::{Ram, Ring, std};
use crate::LONGEST;
use crate::access::write;
use crate::queue::Limits;
use crate::{Chain, Queue};

/// An action of the driver or of the device.
#[derive(Clone, Debug)]
enum Action {
    /// The driver offers a chain with these lengths, the first `readable` of which the device reads.
    Offer { lengths: Vec<u16>, readable: usize },
    /// The device takes up to so many chains, and returns them.
    Serve(usize),
    /// The device asks for a notification.
    Ask,
    /// The driver takes what was returned, and wants an interrupt after so many chains more.
    Collect(u16),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let lengths = proptest::collection::vec(0u16..600, 1..6);
    let offer = (lengths, 0usize..6).prop_map(|(lengths, readable)| Action::Offer {
        readable: readable.min(lengths.len()),
        lengths,
    });
    let action = prop_oneof![
        4 => offer,
        3 => (0usize..5).prop_map(Action::Serve),
        1 => Just(Action::Ask),
        2 => (1u16..5).prop_map(Action::Collect),
    ];
    proptest::collection::vec(action, 1..200)
}

/// A chain that the driver has offered: its head, the bytes to read and the room to write, and what it is filled with.
type Offered = (u16, u64, u64, u8);

struct Model {
    ring: Ring,
    queue: Queue,
    chain: Chain,
    waiting: VecDeque<Offered>,
    returned: VecDeque<(u16, u32)>,
    number: u8,
    /// Number of chains returned since the driver said how many it waits for, and that number.
    since: (u16, u16),
    /// Chains are taken and were not offered since the device asked for a notification.
    asked_at: Option<u16>,
}

impl Model {
    fn offer(&mut self, ram: &Ram, lengths: &[u16], readable: usize) {
        self.number = self.number.wrapping_add(1);
        // At most 16 chains are in flight.
        let base = 0x4000 + u64::from(self.number % 32) * 0x1000;
        let buffers = (0..).zip(lengths).map(|(at, bytes)| {
            let gpa = base + 700 * at;
            (gpa, u32::from(*bytes), at >= readable as u64)
        });
        let buffers: Vec<_> = buffers.collect();
        let before = self.ring.next;
        let Some(head) = self.ring.offer(ram, &buffers) else {
            return;
        };
        for (gpa, bytes, _) in buffers {
            write(ram, gpa, &std::vec![self.number; bytes as usize]).unwrap();
        }
        let sum = |part: &[u16]| part.iter().map(|bytes| u64::from(*bytes)).sum();
        let (read, room) = lengths.split_at(readable);
        self.waiting
            .push_back((head, sum(read), sum(room), self.number));
        if self.asked_at.take() == Some(before) {
            assert!(self.ring.wants_kick(ram, before));
        }
    }

    fn serve(&mut self, ram: &Ram, most: usize) {
        let mut count = 0;
        for _ in 0..most {
            let is_there = self.queue.take(ram, &mut self.chain).unwrap();
            assert_eq!(is_there, !self.waiting.is_empty());
            let Some((head, bytes, room, content)) = self.waiting.pop_front() else {
                break;
            };
            let mut reader = self.chain.readable();
            let found = (self.chain.head, reader.left(), self.chain.writable().left());
            assert_eq!(found, (head, bytes, room));
            let mut read = std::vec![0; bytes as usize + 1];
            assert_eq!(reader.read(ram, &mut read).unwrap() as u64, bytes);
            assert!(read[..bytes as usize].iter().all(|byte| *byte == content));
            self.queue.complete(ram, head, room as u32).unwrap();
            self.returned.push_back((head, room as u32));
            count += 1;
        }
        let (since, wanted) = self.since;
        self.since.0 += count;
        let expected = if self.ring.has_events() {
            (since..since + count).contains(&(wanted - 1))
        } else {
            count > 0
        };
        assert_eq!(self.queue.publish(ram).unwrap(), expected);
    }

    fn collect(&mut self, ram: &Ram, more: u16) {
        while let Some(back) = self.ring.take(ram) {
            assert_eq!(Some(back), self.returned.pop_front());
        }
        assert!(self.returned.is_empty());
        self.since = (0, more);
        if self.ring.has_events() {
            self.ring.want_after(ram, more);
        }
    }
}

const fn limits(bytes: u64) -> Limits {
    Limits {
        bytes,
        segments: LONGEST,
    }
}

proptest! {
    #[test]
    fn a_queue_does_as_its_model(actions in actions(), log in 0u32..5, has_events: bool) {
        let ram = Ram::new(64);
        let ring = Ring::alone(1 << log, has_events);
        let queue = Queue::new(ring.place, has_events, limits(1 << 20)).unwrap();
        let mut model = Model {
            queue,
            ring,
            chain: Chain::default(),
            waiting: VecDeque::new(),
            returned: VecDeque::new(),
            number: 0,
            since: (0, 1),
            asked_at: None,
        };
        for action in actions {
            match action {
                Action::Offer { lengths, readable } => model.offer(&ram, &lengths, readable),
                Action::Serve(most) => model.serve(&ram, most),
                Action::Ask => {
                    let has_more = model.queue.request_notification(&ram).unwrap();
                    prop_assert_eq!(has_more, !model.waiting.is_empty());
                    model.asked_at = (!has_more).then_some(model.ring.next);
                }
                Action::Collect(more) => model.collect(&ram, more),
            }
        }
    }
}

#[test]
fn the_indices_wrap_around() {
    let ram = Ram::new(8);
    let mut ring = Ring::alone(4, true);
    let mut queue = Queue::new(ring.place, true, limits(64)).unwrap();
    let mut chain = Chain::default();
    for _ in 0..30_000 {
        ring.want_after(&ram, 3);
        for _ in 0..3 {
            ring.offer(&ram, &[(0x4000, 8, true)]).unwrap();
            assert!(queue.take(&ram, &mut chain).unwrap());
            queue.complete(&ram, chain.head, 8).unwrap();
        }
        assert!(queue.publish(&ram).unwrap());
        assert!(!queue.request_notification(&ram).unwrap());
        assert_eq!(std::iter::from_fn(|| ring.take(&ram)).count(), 3);
    }
}
