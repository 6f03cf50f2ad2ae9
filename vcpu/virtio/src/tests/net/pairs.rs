//! Several pairs of queues: a flow's frames come to the pair by which the driver sent to it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use super::super::{Driver, Ram, Ring, std};
use super::guest::{A, B, EVENTS, card, frame, settings};
use crate::access::{field, read, write};
use crate::net::{Count, PAIRS, Switch};
use crate::{Fault, Net};

const CHECKSUMS: u64 = 1 << 0;
const OFFLOADS: u64 = 1 << 2;
const CONTROL: u64 = 1 << 17;
const PAIRED: u64 = 1 << 22;
/// Number of pairs of the guest, and bytes of each queue's parts.
const COUNT: usize = 4;
const RINGS: u64 = 0x3000;
/// Size of the queues: twice what is sent in a part.
const SIZE: u16 = 128;
/// Places: a frame to send or a command; the buffers of each pair.
const SENT: u64 = 0x4_0000;
const BUFFERS: u64 = 0x5_0000;

/// A guest with several pairs.
struct Paired<'r> {
    driver: Driver<'r, Net>,
    receives: Vec<Ring>,
    transmits: Vec<Ring>,
    control: Ring,
}

impl<'r> Paired<'r> {
    fn new(switch: &Arc<Switch>, mac: u64, ram: &'r Arc<Ram>) -> Self {
        let card = card(switch, settings(mac), ram, None).with_pairs(COUNT);
        let mut driver = Driver::new(card, ram);
        driver.negotiate(EVENTS | CHECKSUMS | CONTROL | PAIRED);
        let mut ring = |index: usize| driver.set_up(index as u16, SIZE, RINGS * index as u64);
        let receives = (0..COUNT).map(|pair| ring(2 * pair)).collect();
        let transmits = (0..COUNT).map(|pair| ring(2 * pair + 1)).collect();
        let control = ring(2 * COUNT);
        driver.ready();
        let mut guest = Self {
            driver,
            receives,
            transmits,
            control,
        };
        for pair in 0..COUNT as u64 {
            for number in 0..8 {
                let buffer = BUFFERS + 0x8000 * pair + 0x1000 * number;
                let ring = &mut guest.receives[pair as usize];
                ring.offer(guest.driver.ram, &[(buffer, 2048, true)])
                    .unwrap();
            }
        }
        guest
    }

    /// Gives a command. Returns the answer.
    fn command(&mut self, command: &[u8]) -> u8 {
        let ram = self.driver.ram;
        write(ram, SENT, command).unwrap();
        write(ram, SENT + 64, &[0x55]).unwrap();
        let buffers = [(SENT, command.len() as u32, false), (SENT + 64, 1, true)];
        self.control.offer(ram, &buffers).unwrap();
        self.driver.kick(2 * COUNT as u16);
        assert!(self.control.take(ram).is_some());
        field(ram, SENT + 64, 1).unwrap() as u8
    }

    fn send(&mut self, pair: usize, frame: &[u8]) {
        self.send_with(pair, &[0; 12], frame);
    }

    fn send_with(&mut self, pair: usize, header: &[u8; 12], frame: &[u8]) {
        let ram = self.driver.ram;
        write(ram, SENT, &[header, frame].concat()).unwrap();
        let buffer = (SENT, frame.len() as u32 + 12, false);
        self.transmits[pair].offer(ram, &[buffer]).unwrap();
        self.driver.kick(2 * pair as u16 + 1);
        assert!(self.transmits[pair].take(ram).is_some());
    }

    /// Returns the pairs to which frames came, and gives their buffers back.
    fn take(&mut self) -> Vec<usize> {
        let ram = self.driver.ram;
        let mut came = Vec::new();
        for (pair, ring) in self.receives.iter_mut().enumerate() {
            while let Some((head, bytes)) = ring.take(ram) {
                let gpa = field(ram, ring.place.descriptors + 16 * u64::from(head), 8).unwrap();
                let mut all = vec![0; bytes as usize];
                read(ram, gpa, &mut all).unwrap();
                ring.offer(ram, &[(gpa, 2048, true)]).unwrap();
                came.push(pair);
            }
            ring.want_after(ram, 1);
        }
        came
    }
}

