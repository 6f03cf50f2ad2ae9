//! The console's device, by its driver.

use std::string::String;
use std::sync::{Arc, Mutex};
use std::vec::Vec;
use std::{format, vec};

use super::{Driver, Ram, Ring, std};
use crate::access::{read, write};
use crate::{Console, Terminal};

/// A console in memory.
#[derive(Debug, Default)]
pub struct Screen {
    pub written: Mutex<Vec<u8>>,
    pub typed: Mutex<Vec<u8>>,
    pub is_attached: Mutex<bool>,
}

impl Screen {
    fn text(&self) -> String {
        String::from_utf8(self.written.lock().unwrap().clone()).unwrap()
    }

    fn type_text(&self, text: &str) {
        self.typed.lock().unwrap().extend(text.bytes());
    }
}

impl Terminal for Screen {
    fn write(&self, bytes: &[u8]) {
        self.written.lock().unwrap().extend(bytes);
    }

    fn read(&self, into: &mut [u8]) -> usize {
        let mut typed = self.typed.lock().unwrap();
        let count = typed.len().min(into.len());
        into[..count].copy_from_slice(&typed[..count]);
        typed.drain(..count);
        count
    }

    fn attach(&self, is_attached: bool) {
        *self.is_attached.lock().unwrap() = is_attached;
    }
}

const EVENTS: u64 = 1 << 29;
const BUFFER: u64 = 0x8000;

/// Starts a driver with both queues, of eight descriptors.
fn start(ram: &Ram, features: u64) -> (Arc<Screen>, Driver<'_, Console>, [Ring; 2]) {
    let screen = Arc::new(Screen::default());
    let mut driver = Driver::new(Console::new(screen.clone(), Arc::<Screen>::default()), ram);
    driver.negotiate(features);
    let rings = [driver.set_up(0, 8, 0), driver.set_up(1, 8, 0x4000)];
    driver.ready();
    (screen, driver, rings)
}

#[test]
fn a_line_is_one_notification() {
    let ram = Ram::new(16);
    let (screen, mut driver, [_, mut transmit]) = start(&ram, EVENTS);
    let line = b"Linux version 6.12\n";
    write(&ram, BUFFER, line).unwrap();
    transmit
        .offer(&ram, &[(BUFFER, line.len() as u32, false)])
        .unwrap();
    assert!(transmit.wants_kick(&ram, 0));
    assert_eq!(driver.kick(1), 1);
    assert_eq!(transmit.take(&ram), Some((0, 0)));
    assert_eq!(screen.text().as_bytes(), line);
    assert_eq!(driver.interrupts(), [0x41]);
}

#[test]
fn a_batch_is_one_notification_and_one_interrupt() {
    let ram = Ram::new(16);
    let (screen, mut driver, [_, mut transmit]) = start(&ram, EVENTS);
    for round in 0..3 {
        transmit.want_after(&ram, 8);
        let first = transmit.next;
        let mut kicks = 0;
        for number in 0..8u16 {
            let at = BUFFER + u64::from(number) * 16;
            write(&ram, at, format!("{round}{number} ").as_bytes()).unwrap();
            let before = transmit.next;
            transmit.offer(&ram, &[(at, 3, false)]).unwrap();
            kicks += u32::from(transmit.wants_kick(&ram, before));
        }
        assert_eq!((kicks, transmit.wants_kick(&ram, first)), (1, true));
        driver.kick(1);
        assert_eq!(std::iter::from_fn(|| transmit.take(&ram)).count(), 8);
        assert_eq!(driver.interrupts(), [0x41]);
    }
    assert_eq!(screen.text().len(), 3 * 8 * 3);
    assert!(screen.text().starts_with("00 01 02 ") && screen.text().ends_with("26 27 "));
}

#[test]
fn no_interrupt_comes_that_the_driver_does_not_want() {
    let ram = Ram::new(16);
    let (_, mut driver, [_, mut transmit]) = start(&ram, 0);
    for (flags, expected) in [(1, &[][..]), (0, &[0x41])] {
        crate::access::set_field(&ram, transmit.place.available, 2, flags).unwrap();
        transmit.offer(&ram, &[(BUFFER, 1, false)]).unwrap();
        driver.kick(1);
        assert!(transmit.take(&ram).is_some());
        assert_eq!(driver.interrupts(), expected);
    }
}

#[test]
fn what_is_typed_comes_once_there_are_buffers_and_once_it_is_typed() {
    let ram = Ram::new(16);
    let (screen, mut driver, [mut receive, _]) = start(&ram, EVENTS);
    assert!(*screen.is_attached.lock().unwrap());
    screen.type_text("root\n");
    driver.serve();
    receive.offer(&ram, &[(BUFFER, 3, true)]).unwrap();
    driver.kick(0);
    assert_eq!(receive.take(&ram), Some((0, 3)));
    receive
        .offer(&ram, &[(BUFFER + 3, 1, true), (BUFFER + 4, 9, true)])
        .unwrap();
    driver.kick(0);
    assert_eq!(receive.take(&ram), Some((1, 2)));
    receive.offer(&ram, &[(BUFFER + 5, 9, true)]).unwrap();
    driver.kick(0);
    assert_eq!(receive.take(&ram), None);
    screen.type_text("x");
    driver.interrupts();
    receive.want_after(&ram, 1);
    driver.serve();
    assert_eq!(receive.take(&ram), Some((3, 1)));
    assert_eq!(driver.interrupts(), [0x40]);
    let mut all = vec![0; 6];
    read(&ram, BUFFER, &mut all).unwrap();
    assert_eq!(all, b"root\nx");
    driver.write(0x14, 1, 0);
    assert!(!*screen.is_attached.lock().unwrap());
}

