//! The socket device, by its driver: connections to a service of the host, and between two guests.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::vec;
use std::vec::Vec;

use arrayvec::ArrayVec;
use devices::pci::Function;
use devices::{Memory, Now};
use proptest::prelude::*;
use virtio_spec::vsock::Op;

use super::{Driver, Ram, Ring, hostile, std};
use crate::Device;
use crate::access::{read, write};
use crate::vsock::{Address, CAPACITY, Caller, End, Hub, NoPlace, Service, Settings, Shut};
use crate::vsock::{Header, Vsock};

const EVENTS: u64 = 1 << 29;
/// The places of a guest's packet to send, and of its buffers, two pages for each.
const SENT: u64 = 0x1_0000;
const BUFFERS: u64 = 0x2_0000;
const BUFFER: u32 = 0x2000;

const ECHO: u32 = 7;
const HOST: u64 = 2;
const A: u64 = 3;
const B: u64 = 4;

/// A service that sends back what it gets.
#[derive(Debug, Default)]
struct Echo {
    ends: Mutex<ArrayVec<End, 4>>,
}

impl Service for Echo {
    fn connect(&self, _: Caller, end: End) {
        let mut ends = self.ends.lock().unwrap();
        // A fifth one is refused.
        if !ends.is_full() {
            end.open();
            ends.push(end);
        }
    }

    fn attend(&self, _: &dyn Memory, _: Now) {
        let mut ends = self.ends.lock().unwrap();
        for end in ends.iter() {
            let mut bytes = [0; 300];
            loop {
                let room = end.see().room.min(bytes.len());
                let count = end.take(&mut bytes[..room]);
                if count == 0 {
                    break;
                }
                assert_eq!(end.put(&bytes[..count]), count);
            }
        }
        ends.retain(|end| !end.see().is_gone && end.see().shut != Shut::ALL);
    }
}

struct Guest<'r> {
    driver: Driver<'r, Vsock>,
    cid: u64,
    receive: Ring,
    transmit: Ring,
    /// The guest's word for its buffers.
    room: u32,
    taken: u32,
}

fn hub() -> (Arc<Hub>, Arc<Echo>) {
    let echo = Arc::new(Echo::default());
    let service: Arc<dyn Service> = echo.clone();
    (Arc::new(Hub::new([(ECHO, service)])), echo)
}

fn settings(cid: u64) -> Settings {
    Settings {
        cid,
        peers: vec![A + B - cid],
        ports: vec![ECHO],
    }
}

fn device(hub: &Arc<Hub>, settings: Settings, ram: &Arc<Ram>) -> Vsock {
    Vsock::new(hub.attach(settings, ram.clone()).unwrap())
}

fn packet(op: Op, from: Address, to: Address) -> Header {
    Header::new(op, from, to)
}

impl<'r> Guest<'r> {
    fn new(hub: &Arc<Hub>, settings: Settings, ram: &'r Arc<Ram>) -> Self {
        let cid = settings.cid;
        let mut driver = Driver::new(device(hub, settings, ram), ram);
        driver.negotiate(EVENTS);
        let receive = driver.set_up(0, 16, 0);
        let transmit = driver.set_up(1, 16, 0x4000);
        driver.ready();
        Self {
            driver,
            cid,
            receive,
            transmit,
            room: 1 << 20,
            taken: 0,
        }
    }

    /// Offers `count` buffers of `bytes` bytes.
    fn listen(&mut self, count: u64, bytes: u32) {
        for _ in 0..count {
            // Descriptors are used in turn.
            let at = u64::from(self.receive.next % 16);
            let buffer = (BUFFERS + u64::from(BUFFER) * at, bytes, true);
            self.receive.offer(self.driver.ram, &[buffer]).unwrap();
        }
        self.driver.kick(0);
    }

    /// Sends a packet in two buffers.
    fn send_raw(&mut self, header: Header, payload: &[u8]) {
        let ram = self.driver.ram;
        write(ram, SENT, &[&header.written(), payload].concat()).unwrap();
        let rest = (SENT + 44, payload.len() as u32, false);
        let buffers = [(SENT, 44, false), rest];
        let count = if payload.is_empty() { 1 } else { 2 };
        self.transmit.offer(ram, &buffers[..count]).unwrap();
        self.driver.kick(1);
    }

