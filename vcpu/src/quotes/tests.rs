//! Quotes with a service in the test: the other end of its connection.

extern crate std;

use std::boxed::Box;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::vec;
use std::vec::Vec;

use devices::{Other, Page, Unshared};
use proptest::prelude::*;
use virtio::access::{field, read, set_field, write};
use virtio::vsock::{Address, Caller, End, Link, Service};

use super::qgs::tests::answer;
use super::qgs::{REPORT, REQUEST};
use super::*;

/// The status of a guest's buffer.
const SUCCESS: u64 = 0;
const IN_FLIGHT: u64 = u64::MAX;
const ERROR: u64 = 1 << 63;
const UNAVAILABLE: u64 = 1 << 63 | 1;

const BUFFER: u64 = 0x4000;
const BUFFERS: u64 = 16;
/// Size of a buffer.
const BYTES: u64 = 0x2000;

/// A guest: its memory, its bus, and its quotes.
struct Guest {
    pages: Vec<Box<Page>>,
    unshared: Mutex<Vec<u64>>,
    rung: AtomicU64,
    bus: Arc<Bus>,
    quotes: Quotes,
    now: Mutex<u64>,
}

impl Memory for Guest {
    fn page(&self, gpa: u64) -> Result<&Page, Unshared> {
        if self.unshared.lock().unwrap().contains(&(gpa / 4096)) {
            return Err(Unshared(gpa));
        }
        self.pages
            .get((gpa / 4096) as usize)
            .map(|page| &**page)
            .ok_or(Unshared(gpa))
    }

    fn ring(&self, _: &Other) {
        self.rung.fetch_add(1, SeqCst);
    }
}

impl Guest {
    fn new(port: &Arc<QuotePort>) -> Self {
        let page = || Box::new([const { AtomicU64::new(0) }; 512]);
        Self {
            pages: (0..BUFFERS * BUFFER / 4096).map(|_| page()).collect(),
            unshared: Mutex::default(),
            rung: AtomicU64::new(0),
            bus: Arc::new(Bus::new([], Vec::new())),
            quotes: Quotes::new(port.clone()),
            now: Mutex::new(0),
        }
    }

    fn now(&self) -> Now {
        Now {
            monotonic_us: *self.now.lock().unwrap(),
            unix_seconds: 0,
        }
    }

    /// Asks for the quote of a report of this byte, in the buffer of this number.
    fn ask(&self, number: u64, byte: u8) -> Result<(), NotTaken> {
        let gpa = number * BUFFER;
        set_field(self, gpa, 8, 1).unwrap();
        set_field(self, gpa + 8, 8, 0x77).unwrap();
        set_field(self, gpa + 16, 4, REPORT as u64).unwrap();
        write(self, gpa + 24, &[byte; REPORT]).unwrap();
        let buffer = Buffer { gpa, bytes: BYTES };
        self.quotes.take(self, buffer, &self.bus, self.now())
    }

    /// Looks for work, as before an entry.
    fn serve(&self) {
        if self.bus.has_work() {
            self.quotes.serve(self, self.now());
            self.bus.serve(self, self.now());
        }
    }

    /// Returns status and quote.
    fn result(&self, number: u64) -> (u64, Vec<u8>) {
        let gpa = number * BUFFER;
        let status = field(self, gpa + 8, 8).unwrap();
        let mut quote = vec![0; field(self, gpa + 20, 4).unwrap() as usize];
        read(self, gpa + 24, &mut quote).unwrap();
        (status, quote)
    }
}

/// Connects a service. Returns its end.
fn service(port: &Arc<QuotePort>) -> End {
    let link = Link::new();
    let [own, end] = link.begin().unwrap();
    let address = Address { cid: 9, port: 1 };
    let guest: Other = Arc::new(());
    port.connect(Caller { address, guest }, end);
    own
}

/// Takes a request. Returns the byte of its report.
fn request(end: &End) -> Option<u8> {
    let mut bytes = [0; REQUEST];
    if end.see().readable == 0 {
        return None;
    }
    assert_eq!(end.take(&mut bytes), REQUEST);
    assert_eq!(bytes, qgs::request(&[bytes[REQUEST - 1]; REPORT]));
    Some(bytes[REQUEST - 1])
}

/// Answers, in parts, with a quote of this byte and length.
fn reply(port: &Arc<QuotePort>, memory: &Guest, end: &End, bytes: &[u8]) {
    for part in bytes.chunks(3000) {
        assert_eq!(end.put(part), part.len());
        port.attend(memory, memory.now());
    }
}

#[test]
fn without_a_service_a_quote_is_refused() {
    let port = QuotePort::new();
    let guest = Guest::new(&port);
    assert_eq!(guest.ask(0, 7), Err(NotTaken::NoService));
    assert_eq!(guest.result(0).0, 0x77, "the buffer is as it was");
    let end = service(&port);
    assert!(end.see().is_open);
    // There is one service.
    assert!(service(&port).see().is_gone);
    drop(end);
    assert_eq!(guest.ask(0, 7), Err(NotTaken::NoService));
    assert!(service(&port).see().is_open);
}