#[test]
fn much_output_is_written_in_parts() {
    let ram = Ram::new(32);
    let (screen, mut driver, [_, mut transmit]) = start(&ram, EVENTS);
    write(&ram, BUFFER, &vec![b'x'; 0xC000]).unwrap();
    for _ in 0..8 {
        transmit.offer(&ram, &[(BUFFER, 0xC000, false)]).unwrap();
    }
    // Each part ends after the chain that exceeds it.
    assert_eq!(driver.kick(1), 8);
    assert_eq!(screen.text().len(), 8 * 0xC000);
}

const MULTIPORT: u64 = 1 << 1;
/// The places of the buffers of a driver with several ports, a page for each.
const MESSAGES: u64 = 0x2_0000;

/// A driver that knows of several ports.
struct Ports<'r> {
    screens: [Arc<Screen>; 2],
    driver: Driver<'r, Console>,
    rings: Vec<Ring>,
}

impl<'r> Ports<'r> {
    fn new(ram: &'r Ram) -> Self {
        let screens = [Arc::new(Screen::default()), Arc::new(Screen::default())];
        let device = Console::new(screens[0].clone(), screens[1].clone());
        let mut driver = Driver::new(device, ram);
        driver.negotiate(EVENTS | MULTIPORT);
        assert_eq!(driver.read(0x2004, 4), 2, "ports");
        let rings = (0..6).map(|queue| driver.set_up(queue, 8, 0x4000 * u64::from(queue)));
        let rings = rings.collect();
        driver.ready();
        Self {
            screens,
            driver,
            rings,
        }
    }

    /// Sends a message about a port.
    fn say(&mut self, port: u32, event: u16, value: u16) {
        let more = u64::from(event) << 32 | u64::from(value) << 48;
        let message = u64::from(port) | more;
        write(self.driver.ram, BUFFER + 0x1F000, &message.to_le_bytes()).unwrap();
        self.rings[3].offer(self.driver.ram, &[(BUFFER + 0x1F000, 8, false)]);
        self.driver.kick(3);
        assert!(self.rings[3].take(self.driver.ram).is_some());
    }

    /// Offers buffers for messages, and takes those that came: port, event, value, name.
    fn hear(&mut self, buffers: u64) -> Vec<(u32, u16, u16, String)> {
        let ram = self.driver.ram;
        for number in 0..buffers {
            let buffer = (MESSAGES + number * 0x1000, 64, true);
            self.rings[2].offer(ram, &[buffer]).unwrap();
        }
        self.driver.kick(2);
        let mut heard = Vec::new();
        while let Some((head, bytes)) = self.rings[2].take(ram) {
            let at = crate::access::field(
                ram,
                self.rings[2].place.descriptors + 16 * u64::from(head),
                8,
            );
            let mut all = vec![0; bytes as usize];
            read(ram, at.unwrap(), &mut all).unwrap();
            let short = |at: usize| u16::from_le_bytes([all[at], all[at + 1]]);
            let name = String::from_utf8(all[8..].to_vec()).unwrap();
            heard.push((short(0).into(), short(4), short(6), name));
        }
        heard
    }
}

#[test]
fn driver_and_device_agree_on_two_ports() {
    let ram = Ram::new(64);
    let mut ports = Ports::new(&ram);
    assert_eq!(ports.hear(1), []);
    ports.say(0, 0, 1);
    // One message took the first buffer; the other comes with the next.
    let none = String::new;
    assert_eq!(ports.hear(0), [(0, 1, 1, none())]);
    assert_eq!(ports.hear(1), [(1, 1, 1, none())]);
    ports.say(0, 3, 1);
    ports.say(1, 3, 1);
    let name = "org.seamark.script".into();
    let expected = [
        (0, 4, 1, none()),
        (0, 6, 1, none()),
        (1, 7, 1, name),
        (1, 6, 1, none()),
    ];
    assert_eq!(ports.hear(4), expected);
    // Messages about ports that do not exist, and those that make no sense, are nothing.
    for (port, event, value) in [
        (2, 3, 1),
        (u32::MAX, 6, 1),
        (0, 99, 1),
        (1, 3, 0),
        (1, 5, 1),
    ] {
        ports.say(port, event, value);
    }
    assert_eq!(ports.hear(1), []);
    assert_eq!(ports.driver.function.fault(), None);
}

#[test]
fn the_script_port_has_bytes_of_its_own_while_the_guest_has_it_open() {
    let ram = Ram::new(64);
    let mut ports = Ports::new(&ram);
    ports.screens[1].type_text("ls\n");
    ports.rings[4].offer(&ram, &[(BUFFER + 0x1E000, 16, true)]);
    ports.driver.kick(4);
    assert_eq!(ports.rings[4].take(&ram), None, "nobody has it open");
    assert!(!*ports.screens[1].is_attached.lock().unwrap());
    ports.say(1, 6, 1);
    assert!(*ports.screens[1].is_attached.lock().unwrap());
    assert_eq!(ports.rings[4].take(&ram), Some((0, 3)));
    write(&ram, BUFFER + 0x1E000, b"file").unwrap();
    ports.rings[5].offer(&ram, &[(BUFFER + 0x1E000, 4, false)]);
    ports.driver.kick(5);
    assert_eq!(ports.screens[1].text(), "file");
    assert_eq!(ports.screens[0].text(), "");
    ports.say(1, 6, 0);
    assert!(!*ports.screens[1].is_attached.lock().unwrap());
    assert!(*ports.screens[0].is_attached.lock().unwrap());
    ports.driver.write(0x14, 1, 0);
    assert!(!*ports.screens[0].is_attached.lock().unwrap());
}
