//! Two guests and a service of the host that meet at the hub of socket devices. Each guest connects to the other one and
//! to the host, sends, gets back what it sent, and shuts down; meanwhile it accepts, answers and resets what the other one
//! wants. One of them may end, or reset its device, at any point.
//!
//! In every order, every wait has an end, bytes come once and in order, and nothing is left behind.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock, Weak};

use devices::{Devices, Memory, Now, Other, Page, Unshared};
use shuttle::{rand, rand::Rng, thread};
use sync::Mutex;
use sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use virtio::vsock::{Caller, End, Hub, Service, Settings, Shut};
use virtio::{Transport, Vsock, access};

use crate::driver::{Driver, Ring};
use crate::explore::explore;
use crate::ram::Ram;

const EVENTS: u64 = 1 << 29;
/// Places of the registers, of a packet to send, and of the buffers.
const REGISTERS: u64 = 0xC000_0000;
const SENT: u64 = 0x9000;
const BUFFERS: u64 = 0xA000;
const BUFFER: u64 = 0x400;
const DESCRIPTORS: u16 = 16;
/// Number of times that a guest looks for an event which has to come.
const PATIENCE: usize = 20_000;

const HOST: u64 = 2;
const ECHO: u32 = 7;
/// The guests' context ids, the port at which they listen, and the first one from which they connect.
const CIDS: [u64; 2] = [3, 4];
const LISTENS: u32 = 5;
const CONNECTS: u32 = 1000;
const PAYLOAD: [&[u8]; 2] = [b"first", b"and second"];

/// Operations of packets.
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const SHUTDOWN: u16 = 4;
const DATA: u16 = 5;
const CREDIT_UPDATE: u16 = 6;

/// A guest, as others know it.
#[derive(Default)]
struct Peer(OnceLock<Weak<Node>>);

/// The part of a guest that others reach.
struct Node {
    ram: Ram,
    devices: OnceLock<Devices>,
    /// Number of interrupts that its driver has not heeded.
    interrupts: AtomicU64,
}

/// Its memory, for a part of the work of its device.
struct Part<'n> {
    node: &'n Node,
    rung: RefCell<Vec<Other>>,
}

impl Memory for Part<'_> {
    fn page(&self, gpa: u64) -> Result<&Page, Unshared> {
        self.node.ram.page(gpa)
    }

    fn ring(&self, other: &Other) {
        self.rung.borrow_mut().push(other.clone());
    }
}

impl Node {
    fn devices(&self) -> &Devices {
        self.devices.get().unwrap()
    }

    /// Lets the device work, as a CPU does before it enters the guest.
    fn serve(&self) {
        let bus = self.devices().pci();
        for _ in 0..32 {
            if !bus.has_work() {
                break;
            }
            let part = Part {
                node: self,
                rung: RefCell::default(),
            };
            let _ = bus.serve(&part, Now::default());
            for other in part.rung.into_inner() {
                other.downcast_ref::<Peer>().unwrap().tell();
            }
        }
        while bus.take_message().is_some() {
            self.interrupts.fetch_add(1, SeqCst);
        }
    }
}

impl Peer {
    /// Lets the device take its news, on another guest's CPU. Whoever runs the guest finds the work.
    fn tell(&self) {
        if let Some(node) = self.0.get().and_then(Weak::upgrade) {
            let interrupt = &mut |_| _ = node.interrupts.fetch_add(1, SeqCst);
            let _ = node.devices().pci().tell(1, interrupt);
        }
    }
}

/// A service that sends back what it gets.
#[derive(Debug, Default)]
struct Echo(Mutex<Vec<(Caller, End)>>);

impl Service for Echo {
    fn connect(&self, caller: Caller, end: End) {
        end.open();
        self.0.lock().push((caller, end));
    }

