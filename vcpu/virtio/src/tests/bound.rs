//! The most that a guest can take from another one at a switch, in counts: buffers, interrupts, copies. The cost in instructions is
//! measured by `cargo xtask bench exits`.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::vec::Vec;

use super::{Driver, Ram, Ring, std};
use crate::Net;
use crate::access::write;
use crate::net::{Count, Mac, PORTS, Rate, Settings, Switch};

const EVENTS: u64 = 1 << 29;
/// The features of a driver that leaves checksums and segmentation of TCP over IPv4 to others.
const LEAVES: u64 = 1 << 0 | 1 << 11;
/// Number of descriptors of a queue.
const SIZE: u16 = 256;
/// Places of a guest's frame to send, and of its buffers.
const SENT: u64 = 0x8000;
const BUFFERS: u64 = 0xA000;
const BUFFER: u32 = 2048;
/// Largest number of frames of a part of the work, and of bytes that are copied before the last one.
const FRAMES: u64 = 64;
const BYTES: u64 = 256 << 10;
/// Lengths of the shortest frame and of the longest, and of the header before it.
const SHORTEST: u64 = 14;
const LONGEST: u64 = 1518;
const HEADER: u64 = 12;

const A: u64 = 1;
const B: u64 = 2;
const C: u64 = 3;
const ALL: u64 = 0xFFFF_FFFF_FFFF;

/// A guest with a card.
struct Guest<'r> {
    driver: Driver<'r, Net>,
    receive: Ring,
    transmit: Ring,
    mac: u64,
}

impl<'r> Guest<'r> {
    fn new(switch: &Arc<Switch>, mac: u64, ram: &'r Arc<Ram>) -> Self {
        Self::with_rate(switch, mac, ram, None)
    }

    fn with_rate(switch: &Arc<Switch>, mac: u64, ram: &'r Arc<Ram>, rate: Option<Rate>) -> Self {
        let settings = Settings {
            mac: Mac(mac),
            is_trunk: false,
            is_isolated: false,
        };
        let card = Net::new(switch.attach(settings).unwrap(), ram.clone(), rate);
        let mut driver = Driver::new(card, ram);
        driver.negotiate(EVENTS | LEAVES);
        let receive = driver.set_up(0, SIZE, 0);
        let transmit = driver.set_up(1, SIZE, 0x4000);
        driver.ready();
        Self {
            driver,
            receive,
            transmit,
            mac,
        }
    }

    /// Offers buffers, all of them the same memory, and wants an interrupt after the next one.
    fn listen(&mut self, count: u64) {
        let ram = self.driver.ram;
        for _ in 0..count {
            self.receive.offer(ram, &[(BUFFERS, BUFFER, true)]).unwrap();
        }
        self.receive.want_after(ram, 1);
    }

    /// Makes frames available, and notifies the card.
    fn offer(&mut self, to: u64, bytes: u64, count: u64) {
        let ram = self.driver.ram;
        let [to, from] = [to, self.mac].map(|mac| Mac(mac).bytes());
        write(ram, SENT, &[&[0; 12][..], &to, &from].concat()).unwrap();
        for _ in 0..count {
            let frame = (SENT, (HEADER + bytes) as u32, false);
            self.transmit.offer(ram, &[frame]).unwrap();
        }
        self.driver.write(0x3004, 2, 1);
    }

    /// Lets the card do a part of its work. Returns whether there is more.
    fn part(&mut self) -> bool {
        let has_more = self.driver.serve().has_more;
        while self.transmit.take(self.driver.ram).is_some() {}
        has_more
    }

    /// Sends a frame.
    fn send(&mut self, to: u64) {
        self.offer(to, SHORTEST, 1);
        self.part();
    }

    /// Takes the frames that came. Returns their number.
    fn take(&mut self) -> u64 {
        let ram = self.driver.ram;
        std::iter::from_fn(|| self.receive.take(ram)).count() as u64
    }

    /// Returns the number of times since the last call that the guest was told of news.
    fn rung(&self) -> u64 {
        self.driver.ram.rung.swap(0, SeqCst)
    }

    fn count(&self, count: Count) -> u64 {
        self.driver.function.device().port().count(count)
    }
}