    /// Sends a packet from a port of the guest.
    fn send(&mut self, op: Op, port: u32, to: Address, payload: &[u8]) {
        let header = packet(op, self.at(port), to);
        let header = Header {
            bytes: payload.len() as u32,
            room: self.room,
            taken: self.taken,
            ..header
        };
        self.send_raw(header, payload);
        assert!(self.driver.function.fault().is_none());
        assert!(self.transmit.take(self.driver.ram).is_some(), "it waits");
    }

    const fn at(&self, port: u32) -> Address {
        Address {
            cid: self.cid,
            port,
        }
    }

    /// Lets the device look for news.
    fn look(&mut self) {
        while self.driver.serve().has_more {}
    }

    /// Takes the next packet that came.
    fn take(&mut self) -> Option<(Header, Vec<u8>)> {
        let ram = self.driver.ram;
        let at = u64::from(self.receive.seen % 16);
        let (_, bytes) = self.receive.take(ram)?;
        let mut all = vec![0; bytes as usize];
        read(ram, BUFFERS + u64::from(BUFFER) * at, &mut all).unwrap();
        let header = Header::read(all[..44].try_into().unwrap());
        assert_eq!(header.bytes as usize, all.len() - 44);
        Some((header, all[44..].to_vec()))
    }

    /// Takes the next packet, which must have this operation.
    fn expect(&mut self, op: Op) -> (Header, Vec<u8>) {
        let (header, payload) = self.take().expect("a packet");
        assert_eq!(header.op, Some(op), "{header:?}");
        (header, payload)
    }

    /// Connects from a port, and takes the answer.
    fn connect(&mut self, port: u32, to: Address) {
        self.send(Op::Request, port, to, &[]);
        let (header, _) = self.expect(Op::Response);
        assert_eq!((header.from, header.to), (to, self.at(port)));
        assert_eq!(header.room as usize, CAPACITY);
    }
}

const fn echo() -> Address {
    Address {
        cid: HOST,
        port: ECHO,
    }
}

fn rams() -> [Arc<Ram>; 2] {
    [(); 2].map(|()| Arc::new(Ram::new(64)))
}

#[test]
fn a_service_answers_in_the_same_batch_with_one_interrupt() {
    let ([ram, _], (hub, _)) = (rams(), hub());
    let mut guest = Guest::new(&hub, settings(A), &ram);
    assert_eq!(guest.driver.read(0x2000, 8), A, "the device configuration");
    guest.listen(8, BUFFER);
    guest.connect(1000, echo());
    guest.driver.interrupts();
    guest.receive.want_after(&ram, 1);
    guest.send(Op::Rw, 1000, echo(), b"hello");
    let (header, payload) = guest.expect(Op::Rw);
    assert_eq!((header.from, header.to), (echo(), guest.at(1000)));
    assert_eq!((&*payload, header.taken), (&b"hello"[..], 5));
    assert!(guest.driver.interrupts().contains(&0x40));
    // Both directions shut: the connection ends.
    let bye = Header {
        flags: 3,
        ..packet(Op::Shutdown, guest.at(1000), echo())
    };
    guest.send_raw(bye, &[]);
    guest.expect(Op::Rst);
    assert_eq!(guest.driver.function.device().connections(), 0);
}