    fn attend(&self, memory: &dyn Memory, _: Now) {
        let mut ends = self.0.lock();
        for (caller, end) in ends.iter() {
            let mut bytes = [0; 64];
            let count = end.take(&mut bytes);
            assert_eq!(end.put(&bytes[..count]), count);
            if count > 0 {
                memory.ring(&caller.guest);
            }
        }
        ends.retain(|(_, end)| !end.see().is_gone && end.see().shut != Shut::ALL);
    }
}

/// A packet without the addresses' context ids.
#[derive(Debug)]
struct Packet {
    op: u16,
    from: (u64, u32),
    to: u32,
    payload: Vec<u8>,
}

/// A connection that a guest asked for.
struct Own {
    port: u32,
    to: (u64, u32),
    got: Vec<u8>,
    is_over: bool,
}

/// The driver of a guest's device.
struct Guest {
    peer: Arc<Peer>,
    node: Arc<Node>,
    function: Arc<Mutex<Transport<Vsock>>>,
    cid: u64,
    receive: Ring,
    transmit: Ring,
    own: Vec<Own>,
    /// The other side of the other guest's connection, until that ends.
    accepted: Option<(u64, u32)>,
    /// Number of connections of the other guest that have ended.
    answered: usize,
}

impl Guest {
    fn new(hub: &Arc<Hub>, cid: u64) -> Self {
        let node = Arc::new(Node {
            ram: Ram::new(16),
            devices: OnceLock::new(),
            interrupts: AtomicU64::new(0),
        });
        let settings = Settings {
            cid,
            peers: CIDS.into_iter().filter(|other| *other != cid).collect(),
            ports: vec![ECHO],
        };
        let peer = Arc::new(Peer::default());
        peer.0.set(Arc::downgrade(&node)).unwrap();
        let device = Vsock::new(hub.attach(settings, peer.clone()).unwrap());
        let mut driver = Driver::new(device, &node.ram);
        driver.negotiate(EVENTS);
        let receive = driver.set_up(0, DESCRIPTORS, 0);
        let transmit = driver.set_up(1, DESCRIPTORS, 0x4000);
        driver.ready();
        let function = Arc::new(Mutex::new(driver.function));
        let devices = Devices::new([], vec![function.clone()]);
        for (register, value) in [(0x10, REGISTERS), (0x04, 6)] {
            let _ = devices.output(0xCF8, 4, 0x8000_0800 | register, Now::default);
            let _ = devices.output(0xCFC, 4, value, Now::default);
        }
        node.devices.set(devices).unwrap();
        let mut guest = Self {
            peer,
            node,
            function,
            cid,
            receive,
            transmit,
            own: Vec::new(),
            accepted: None,
            answered: 0,
        };
        guest.receive.want_after(&guest.node.ram, 1);
        (0..DESCRIPTORS).for_each(|_| guest.offer());
        guest
    }

    fn store(&self, offset: u64, size: u8, value: u64) {
        let devices = self.node.devices();
        let stored = devices.store(REGISTERS + offset, size, value, Now::default());
        assert!(stored.is_some());
        self.node.serve();
    }

    /// Offers the next buffer.
    fn offer(&mut self) {
        let at = u64::from(self.receive.next % DESCRIPTORS);
        let buffer = (BUFFERS + BUFFER * at, BUFFER as u32, true);
        self.receive.offer(&self.node.ram, &[buffer]).unwrap();
        self.store(0x3000, 2, 0);
    }

    /// Sends a packet, and waits until the device has it.
    fn send(&mut self, op: u16, port: u32, to: (u64, u32), payload: &[u8]) {
        let mut packet = Vec::new();
        packet.extend(self.cid.to_le_bytes());
        packet.extend(to.0.to_le_bytes());
        let flags = if op == SHUTDOWN { 3 } else { 0 };
        let kind = 1 | u32::from(op) << 16;
        let room = 1 << 20;
        for word in [port, to.1, payload.len() as u32, kind, flags, room, 0] {
            packet.extend(word.to_le_bytes());
        }
        packet.extend(payload);
        let ram = &self.node.ram;
        access::write(ram, SENT, &packet).unwrap();
        let buffer = (SENT, packet.len() as u32, false);
        self.transmit.offer(ram, &[buffer]).unwrap();
        self.store(0x3004, 2, 1);
        for _ in 0..PATIENCE {
            if self.transmit.take(&self.node.ram).is_some() {
                return;
            }
            thread::yield_now();
            self.node.serve();
        }
        panic!("the device does not take a packet");
    }