/// Returns a packet of TCP from one port to another. Hosts have the last bytes of their addresses in `hosts`.
fn packet(to: u64, from: u64, hosts: [u8; 2], ports: [u16; 2]) -> Vec<u8> {
    let mut ip = [0; 60];
    (ip[0], ip[9]) = (0x45, 6);
    (ip[15], ip[19]) = (hosts[0], hosts[1]);
    ip[20..22].copy_from_slice(&ports[0].to_be_bytes());
    ip[22..24].copy_from_slice(&ports[1].to_be_bytes());
    frame(to, from, &ip)
}

fn rams() -> [Arc<Ram>; 2] {
    [(); 2].map(|()| Arc::new(Ram::new(0x80)))
}

#[test]
fn a_flow_comes_to_the_pair_by_which_the_driver_sends() {
    let (switch, rams) = (Arc::new(Switch::default()), rams());
    let mut a = Paired::new(&switch, A, &rams[0]);
    let mut b = Paired::new(&switch, B, &rams[1]);
    assert_eq!(b.driver.read(0x2008, 2), COUNT as u64);
    let there = |port| packet(B, A, [1, 2], [port, 80]);
    let back = |port| packet(A, B, [2, 1], [80, port]);
    // One pair until the driver asks for more.
    a.send(0, &there(1000));
    assert_eq!(b.take(), [0]);
    assert_eq!(b.command(&[4, 0, COUNT as u8, 0]), 0);
    for pair in [3, 1, 0, 2, 2] {
        b.send(pair, &back(1000));
        a.take();
        b.driver.interrupts();
        a.send(0, &there(1000));
        assert_eq!(b.take(), [pair]);
        b.driver.serve();
        assert_eq!(b.driver.interrupts(), [0x40 + 2 * pair as u8]);
    }
    // Flows of which nobody has heard are spread; each stays where it is.
    let mut pairs = BTreeSet::new();
    for port in 2000..2064 {
        let came = [(); 2].map(|()| {
            a.send(1, &there(port));
            b.take()
        });
        assert_eq!(came[0], came[1]);
        pairs.extend(came[0].iter().copied());
    }
    assert_eq!(pairs.len(), COUNT);
    let dropped = b.driver.function.device().port().count(Count::Full);
    assert_eq!(dropped, 0);
    // A reset is the end of it.
    b.driver.negotiate(EVENTS | CONTROL | PAIRED);
    b.receives[0] = b.driver.set_up(0, 16, 0);
    b.receives[3] = b.driver.set_up(6, 16, 6 * RINGS);
    b.driver.ready();
    for pair in [0, 3] {
        let buffer = [(BUFFERS, 2048, true)];
        b.receives[pair].offer(&rams[1], &buffer).unwrap();
    }
    a.send(0, &there(1000));
    assert_eq!(b.take(), [0]);
}

#[test]
fn a_command_that_makes_no_sense_is_refused() {
    let (switch, rams) = (Arc::new(Switch::default()), rams());
    let mut a = Paired::new(&switch, A, &rams[0]);
    for command in [
        &[4, 0, 0, 0][..],
        &[4, 0, COUNT as u8 + 1, 0],
        &[4, 0, 1, 1],
        &[4, 1, 1, 0],
        &[0, 0, 1],
        &[4, 0, 1],
        &[4],
    ] {
        assert_eq!(a.command(command), 1, "{command:?}");
    }
    assert_eq!(a.command(&[4, 0, 2, 0]), 0);
    a.control.offer(&rams[0], &[(SENT, 4, false)]).unwrap();
    a.driver.kick(2 * COUNT as u16);
    assert_eq!(a.driver.function.fault(), Some(Fault::Request));
}