#[test]
fn what_nobody_answers_is_reset() {
    let ([ram, _], (hub, _)) = (rams(), hub());
    let mut guest = Guest::new(&hub, settings(A), &ram);
    guest.listen(15, BUFFER);
    let nobody = [
        Address { cid: HOST, port: 8 },
        Address { cid: 0, port: ECHO },
        Address { cid: 1, port: ECHO },
        Address { cid: A, port: ECHO },
        Address { cid: B, port: ECHO },
        Address {
            cid: u64::MAX,
            port: ECHO,
        },
    ];
    for to in nobody {
        guest.send(Op::Request, 1000, to, &[]);
        let (header, _) = guest.expect(Op::Rst);
        assert_eq!((header.from, header.to), (to, guest.at(1000)));
    }
    for op in [
        Op::Rw,
        Op::Response,
        Op::Shutdown,
        Op::CreditUpdate,
        Op::CreditRequest,
    ] {
        guest.send(op, 1000, echo(), &[]);
        guest.expect(Op::Rst);
    }
    // A reset is not answered, nor is what another guest seems to send.
    guest.send(Op::Rst, 1000, echo(), &[]);
    let lie = packet(Op::Request, Address { cid: B, port: 1 }, echo());
    guest.send_raw(lie, &[]);
    let datagram = Header {
        kind: 3,
        ..packet(Op::Request, guest.at(1000), echo())
    };
    guest.transmit.take(&ram);
    guest.send_raw(datagram, &[]);
    let (header, _) = guest.expect(Op::Rst);
    assert_eq!(header.kind, 3);
    assert_eq!(guest.take(), None);
    let traffic = guest.driver.function.device().traffic();
    let packets = 6 + 5 + 1 + 1 + 1;
    assert_eq!(
        (traffic.from_guest, traffic.to_guest, traffic.dropped),
        (packets * 44, 12 * 44, packets)
    );
}

#[test]
fn a_service_is_there_for_those_that_may_use_it() {
    let ([ram, _], (hub, _)) = (rams(), hub());
    let may_not = Settings {
        ports: Vec::new(),
        ..settings(A)
    };
    let mut guest = Guest::new(&hub, may_not, &ram);
    guest.listen(1, BUFFER);
    guest.send(Op::Request, 1000, echo(), &[]);
    guest.expect(Op::Rst);
}

#[test]
fn a_guest_that_sends_beyond_its_credit_loses_the_connection() {
    let ([ram, _], (hub, echoes)) = (rams(), hub());
    let mut guest = Guest::new(&hub, settings(A), &ram);
    guest.listen(4, BUFFER);
    // Nothing is sent to the guest, so the service can't take more than it has put.
    guest.room = 0;
    guest.connect(1000, echo());
    let all = vec![1; CAPACITY];
    guest.send(Op::Rw, 1000, echo(), &all);
    guest.send(Op::Rw, 1000, echo(), &all);
    guest.expect(Op::CreditUpdate);
    assert_eq!(guest.take(), None);
    guest.send(Op::Rw, 1000, echo(), &[1]);
    guest.expect(Op::Rst);
    assert!(echoes.ends.lock().unwrap().is_empty());
}

#[test]
fn a_guest_without_buffers_holds_up_itself_alone() {
    let ([ram, _], (hub, _)) = (rams(), hub());
    let mut guest = Guest::new(&hub, settings(A), &ram);
    let mut sent = 0;
    // Answers wait until there are too many.
    while guest.driver.function.device().connections() == 0 {
        guest.send_raw(packet(Op::Rw, guest.at(sent), echo()), &[]);
        sent += 1;
        if guest.transmit.take(&ram).is_none() {
            break;
        }
    }
    assert_eq!(sent, 33);
    for _ in 0..3 {
        guest.listen(11, 64);
        for _ in 0..11 {
            guest.expect(Op::Rst);
        }
    }
    assert!(guest.transmit.take(&ram).is_some());
}

#[test]
fn connections_have_a_limit_and_are_used_again() {
    let ([ram, _], (hub, echoes)) = (rams(), hub());
    let mut guest = Guest::new(&hub, settings(A), &ram);
    for _ in 0..3 {
        for port in 0..4 {
            guest.listen(1, BUFFER);
            guest.connect(port, echo());
        }
        guest.listen(1, BUFFER);
        guest.send(Op::Request, 4, echo(), &[]);
        guest.expect(Op::Rst);
        // The same once more: the connection is lost.
        guest.listen(1, BUFFER);
        guest.send(Op::Request, 3, echo(), &[]);
        guest.expect(Op::Rst);
        for port in 0..3 {
            guest.send(Op::Rst, port, echo(), &[]);
        }
        assert_eq!(guest.take(), None);
        assert!(echoes.ends.lock().unwrap().is_empty());
        assert_eq!(guest.driver.function.device().connections(), 0);
    }
}