    /// Takes the next packet that came, if the driver was interrupted since it found none.
    fn take(&mut self) -> Option<Packet> {
        self.node.serve();
        if self.node.interrupts.load(SeqCst) == 0 {
            return None;
        }
        let ram = &self.node.ram;
        let at = u64::from(self.receive.seen % DESCRIPTORS);
        let Some((_, bytes)) = self.receive.take(ram) else {
            self.node.interrupts.store(0, SeqCst);
            self.receive.want_after(ram, 1);
            // One that came before that is not announced.
            let used = access::field(ram, self.receive.place.used + 2, 2).unwrap();
            if used as u16 != self.receive.seen {
                self.node.interrupts.fetch_add(1, SeqCst);
            }
            return None;
        };
        let mut all = vec![0; bytes as usize];
        access::read(ram, BUFFERS + BUFFER * at, &mut all).unwrap();
        self.offer();
        let word = |at: usize| u32::from_le_bytes(all[at..at + 4].try_into().unwrap());
        Some(Packet {
            op: (word(28) >> 16) as u16,
            from: (word(0).into(), word(16)),
            to: word(20),
            payload: all[44..].to_vec(),
        })
    }

    /// Connects to another port.
    fn connect(&mut self, to: (u64, u32)) {
        let port = CONNECTS + self.own.len() as u32;
        self.own.push(Own {
            port,
            to,
            got: Vec::new(),
            is_over: false,
        });
        self.send(REQUEST, port, to, &[]);
    }

    /// Acts on a packet.
    fn heed(&mut self, packet: Packet) {
        let Packet {
            op,
            from,
            to,
            payload,
        } = packet;
        match (op, to) {
            (CREDIT_UPDATE, _) => {}
            (REQUEST, LISTENS) => {
                self.accepted = Some(from);
                self.send(RESPONSE, to, from, &[]);
            }
            (DATA, LISTENS) => self.send(DATA, to, from, &payload),
            (SHUTDOWN, LISTENS) => {
                self.send(RESET, to, from, &[]);
                self.answered += usize::from(self.accepted.take().is_some());
            }
            // The other one has had all that it wanted, or is gone. A reset may also cross with the one above.
            (RESET, LISTENS) => self.answered += usize::from(self.accepted.take().is_some()),
            (RESPONSE, _) => {
                for payload in PAYLOAD {
                    self.send(DATA, to, from, payload);
                }
            }
            (DATA, _) => {
                let own = self.own(to);
                assert!(!own.is_over && own.to == from);
                own.got.extend(payload);
                let got = own.got.len();
                let all = PAYLOAD.concat();
                assert_eq!(own.got, all[..got]);
                if got == all.len() {
                    self.send(SHUTDOWN, to, from, &[]);
                }
            }
            // A packet that crosses with it is answered by another one.
            (RESET, _) => self.own(to).is_over = true,
            _ => panic!("{op} from {from:?} to {to}"),
        }
    }

    fn own(&mut self, port: u32) -> &mut Own {
        let mut own = self.own.iter_mut();
        own.find(|own| own.port == port).unwrap()
    }

    /// Runs until its own connections are over, and one of the other guest's, unless that is gone. Leaves after `events`
    /// packets.
    fn run(&mut self, other_is_gone: &AtomicBool, events: usize) {
        self.connect((CIDS[0] + CIDS[1] - self.cid, LISTENS));
        self.connect((HOST, ECHO));
        let mut left = events;
        for _ in 0..PATIENCE {
            if left == 0 {
                return;
            }
            match self.take() {
                Some(packet) => {
                    left -= 1;
                    self.heed(packet);
                }
                None => thread::yield_now(),
            }
            let is_answered = self.answered > 0 || other_is_gone.load(SeqCst);
            if is_answered && self.own.iter().all(|own| own.is_over) {
                return;
            }
        }
        let over: Vec<_> = self.own.iter().map(|own| own.is_over).collect();
        panic!("guest {} waits: {over:?}, {}", self.cid, self.answered);
    }

