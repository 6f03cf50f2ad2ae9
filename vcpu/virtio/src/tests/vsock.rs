//! The socket device, by its driver: connections to a service of the host.

mod guests;
mod lies;
mod model;
mod shares;

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

use super::{Driver, Ram, Ring, std};
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