#[test]
fn a_request_becomes_a_message_and_the_answer_a_quote() {
    let port = QuotePort::new();
    let guest = Guest::new(&port);
    let end = service(&port);
    assert_eq!(guest.ask(1, 7), Ok(()));
    assert_eq!(guest.result(1).0, IN_FLIGHT);
    guest.serve();
    assert_eq!(guest.rung.load(SeqCst), 1, "the service's guest");
    assert_eq!(request(&end), Some(7));
    let quote = vec![9; 8000];
    reply(&port, &guest, &end, &answer(0, b"id", &quote));
    assert_eq!(guest.result(1).0, IN_FLIGHT, "its own CPU writes it");
    guest.serve();
    assert_eq!(guest.result(1), (SUCCESS, quote));
    // An error, and a quote that does not fit.
    for bytes in [answer(5, b"", b""), answer(0, b"", &vec![9; 8169])] {
        assert_eq!(guest.ask(1, 8), Ok(()));
        guest.serve();
        assert_eq!(request(&end), Some(8));
        reply(&port, &guest, &end, &bytes);
        guest.serve();
        assert_eq!(guest.result(1), (ERROR, Vec::new()));
    }
}

#[test]
fn a_hundred_requests_at_once_are_a_few_and_the_rest_tries_again() {
    let port = QuotePort::new();
    let (many, other) = (Guest::new(&port), Guest::new(&port));
    let end = service(&port);
    let taken = (0..100).filter(|number| many.ask(number % 8, *number as u8) == Ok(()));
    assert_eq!(taken.count(), 8);
    assert_eq!(many.ask(0, 0), Err(NotTaken::Full));
    many.serve();
    assert_eq!(other.ask(0, 200), Ok(()));
    other.serve();
    // TDs take turns.
    for expected in [0, 200, 1, 2, 3, 4, 5, 6, 7] {
        assert_eq!(request(&end), Some(expected));
        assert_eq!(request(&end), None, "one at a time");
        reply(&port, &many, &end, &answer(0, b"", &[expected]));
        many.serve();
        other.serve();
    }
    assert_eq!(other.result(0), (SUCCESS, vec![200]));
    for number in 0..8 {
        assert_eq!(many.result(number), (SUCCESS, vec![number as u8]));
    }
}

#[test]
fn the_end_of_a_td_with_requests_hurts_nobody() {
    let port = QuotePort::new();
    let end = service(&port);
    let other = Guest::new(&port);
    for _ in 0..5 {
        let ending = Guest::new(&port);
        for number in 0..8 {
            assert_eq!(ending.ask(number, 1), Ok(()));
        }
        ending.serve();
        assert_eq!(other.ask(0, 2), Ok(()));
        other.serve();
        ending.quotes.close();
        assert_eq!(ending.ask(0, 1), Err(NotTaken::Full));
        assert_eq!(request(&end), Some(1));
        reply(&port, &other, &end, &answer(0, b"", &[1]));
        ending.serve();
        assert_eq!(ending.result(1).0, IN_FLIGHT, "nothing is written");
        assert_eq!(request(&end), Some(2));
        reply(&port, &other, &end, &answer(0, b"", &[2]));
        other.serve();
        assert_eq!(other.result(0), (SUCCESS, vec![2]));
    }
}

#[test]
fn requests_fail_when_the_service_ends_or_is_late_or_talks_nonsense() {
    let ends: [fn(&Arc<QuotePort>, &Guest, End); 5] = [
        |port, _, end| {
            drop(end);
            port.look();
        },
        |_, guest, _end| *guest.now.lock().unwrap() = 30_000_001,
        |port, guest, end| reply(port, guest, &end, &[0xFF; 4]),
        |port, guest, end| {
            // One answer too many.
            let bytes = answer(0, b"", &[1]);
            reply(port, guest, &end, &bytes);
            reply(port, guest, &end, &bytes);
            reply(port, guest, &end, &bytes);
        },
        |port, guest, end| {
            end.shut(virtio::vsock::Shut::ALL);
            port.attend(guest, guest.now());
        },
    ];
    for (number, break_it) in ends.into_iter().enumerate() {
        let port = QuotePort::new();
        let guest = Guest::new(&port);
        let end = service(&port);
        for number in 0..8 {
            assert_eq!(guest.ask(number, 1), Ok(()));
        }
        guest.serve();
        break_it(&port, &guest, end);
        assert_eq!(guest.ask(9, 1), Err(NotTaken::NoService));
        guest.serve();
        let last = guest.result(7).0;
        assert_eq!(last, UNAVAILABLE, "{number}");
        assert!((0..8).all(|number| guest.result(number).0 != IN_FLIGHT));
        // Another service finds nothing left.
        let end = service(&port);
        guest.serve();
        assert_eq!((end.see().is_open, request(&end)), (true, None));
    }
}

