//! CPUs that meet at a switch: they send to one port, while its guest takes frames, leaves, or another one
//! comes.

use std::sync::Arc;

use devices::Now;
use devices::pci::Bus;
use shuttle::thread;
use sync::Mutex;
use sync::atomic::{AtomicU64, Ordering::SeqCst};
use virtio::access;
use virtio::net::{Attached, Count, Mac, Net, Settings, Switch};

use crate::driver::{Driver, Ring};
use crate::explore::explore;
use crate::ram::Ram;

const EVENTS: u64 = 1 << 29;
const RECEIVER: u64 = 0x10;
const SENDERS: [u64; 2] = [0x20, 0x30];
const LATECOMER: u64 = 0x40;
/// Frames that each sender sends.
const FRAMES: u64 = 2;
const SENT: u64 = 0x9000;
const BUFFERS: u64 = 0xA000;

fn attach(switch: &Arc<Switch>, mac: u64) -> Attached {
    let settings = Settings {
        mac: Mac(mac),
        is_trunk: false,
        is_isolated: false,
    };
    switch.attach(settings).unwrap()
}

/// Starts the driver of a card, which offers `buffers` buffers.
fn start(port: Attached, ram: &Arc<Ram>, buffers: u64) -> (Driver<'_, Net>, [Ring; 2]) {
    let mut driver = Driver::new(Net::new(port, ram.clone(), None), ram);
    driver.negotiate(EVENTS);
    let mut rings = [driver.set_up(0, 8, 0), driver.set_up(1, 8, 0x4000)];
    driver.ready();
    for number in 0..buffers {
        rings[0].offer(ram, &[(BUFFERS + 2048 * number, 2048, true)]);
    }
    (driver, rings)
}

/// Sends frames to the receiver. Returns the number that were delivered.
fn send(port: Attached) -> u64 {
    send_and(port, || ())
}

/// Does the same, and calls `tell` after each frame, as the receiver has news.
fn send_and(port: Attached, mut tell: impl FnMut()) -> u64 {
    let from = port.mac();
    let ram = Arc::new(Ram::new(16));
    let (mut driver, [_, mut transmit]) = start(port, &ram, 0);
    let frame = [
        &[0; 12][..],
        &Mac(RECEIVER).bytes(),
        &from.bytes(),
        &[8, 0, 1, 2, 3],
    ]
    .concat();
    access::write(&*ram, SENT, &frame).unwrap();
    for _ in 0..FRAMES {
        transmit.offer(&ram, &[(SENT, frame.len() as u32, false)]);
        driver.kick(1);
        assert!(transmit.take(&ram).is_some(), "the sender waits");
        tell();
    }
    assert_eq!(driver.function.fault(), None);
    driver.function.device().port().count(Count::Sent)
}

/// Runs both senders, and `work`. Returns the number of frames that were delivered, and the result of `work`.
fn beside_senders<R: Send>(switch: &Arc<Switch>, work: impl FnOnce() -> R + Send) -> (u64, R) {
    let senders = SENDERS.map(|mac| attach(switch, mac));
    thread::scope(|scope| {
        let senders = senders.map(|port| scope.spawn(move || send(port)));
        let other = scope.spawn(work);
        let sent = senders.map(|sender| sender.join().unwrap());
        (sent.iter().sum(), other.join().unwrap())
    })
}

/// Returns the content of the buffers.
fn buffers(ram: &Ram) -> Vec<u8> {
    let mut content = vec![0; 0x4000];
    access::read(ram, BUFFERS, &mut content).unwrap();
    content
}

fn taken(ring: &mut Ring, ram: &Ram) -> u64 {
    std::iter::from_fn(|| ring.take(ram)).count() as u64
}