fn rams(count: usize) -> Vec<Arc<Ram>> {
    (0..count).map(|_| Arc::new(Ram::new(16))).collect()
}

#[test]
fn a_part_of_a_senders_work_costs_a_receiver_so_many_buffers_and_one_interrupt() {
    for bytes in [SHORTEST, 100, 1000, LONGEST] {
        let (switch, rams) = (Arc::new(Switch::default()), rams(2));
        let mut a = Guest::new(&switch, A, &rams[0]);
        let mut b = Guest::new(&switch, B, &rams[1]);
        b.listen(SIZE.into());
        a.offer(B, bytes, SIZE.into());
        let most = FRAMES.min(BYTES.div_ceil(bytes));
        let (mut taken, mut parts) = (0, 0);
        let mut has_more = true;
        while has_more {
            has_more = a.part();
            parts += 1;
            let slots = b.take();
            assert!((1..=most).contains(&slots), "{slots} of {bytes} bytes");
            assert_eq!(b.rung(), 1);
            assert!(!b.driver.serve().has_more);
            assert_eq!(b.driver.interrupts(), [0x40]);
            b.receive.want_after(b.driver.ram, 1);
            taken += slots;
        }
        assert_eq!((taken, parts), (256, 256_u64.div_ceil(most)), "{bytes}");
    }
}

#[test]
fn a_frame_to_all_costs_each_port_a_buffer_and_an_interrupt() {
    let (switch, rams) = (Arc::new(Switch::default()), rams(PORTS));
    let mut guests: Vec<_> = (1..)
        .zip(&rams)
        .map(|(mac, ram)| Guest::new(&switch, mac, ram))
        .collect();
    let (sender, others) = guests.split_first_mut().unwrap();
    others
        .iter_mut()
        .for_each(|other| other.listen(SIZE.into()));
    sender.offer(ALL, LONGEST, FRAMES);
    let mut has_more = true;
    while has_more {
        has_more = sender.part();
        let slots: Vec<_> = others.iter_mut().map(Guest::take).collect();
        assert!((1..=FRAMES).contains(&slots[0]));
        // Each port gets the same.
        assert!(slots.iter().all(|other| *other == slots[0]), "{slots:?}");
        for other in &mut *others {
            assert_eq!(other.rung(), 1);
            other.receive.want_after(other.driver.ram, 1);
        }
        // The copies to the last frame's ports may exceed what a part copies.
        let copied = slots[0] * LONGEST * others.len() as u64;
        assert!(copied < BYTES + LONGEST * others.len() as u64, "{copied}");
    }
    let received = others.iter().map(|other| other.count(Count::Received));
    assert!(received.into_iter().all(|count| count == FRAMES));
}

/// Segments of a large frame.
const SEGMENTS: u64 = 128;

impl Guest<'_> {
    /// Makes a large frame available that consists of segments of one byte. The card is not notified.
    fn offer_large(&mut self, to: u64) {
        const HEADERS: u64 = 54;
        let ram = self.driver.ram;
        let bytes = HEADERS + SEGMENTS;
        let [to, from] = [to, self.mac].map(|mac| Mac(mac).bytes());
        let offload = [1, 1, HEADERS as u8, 0, 1, 0, 34, 0, 16, 0, 0, 0];
        let [high, low] = ((bytes - 14) as u16).to_be_bytes();
        let v4 = [0x45, 0, high, low, 0, 0, 0, 0, 64, 6];
        let mut frame = [&offload[..], &to, &from, &[8, 0], &v4].concat();
        frame.resize((HEADER + bytes) as usize, 0);
        frame[HEADER as usize + 46] = 5 << 4;
        let gpa = SENT + 0x100 * u64::from(self.transmit.next % 32);
        write(ram, gpa, &frame).unwrap();
        let frame = (gpa, frame.len() as u32, false);
        self.transmit.offer(ram, &[frame]).unwrap();
    }
}