    fn connections(&self) -> usize {
        self.function.lock().device().connections()
    }
}

/// The way in which a guest leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Its TD ends.
    End,
    /// Its driver resets the device.
    Reset,
}

/// Runs two guests. One leaves after a number of packets, unless there is no way. Returns the guests, with the one that
/// stays first, and the service.
fn race(way: Option<Way>) -> ([Guest; 2], Arc<Echo>, Arc<Hub>) {
    let echo = Arc::new(Echo::default());
    let service: Arc<dyn Service> = echo.clone();
    let hub = Arc::new(Hub::new([(ECHO, service)]));
    let [stays, leaves] = CIDS.map(|cid| Guest::new(&hub, cid));
    let is_gone = Arc::new(AtomicBool::new(false));
    let events = match way {
        Some(_) => rand::thread_rng().gen_range(0..6),
        None => usize::MAX,
    };
    let other = stays.node.clone();
    let has_left = is_gone.clone();
    let leaving = thread::spawn(move || {
        let mut guest = leaves;
        guest.run(&AtomicBool::new(false), events);
        match way {
            None => return guest,
            // The driver does nothing more.
            Some(Way::Reset) => guest.store(0x14, 1, 0),
            Some(Way::End) => {
                guest.node.devices().pci().retire();
                // The host lets the devices of all guests look.
                other.devices().pci().rouse();
                other.serve();
            }
        }
        has_left.store(true, SeqCst);
        guest
    });
    let staying = thread::spawn(move || {
        let mut guest = stays;
        guest.run(&is_gone, usize::MAX);
        guest
    });
    let guests = [staying, leaving].map(|guest| guest.join().unwrap());
    (guests, echo, hub)
}

/// Lets a guest do what is left to do.
fn settle(guest: &mut Guest) {
    while let Some(packet) = guest.take() {
        guest.heed(packet);
    }
}

#[test]
fn guests_that_connect_and_shut_down_at_the_same_time_leave_nothing() {
    explore(|| {
        let (mut guests, echo, _) = race(None);
        for _ in 0..2 {
            guests.iter_mut().for_each(settle);
        }
        for guest in &guests {
            assert_eq!((guest.connections(), guest.answered), (0, 1));
        }
        assert!(echo.0.lock().is_empty());
        let [one, other] = guests;
        are_free(one, &other);
    });
}

#[test]
fn a_guest_that_ends_at_any_point_leaves_nothing() {
    explore(|| {
        let ([mut stays, left], echo, hub) = race(Some(Way::End));
        settle(&mut stays);
        assert_eq!(stays.connections(), 0);
        // The service finds out when it looks next.
        echo.attend(
            &Part {
                node: &stays.node,
                rung: RefCell::default(),
            },
            Now::default(),
        );
        assert!(echo.0.lock().is_empty());
        let Guest { peer, cid, .. } = left;
        assert_eq!(Arc::strong_count(&peer), 1, "somebody knows it still");
        let next = Guest::new(&hub, cid);
        are_free(stays, &next);
    });
}

#[test]
fn a_reset_at_any_point_reaches_the_other_side() {
    explore(|| {
        let ([mut stays, left], echo, _) = race(Some(Way::Reset));
        settle(&mut stays);
        assert_eq!((stays.connections(), left.connections()), (0, 0));
        assert!(echo.0.lock().is_empty());
    });
}

/// Checks that all links of a guest are free: it can have as many connections as ever.
fn are_free(mut guest: Guest, other: &Guest) {
    for port in 0..8 {
        guest.send(REQUEST, 2000 + port, (other.cid, LISTENS), &[]);
    }
    assert!(guest.take().is_none());
    assert_eq!(guest.connections(), 8);
}