#[test]
fn every_frame_arrives_and_the_last_one_is_not_left_without_an_interrupt() {
    explore(|| {
        let switch = Arc::new(Switch::default());
        let port = attach(&switch, RECEIVER);
        let all = 2 * FRAMES;
        let ram = &Arc::new(Ram::new(16));
        // The driver is ready before anybody sends.
        let (mut driver, [mut receive, _]) = start(port, ram, all);
        receive.want_after(ram, 1);
        let (sent, (mut driver, mut receive, mut seen)) = beside_senders(&switch, move || {
            let mut seen = 0;
            for _ in 0..3 {
                driver.serve();
                if !driver.interrupts().is_empty() {
                    seen += taken(&mut receive, driver.ram);
                    receive.want_after(driver.ram, 1);
                }
            }
            (driver, receive, seen)
        });
        driver.serve();
        let is_interrupted = !driver.interrupts().is_empty();
        let rest = taken(&mut receive, driver.ram);
        seen += rest;
        assert_eq!((sent, seen), (all, all));
        // The driver may have asked for an interrupt just after the last frame came: it looks again then, as drivers do.
        assert!(is_interrupted || rest == 0 || seen > rest);
    });
}

#[test]
fn who_leaves_gets_no_more_and_who_takes_the_place_gets_nothing_of_it() {
    explore(|| {
        let switch = Arc::new(Switch::default());
        let port = attach(&switch, RECEIVER);
        let again = switch.clone();
        let (sent, received) = beside_senders(&switch, move || {
            let ram = Arc::new(Ram::new(16));
            let (driver, [mut receive, _]) = start(port, &ram, 8);
            drop(driver);
            let received = taken(&mut receive, &ram);
            let content = buffers(&ram);
            // Another guest takes the port. Nothing is written to the first one's memory any more.
            let late = Arc::new(Ram::new(16));
            let (driver, [mut other, _]) = start(attach(&again, LATECOMER), &late, 8);
            thread::yield_now();
            assert_eq!(taken(&mut receive, &ram), 0, "after it left");
            assert_eq!(buffers(&ram), content, "after it left");
            assert_eq!(taken(&mut other, &late), 0, "of the one before");
            assert_eq!(driver.function.fault(), None);
            received
        });
        // Some that were delivered may not have been told when the guest left.
        assert!(received <= sent, "{received} of {sent}");
    });
}

#[test]
fn no_news_is_left_between_those_who_tell_and_the_cpu_that_has_the_function() {
    explore(|| {
        let switch = Arc::new(Switch::default());
        let port = attach(&switch, RECEIVER);
        let ram = &Arc::new(Ram::new(16));
        let (driver, _) = start(port, ram, 2 * FRAMES);
        // The transport is driven through the bus from now on.
        let function = Arc::new(Mutex::new(driver.function));
        let bus = &Bus::new([], vec![function.clone()]);
        let interrupts = &AtomicU64::new(0);
        let senders = SENDERS.map(|mac| attach(&switch, mac));
        let sent: u64 = thread::scope(|scope| {
            let senders = senders.map(|port| {
                scope.spawn(move || {
                    let ring = || bus.tell(1, &mut |_| _ = interrupts.fetch_add(1, SeqCst));
                    send_and(port, || assert!(!ring()))
                })
            });
            // The guest accesses registers, then its CPU looks for work before it enters the guest.
            for _ in 0..3 {
                let _ = bus.usage(1);
                look(bus, ram, interrupts);
            }
            senders.map(|sender| sender.join().unwrap()).iter().sum()
        });
        look(bus, ram, interrupts);
        assert_eq!(sent, 2 * FRAMES);
        let left = function.lock().device().port().take_news();
        assert_eq!(left, Ok(0), "nobody takes it");
        assert!(interrupts.load(SeqCst) > 0);
    });
}

/// Does the work of a bus, as a CPU does before it enters the guest.
fn look(bus: &Bus, ram: &Ram, interrupts: &AtomicU64) {
    for _ in 0..4 {
        if !bus.has_work() {
            break;
        }
        let _ = bus.serve(ram, Now::default());
        thread::yield_now();
    }
    while bus.take_message().is_some() {
        interrupts.fetch_add(1, SeqCst);
    }
}