#[test]
fn large_frames_that_are_cut_cost_so_many_buffers_in_a_part() {
    // A descriptor of a receiver costs as much as 256 bytes.
    const MOST: u64 = BYTES / 256 + SEGMENTS;
    let (switch, rams) = (Arc::new(Switch::default()), rams(17));
    let mut guests: Vec<_> = (1..)
        .zip(&rams)
        .map(|(mac, ram)| Guest::new(&switch, mac, ram))
        .collect();
    let (sender, others) = guests.split_first_mut().unwrap();
    for other in &mut *others {
        other.listen(SIZE.into());
        sender.offer_large(other.mac);
    }
    sender.driver.write(0x3004, 2, 1);
    let (mut taken, mut parts) = (0, 0);
    let mut has_more = true;
    while has_more {
        has_more = sender.part();
        let slots = others.iter_mut().map(Guest::take).sum();
        assert!((1..=MOST).contains(&slots), "{slots}");
        taken += slots;
        parts += 1;
    }
    assert_eq!((taken, parts), (16 * SEGMENTS, 2));
    // To a group they go to nobody.
    sender.offer_large(ALL);
    sender.driver.write(0x3004, 2, 1);
    sender.part();
    assert_eq!(others.iter_mut().map(Guest::take).sum::<u64>(), 0);
    assert_eq!(sender.count(Count::Malformed), 1);
}

#[test]
fn a_guest_that_wants_no_interrupt_gets_none() {
    let (switch, rams) = (Arc::new(Switch::default()), rams(2));
    let mut a = Guest::new(&switch, A, &rams[0]);
    let mut b = Guest::new(&switch, B, &rams[1]);
    b.listen(SIZE.into());
    b.receive.want_after(&rams[1], SIZE);
    a.offer(B, SHORTEST, 255);
    while a.part() {}
    assert_eq!((b.take(), b.rung()), (255, 0));
}

/// Lets `a` flood `b` until that has no buffer.
fn flood(a: &mut Guest<'_>, b: &mut Guest<'_>) {
    while b.count(Count::Full) == 0 {
        a.offer(B, SHORTEST, 100);
        while a.part() {}
    }
}

#[test]
fn buffers_go_to_frames_as_they_come_whoever_sends_them() {
    let (switch, rams) = (Arc::new(Switch::default()), rams(3));
    let [mut a, mut b, mut c] = [A, B, C].map(|mac| {
        let ram = &rams[mac as usize - 1];
        Guest::new(&switch, mac, ram)
    });
    b.listen(SIZE.into());
    flood(&mut a, &mut b);
    // No buffer is kept for a third port. Its frame is lost, and it goes on.
    c.send(B);
    assert_eq!((c.count(Count::Sent), b.take()), (0, SIZE.into()));
    // The flood takes buffers in parts. A frame between two of them finds one if one is left.
    for buffers in [1, FRAMES, FRAMES + 1, 200] {
        b.listen(buffers);
        a.offer(B, SHORTEST, 250);
        let has_more = a.part();
        assert!(has_more);
        let before = c.count(Count::Sent);
        c.send(B);
        let is_sent = c.count(Count::Sent) > before;
        assert_eq!(is_sent, buffers > FRAMES, "{buffers}");
        while a.part() {}
        assert_eq!(b.take(), buffers);
    }
}

#[test]
fn a_rate_keeps_a_flood_from_the_buffers_of_others() {
    let (switch, rams) = (Arc::new(Switch::default()), rams(3));
    // An eighth of it may come at once.
    let rate = Rate::new(8 * 100 * SHORTEST);
    let mut a = Guest::with_rate(&switch, A, &rams[0], Some(rate));
    let mut b = Guest::new(&switch, B, &rams[1]);
    let mut c = Guest::new(&switch, C, &rams[2]);
    b.listen(SIZE.into());
    for _ in 0..10 {
        a.offer(B, SHORTEST, 200);
        while a.part() {}
    }
    // The last one may exceed it.
    let sent = a.count(Count::Sent);
    assert!((100..=101).contains(&sent), "{sent}");
    assert_eq!(a.count(Count::Limited), 2000 - sent);
    let left = u64::from(SIZE) - sent;
    for _ in 0..left {
        c.send(B);
    }
    assert_eq!((c.count(Count::Sent), b.take()), (left, SIZE.into()));
}