#[test]
fn a_driver_takes_and_leaves_the_work_that_it_can_do() {
    const COMPLETES: u64 = 1 << 1;
    const CUTS: u64 = 1 << 7;
    let (switch, rams) = (Arc::new(Switch::default()), rams());
    let mut a = Paired::new(&switch, A, &rams[0]);
    let card = card(&switch, settings(B), &rams[1], None);
    let mut b = Driver::new(card, &rams[1]);
    b.negotiate(EVENTS | CONTROL | OFFLOADS | COMPLETES | CUTS);
    let (mut receive, mut control) = (b.set_up(0, 16, 0), b.set_up(2, 16, RINGS));
    b.ready();
    let mut sent = packet(B, A, [1, 2], [3, 4]);
    sent.extend([0; 40]);
    for (offloads, answer, completes) in [
        (None, None, true),
        (Some(0), Some(0), false),
        (Some(COMPLETES | 1 << 8), Some(1), false),
        (Some(COMPLETES | CUTS), Some(0), true),
    ] {
        if let Some(offloads) = offloads {
            let command = [&[5, 0][..], &u64::to_le_bytes(offloads)].concat();
            write(&*rams[1], SENT, &command).unwrap();
            let buffers = [(SENT, 10, false), (SENT + 64, 1, true)];
            control.offer(&rams[1], &buffers).unwrap();
            b.kick(2);
        }
        let said = offloads.map(|_| field(&*rams[1], SENT + 64, 1).unwrap());
        assert_eq!(said, answer);
        receive.offer(&rams[1], &[(BUFFERS, 2048, true)]).unwrap();
        let header = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
        a.send_with(0, &header, &sent);
        assert!(receive.take(&rams[1]).is_some());
        let flags = field(&*rams[1], BUFFERS, 1);
        assert_eq!(flags, Ok(completes.into()), "{offloads:?}");
    }
}

#[test]
fn a_driver_of_one_pair_has_its_control_queue_behind_it() {
    let (switch, rams) = (Arc::new(Switch::default()), rams());
    let card = card(&switch, settings(A), &rams[0], None).with_pairs(100);
    let mut driver = Driver::new(card, &rams[0]);
    driver.negotiate(EVENTS | CONTROL);
    assert_eq!(driver.read(0x2008, 2), PAIRS as u64);
    let mut control = driver.set_up(2, 16, 0);
    driver.ready();
    for (pairs, answer) in [(1, 0), (2, 1)] {
        write(&*rams[0], SENT, &[4, 0, pairs, 0]).unwrap();
        let buffers = [(SENT, 4, false), (SENT + 64, 1, true)];
        control.offer(&rams[0], &buffers).unwrap();
        driver.kick(2);
        assert_eq!(field(&*rams[0], SENT + 64, 1), Ok(answer));
    }
}

#[test]
fn every_pair_has_its_turn() {
    let (switch, rams) = (Arc::new(Switch::default()), rams());
    let mut a = Paired::new(&switch, A, &rams[0]);
    let sent = [&[0; 12][..], &frame(B, A, &[0; 50])].concat();
    write(&*rams[0], SENT, &sent).unwrap();
    let buffer = [(SENT, sent.len() as u32, false)];
    // The first one makes more available than is sent in a part, and is always notified.
    for round in 0..16 {
        while a.transmits[0].offer(&rams[0], &buffer).is_some() {}
        a.transmits[2].offer(&rams[0], &buffer).unwrap();
        for pair in [0, 2] {
            a.driver.write(0x3000 + 4 * (2 * pair + 1), 2, 0);
        }
        for _ in 0..2 {
            a.driver.serve();
        }
        while a.transmits[0].take(&rams[0]).is_some() {}
        assert!(a.transmits[2].take(&rams[0]).is_some(), "round {round}");
    }
}