/// Connects two guests: from port 1000 of the first to port 5 of the second.
fn pair<'r>(hub: &Arc<Hub>, rams: &'r [Arc<Ram>; 2]) -> [Guest<'r>; 2] {
    let [mut asking, mut asked] = [0, 1].map(|at| {
        let mut guest = Guest::new(hub, settings(A + at as u64), &rams[at]);
        guest.listen(12, BUFFER);
        guest
    });
    let (from, to) = (asking.at(1000), asked.at(5));
    asking.send(Op::Request, 1000, to, &[]);
    assert_eq!(rams[1].rung.load(SeqCst), 1);
    asked.look();
    let (header, _) = asked.expect(Op::Request);
    assert_eq!((header.from, header.to), (from, to));
    asked.send(Op::Response, 5, from, &[]);
    assert!(rams[0].rung.load(SeqCst) > 0);
    asking.look();
    asking.expect(Op::Response);
    [asking, asked]
}

#[test]
fn two_guests_talk_and_part() {
    let (rams, (hub, _)) = (rams(), hub());
    let [mut asking, mut asked] = pair(&hub, &rams);
    let (from, to) = (asking.at(1000), asked.at(5));
    asking.send(Op::Rw, 1000, to, b"ping");
    asked.look();
    assert_eq!(asked.expect(Op::Rw).1, b"ping");
    asked.send(Op::Rw, 5, from, b"pong");
    asking.look();
    assert_eq!(asking.expect(Op::Rw).1, b"pong");
    // The first one sends a last word, and no more.
    asking.send(Op::Rw, 1000, to, b"bye");
    let header = packet(Op::Shutdown, from, to);
    asking.send_raw(Header { flags: 2, ..header }, &[]);
    asked.look();
    assert_eq!(asked.expect(Op::Rw).1, b"bye");
    assert_eq!(asked.expect(Op::Shutdown).0.flags, 2);
    asked.send(Op::Rst, 5, from, &[]);
    asking.look();
    asking.expect(Op::Rst);
    for guest in [&asking, &asked] {
        assert_eq!(guest.driver.function.device().connections(), 0);
    }
}

#[test]
fn guests_that_do_not_name_each_other_do_not_meet() {
    let (rams, (hub, _)) = (rams(), hub());
    let alone = Settings {
        peers: Vec::new(),
        ..settings(B)
    };
    let mut asked = Guest::new(&hub, alone, &rams[1]);
    asked.listen(2, BUFFER);
    let mut asking = Guest::new(&hub, settings(A), &rams[0]);
    asking.listen(2, BUFFER);
    asking.send(Op::Request, 1000, asked.at(5), &[]);
    asking.expect(Op::Rst);
    asked.send(Op::Request, 1000, asking.at(5), &[]);
    asked.expect(Op::Rst);
    assert_eq!([0, 1].map(|at| rams[at].rung.load(SeqCst)), [0; 2]);
}

#[test]
fn the_end_of_a_guest_ends_its_connections_and_frees_its_id() {
    let (rams, (hub, _)) = (rams(), hub());
    let taken = hub.attach(settings(A), rams[0].clone()).unwrap();
    let again = hub.attach(settings(A), rams[0].clone()).unwrap_err();
    assert_eq!(again, NoPlace::Taken(A));
    drop(taken);
    for ends in 0..3 {
        let [mut asking, mut asked] = pair(&hub, &rams);
        let to = asked.at(5);
        match ends {
            // The TD ends.
            0 => asked.driver.function.retire(),
            // The driver resets the device.
            1 => _ = asked.driver.write(0x14, 1, 0),
            // The driver breaks a rule.
            _ => {
                let header = packet(Op::Rw, to, asking.at(1000));
                asked.send_raw(Header { bytes: 9, ..header }, &[]);
                assert!(asked.driver.function.fault().is_some());
                assert!(rams[0].rung.load(SeqCst) > 1);
            }
        }
        asking.look();
        asking.expect(Op::Rst);
        // Nobody answers there now.
        asking.send(Op::Request, 1000, to, &[]);
        asking.expect(Op::Rst);
        for guest in [&mut asking, &mut asked] {
            guest.driver.function.retire();
        }
        for ram in &rams {
            ram.rung.store(0, SeqCst);
        }
    }
}