#[test]
fn a_buffer_that_is_no_request_or_not_shared_is_refused() {
    let port = QuotePort::new();
    let guest = Guest::new(&port);
    let end = service(&port);
    for (at, value) in [
        (0, 0),
        (0, 2),
        (0, 1 << 32 | 1),
        (16, 0),
        (16, 1023),
        (16, 4096),
    ] {
        _ = guest.ask(1, 0);
        let gpa = 2 * BUFFER;
        set_field(&guest, gpa, 8, 1).unwrap();
        set_field(&guest, gpa + 16, 8, 1024).unwrap();
        set_field(&guest, gpa + at, 8, value).unwrap();
        let buffer = Buffer { gpa, bytes: BYTES };
        let taken = guest.quotes.take(&guest, buffer, &guest.bus, guest.now());
        assert_eq!(taken, Err(NotTaken::Invalid), "{at} {value:#x}");
    }
    let unshared = Guest::new(&port);
    *unshared.unshared.lock().unwrap() = vec![0];
    let buffer = Buffer {
        gpa: 0,
        bytes: BYTES,
    };
    let taken = unshared
        .quotes
        .take(&unshared, buffer, &unshared.bus, unshared.now());
    assert_eq!(taken, Err(NotTaken::Invalid));
    drop(end);
}

#[test]
fn a_buffer_that_is_taken_back_gets_no_quote() {
    let port = QuotePort::new();
    let guest = Guest::new(&port);
    let end = service(&port);
    for (page, expected) in [(1, IN_FLIGHT), (2, ERROR)] {
        assert_eq!(guest.ask(0, 1), Ok(()));
        guest.serve();
        request(&end).unwrap();
        *guest.unshared.lock().unwrap() = vec![page - 1];
        reply(&port, &guest, &end, &answer(0, b"", &[3; 5000]));
        guest.serve();
        guest.unshared.lock().unwrap().clear();
        assert_eq!(guest.result(0).0, expected);
    }
}

/// A step of two guests and a service.
#[derive(Clone, Debug)]
enum Step {
    Ask(usize, u64),
    Serve(usize),
    Answer { bytes: usize, is_good: bool },
    Leave,
    Come,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0usize..2, 0..BUFFERS).prop_map(|(guest, number)| Step::Ask(guest, number)),
        4 => (0usize..2).prop_map(Step::Serve),
        4 => (1usize..6000, any::<bool>()).prop_map(|(bytes, is_good)| Step::Answer { bytes, is_good }),
        1 => Just(Step::Leave),
        2 => Just(Step::Come),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    /// Each request that was taken ends once, with its own quote or an error.
    #[test]
    fn every_request_ends(steps in steps()) {
        let port = QuotePort::new();
        let guests = [Guest::new(&port), Guest::new(&port)];
        let mut end = None;
        // A report is the guest's and the buffer's number.
        let byte = |guest: usize, number: u64| (guest as u8) << 4 | number as u8;
        let mut flying = [[false; BUFFERS as usize]; 2];
        for step in steps {
            match step {
                Step::Ask(guest, number) => {
                    if flying[guest][number as usize] {
                        continue;
                    }
                    let taken = guests[guest].ask(number, byte(guest, number));
                    let count = flying[guest].iter().filter(|flies| **flies).count();
                    if end.is_some() {
                        // A failed request may not have been written yet.
                        prop_assert!(taken == Ok(()) || count >= requests::MOST);
                    } else {
                        prop_assert_eq!(taken, Err(NotTaken::NoService));
                    }
                    flying[guest][number as usize] = taken == Ok(());
                }
                Step::Serve(guest) => guests[guest].serve(),
                Step::Answer { bytes, is_good } => {
                    let Some(end) = &end else { continue };
                    if let Some(byte) = request(end) {
                        let answer = answer(u32::from(!is_good), b"", &vec![byte; bytes]);
                        reply(&port, &guests[0], end, &answer);
                    }
                }
                Step::Leave => {
                    end = None;
                    port.look();
                }
                Step::Come => {
                    if end.is_none() {
                        end = Some(service(&port));
                    }
                }
            }
            for guest in 0..2 {
                for number in 0..BUFFERS {
                    if !flying[guest][number as usize] {
                        continue;
                    }
                    let (status, quote) = guests[guest].result(number);
                    match status {
                        IN_FLIGHT => continue,
                        SUCCESS => prop_assert!(quote.iter().all(|b| *b == byte(guest, number))),
                        ERROR | UNAVAILABLE => prop_assert!(quote.is_empty()),
                        other => prop_assert!(false, "{:#x}", other),
                    }
                    flying[guest][number as usize] = false;
                }
            }
        }
        drop(end);
        port.look();
        for guest in &guests {
            guest.serve();
            for number in 0..BUFFERS {
                prop_assert!(guest.result(number).0 != IN_FLIGHT);
            }
        }
    }
}