#[test]
fn a_guest_that_never_answers_takes_its_share_of_connections_alone() {
    let (rams, (hub, _)) = (rams(), hub());
    let mut silent = Guest::new(&hub, settings(B), &rams[1]);
    let mut asking = Guest::new(&hub, settings(A), &rams[0]);
    asking.listen(10, BUFFER);
    for port in 0..10 {
        asking.send(Op::Request, port, silent.at(5), &[]);
        silent.look();
    }
    for _ in 8..10 {
        asking.expect(Op::Rst);
    }
    assert_eq!(asking.take(), None);
    assert_eq!(silent.driver.function.device().connections(), 8);
    // The host is still there for it.
    asking.connect(2000, echo());
}

/// A step of two guests that are connected.
#[derive(Clone, Debug)]
enum Step {
    /// One sends so many bytes, as far as it has credit.
    Send(usize, usize),
    /// It looks for news.
    Look(usize),
    /// It takes what came, and offers buffers of this size.
    Take(usize, u32),
    /// It says that it has read all that came.
    Say(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let side = || 0usize..2;
    let step = prop_oneof![
        4 => (side(), 1usize..3000).prop_map(|(side, bytes)| Step::Send(side, bytes)),
        3 => side().prop_map(Step::Look),
        3 => (side(), 45u32..BUFFER).prop_map(|(side, bytes)| Step::Take(side, bytes)),
        1 => side().prop_map(Step::Say),
    ];
    proptest::collection::vec(step, 1..150)
}

/// The knowledge and the bytes of a guest, by the rules.
#[derive(Default)]
struct Side {
    sent: u32,
    /// The word of the device: bytes taken, and room.
    taken: u32,
    room: u32,
    got: u32,
    said: u32,
    expected: VecDeque<u8>,
    number: u8,
}

/// Room that each guest has for the other's bytes.
const ROOM: u32 = 5000;

proptest! {
    #[test]
    fn bytes_come_once_in_order_and_within_the_credit(steps in steps()) {
        let (rams, (hub, _)) = (rams(), hub());
        let mut guests = pair(&hub, &rams);
        let mut sides = [Side::default(), Side::default()];
        let ports = [1000, 5];
        for at in 0..2 {
            sides[at].room = CAPACITY as u32;
            guests[at].room = ROOM;
            let to = guests[1 - at].at(ports[1 - at]);
            guests[at].send(Op::CreditUpdate, ports[at], to, &[]);
        }
        for step in steps {
            match step {
                Step::Send(at, bytes) => {
                    let side = &mut sides[at];
                    let credit = side.room - (side.sent - side.taken);
                    let bytes: Vec<_> = (0..bytes.min(credit as usize)).map(|_| {
                        side.number = side.number.wrapping_add(1);
                        side.number
                    }).collect();
                    if bytes.is_empty() {
                        continue;
                    }
                    side.sent += bytes.len() as u32;
                    sides[1 - at].expected.extend(&bytes);
                    let to = guests[1 - at].at(ports[1 - at]);
                    guests[at].send(Op::Rw, ports[at], to, &bytes);
                }
                Step::Look(at) => guests[at].look(),
                Step::Take(at, bytes) => {
                    while let Some((header, payload)) = guests[at].take() {
                        let side = &mut sides[at];
                        prop_assert!(matches!(header.op, Some(Op::Rw | Op::CreditUpdate)));
                        prop_assert_eq!(header.room as usize, CAPACITY);
                        prop_assert!(header.taken >= side.taken && header.taken <= side.sent);
                        side.taken = header.taken;
                        side.got += payload.len() as u32;
                        prop_assert!(side.got - side.said <= ROOM);
                        let expected: Vec<_> = side.expected.drain(..payload.len()).collect();
                        prop_assert_eq!(payload, expected);
                        guests[at].listen(1, bytes);
                    }
                }
                Step::Say(at) => {
                    sides[at].said = sides[at].got;
                    guests[at].taken = sides[at].got;
                    let to = guests[1 - at].at(ports[1 - at]);
                    guests[at].send(Op::CreditUpdate, ports[at], to, &[]);
                }
            }
        }
        // Everything arrives in the end.
        for _ in 0..200 {
            for at in 0..2 {
                guests[at].look();
                while let Some((_, payload)) = guests[at].take() {
                    let side = &mut sides[at];
                    side.got += payload.len() as u32;
                    let expected: Vec<_> = side.expected.drain(..payload.len()).collect();
                    prop_assert_eq!(payload, expected);
                    guests[at].listen(1, BUFFER);
                }
                guests[at].taken = sides[at].got;
                let to = guests[1 - at].at(ports[1 - at]);
                guests[at].send(Op::CreditUpdate, ports[at], to, &[]);
            }
        }
        prop_assert!(sides.iter().all(|side| side.expected.is_empty()));
    }
}

#[test]
fn a_million_operations_on_sockets_hurt_nobody() {
    let ram = Arc::new(Ram::new(1));
    let (hub, _) = hub();
    let device = device(&hub, settings(A), &ram);
    hostile::torment(device, &[0, 0x4000], 1_000_000);
}

/// Returns a packet of a hostile guest: whole, but for what it says.
fn hostile_packet(random: &mut fastrand::Rng) -> Header {
    let cids = [A, A, A, A, A, A, B, HOST, 0, u64::MAX];
    let from = Address {
        cid: random.choice(cids).unwrap(),
        port: random.u32(..6),
    };
    let to = Address {
        cid: random.choice([HOST, HOST, B, B, B, A, 99]).unwrap(),
        port: random.choice([ECHO, ECHO, 5, 5, u32::MAX]).unwrap(),
    };
    let op = random
        .choice([0, 1, 1, 2, 3, 4, 5, 5, 5, 5, 6, 7, 99])
        .unwrap();
    let any = random.u32(..);
    Header {
        bytes: 0,
        kind: random.choice([1, 1, 1, 1, 1, 1, 1, 1, 2, 77]).unwrap(),
        op: Op::try_from(op).ok(),
        flags: random.u32(..5),
        room: random.choice([any, 0, 100, 1 << 20]).unwrap(),
        taken: random.choice([any, 0, 0, 50]).unwrap(),
        ..packet(Op::Rw, from, to)
    }
}

#[test]
fn lies_of_a_guest_stay_its_own_trouble() {
    let seed = fastrand::u64(..);
    std::eprintln!("SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (rams, (hub, echoes)) = (rams(), hub());
    let mut good = Guest::new(&hub, settings(B), &rams[1]);
    good.listen(14, BUFFER);
    good.connect(1, echo());
    let mut bad = Guest::new(&hub, settings(A), &rams[0]);
    let bytes = vec![7; CAPACITY];
    for number in 0..100_000u32 {
        let header = hostile_packet(&mut random);
        let bytes = &bytes[..random.usize(..bytes.len()) >> random.u32(..13)];
        let header = Header {
            bytes: bytes.len() as u32,
            ..header
        };
        while bad.transmit.take(&rams[0]).is_some() {}
        while bad.take().is_some() {}
        if random.u32(..4) > 0 && bad.transmit.has_room(2) {
            bad.send_raw(header, bytes);
        }
        while bad.receive.has_room(1) && random.bool() {
            let bytes = random.u32(45..BUFFER);
            bad.listen(1, bytes);
        }
        assert!(bad.driver.function.device().connections() <= 16);
        assert!(echoes.ends.lock().unwrap().len() <= 4);
        // The other one answers what it is asked, and is served.
        good.look();
        while let Some((header, payload)) = good.take() {
            good.listen(1, BUFFER);
            if header.from == echo() {
                assert_eq!(payload, b"still");
                good.taken += 5;
            } else if header.op == Some(Op::Request) && random.bool() {
                good.send_raw(packet(Op::Response, header.to, header.from), &[]);
                good.transmit.take(&rams[1]);
            }
        }
        if number % 8 == 0 {
            good.send(Op::Rw, 1, echo(), b"still");
        }
    }
    assert_eq!(good.driver.function.fault(), None);
    bad.driver.write(0x14, 1, 0);
    assert_eq!(bad.driver.function.device().connections(), 0);
}
