//! Network cards of several guests at one switch.

mod guest;
mod large;
mod pairs;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::vec;
use std::vec::Vec;

use devices::Now;
use devices::pci::Function;
use proptest::prelude::*;

use super::{Ram, hostile, std};
use crate::access::write;
use crate::net::{Count, Mac, NoPort, PORTS, Rate, Settings, Switch};
use crate::{Fault, Net};
use guest::{
    A, ALL, B, BUFFERS, C, CSUM, EVENTS, GUEST_CSUM, Guest, SENT, card, frame, rams, settings,
};

#[test]
fn a_frame_goes_to_its_destination_alone_and_interrupts_it_once() {
    let (switch, rams) = (Arc::new(Switch::default()), rams(3));
    let mut guests: Vec<_> = rams
        .iter()
        .zip([A, B, C])
        .map(|(ram, mac)| Guest::new(&switch, settings(mac), ram))
        .collect();
    guests.iter_mut().for_each(|guest| guest.listen(4));
    let payload: Vec<_> = (0..1500).map(|at| at as u8).collect();
    guests[0].send(&frame(B, A, &payload));
    let mut header = [0; 12];
    header[10] = 1;
    assert_eq!(rams[1].rung.load(SeqCst), 1);
    let served = guests[1].driver.serve();
    assert!(served.has_messages && !served.has_more);
    assert_eq!(guests[1].driver.interrupts(), [0x40]);
    assert_eq!(guests[1].take(), [(header, frame(B, A, &payload))]);
    assert!(guests[2].take().is_empty() && guests[0].take().is_empty());
    // To all.
    guests[2].send(&frame(ALL, C, b"who has"));
    for guest in &mut guests[..2] {
        assert_eq!(guest.take(), [(header, frame(ALL, C, b"who has"))]);
    }
    assert!(guests[2].take().is_empty());
    let sent = [Count::Sent, Count::SentBytes].map(|count| guests[0].count(count));
    assert_eq!(sent, [1, 1514]);
    let received = [Count::Received, Count::ReceivedBytes].map(|count| guests[1].count(count));
    assert_eq!(received, [2, 1514 + 21]);
    // Its configuration has the address, and the link is up.
    let [high, low] = [0x2000, 0x2004].map(|at| guests[0].driver.read(at, 4));
    assert_eq!((high, low), (0x0054_5200, 0x0001_0100));
}

#[test]
fn a_batch_is_one_interrupt() {
    let (switch, rams) = (Arc::new(Switch::default()), rams(2));
    let mut a = Guest::new(&switch, settings(A), &rams[0]);
    let mut b = Guest::new(&switch, settings(B), &rams[1]);
    b.listen(8);
    write(
        &*rams[0],
        SENT,
        &[&[0; 12][..], &frame(B, A, &[7; 100])].concat(),
    )
    .unwrap();
    for _ in 0..8 {
        a.transmit.offer(&rams[0], &[(SENT, 126, false)]).unwrap();
    }
    assert_eq!(a.driver.kick(1), 1);
    assert_eq!(rams[1].rung.load(SeqCst), 1);
    b.driver.serve();
    assert_eq!((b.driver.interrupts().len(), b.take().len()), (1, 8));
}

#[test]
fn a_sender_never_waits_for_a_receiver() {
    let (switch, rams) = (Arc::new(Switch::default()), rams(2));
    let mut a = Guest::new(&switch, settings(A), &rams[0]);
    a.send(&frame(B, A, b"nobody is there"));
    let mut b = Guest::new(&switch, settings(B), &rams[1]);
    a.send(&frame(B, A, b"no buffer"));
    b.receive.offer(&rams[1], &[(BUFFERS, 20, true)]).unwrap();
    a.send(&frame(B, A, b"too small a buffer"));
    assert!(b.take().is_empty());
    rams[1].is_busy.store(true, SeqCst);
    a.send(&frame(B, A, b"its memory is being converted"));
    rams[1].is_busy.store(false, SeqCst);
    b.driver.write(0x14, 1, 0);
    a.send(&frame(B, A, b"it resets"));
    drop(b);
    a.send(&frame(B, A, b"it has gone"));
    assert_eq!((a.count(Count::Sent), a.driver.function.fault()), (0, None));
}

#[test]
fn a_receiver_that_breaks_a_rule_stops_alone() {
    let (switch, rams) = (Arc::new(Switch::default()), rams(2));
    let mut a = Guest::new(&switch, settings(A), &rams[0]);
    let mut b = Guest::new(&switch, settings(B), &rams[1]);
    b.receive.offer(&rams[1], &[(1 << 40, 2048, true)]).unwrap();
    a.send(&frame(B, A, b"x"));
    a.send(&frame(B, A, b"y"));
    assert_eq!(a.driver.function.fault(), None);
    assert_eq!(rams[1].rung.load(SeqCst), 1);
    b.driver.serve();
    assert_eq!(b.driver.function.fault(), Some(Fault::NotShared(1 << 40)));
}

#[test]
fn a_sender_that_breaks_a_rule_leaves_the_receiver_its_buffer() {
    let (switch, rams) = (Arc::new(Switch::default()), rams(2));
    let mut a = Guest::new(&switch, settings(A), &rams[0]);
    let mut b = Guest::new(&switch, settings(B), &rams[1]);
    b.listen(1);
    write(
        &*rams[0],
        SENT,
        &[&[0; 12][..], &frame(B, A, &[7; 100])].concat(),
    )
    .unwrap();
    let lost = (1 << 40, 10, false);
    a.transmit
        .offer(&rams[0], &[(SENT, 60, false), lost])
        .unwrap();
    a.driver.kick(1);
    assert_eq!(a.driver.function.fault(), Some(Fault::NotShared(1 << 40)));
    b.driver.serve();
    assert!(b.take().is_empty() && b.driver.function.fault().is_none());
    let mut c = Guest::new(&switch, settings(C), &rams[0]);
    c.send(&frame(B, C, b"still there"));
    assert_eq!(b.take()[0].1, frame(B, C, b"still there"));
}

#[test]
fn who_claims_to_be_another_is_not_heard() {
    let (switch, rams) = (Arc::new(Switch::default()), rams(2));
    let mut a = Guest::new(&switch, settings(A), &rams[0]);
    let mut b = Guest::new(&switch, settings(B), &rams[1]);
    b.listen(4);
    for from in [B, C, ALL, 0] {
        a.send(&frame(B, from, b"x"));
    }
    assert_eq!((a.count(Count::Spoofed), b.take().len()), (4, 0));
    let same = switch.attach(settings(A)).map(drop);
    assert_eq!(same, Err(NoPort::Taken(Mac(A))));
}

#[test]
fn a_trunk_s_addresses_are_learned_and_forgotten() {
    let (switch, rams) = (Arc::new(Switch::default()), rams(4));
    let trunk = |mac| Settings {
        is_trunk: true,
        ..settings(mac)
    };
    let mut a = Guest::new(&switch, settings(A), &rams[0]);
    let mut b = Guest::new(&switch, settings(B), &rams[1]);
    let mut uplinks = [C, C + 1].map(|mac| {
        let ram = &rams[2 + (mac - C) as usize];
        Guest::new(&switch, trunk(mac), ram)
    });
    for guest in [&mut a, &mut b].into_iter().chain(&mut uplinks) {
        guest.listen(4);
    }
    let outside = 0x52_5499_9999;
    let counts = |a: &mut Guest<'_>, b: &mut Guest<'_>, uplinks: &mut [Guest<'_>]| {
        a.send(&frame(outside, A, b"where is it"));
        let uplinks: Vec<_> = uplinks
            .iter_mut()
            .map(|uplink| uplink.take().len())
            .collect();
        (b.take().len(), uplinks)
    };
    let unknown = counts(&mut a, &mut b, &mut uplinks);
    assert_eq!(unknown, (0, vec![1, 1]), "to all trunks");
    uplinks[1].send(&frame(A, outside, b"here"));
    assert_eq!(a.take().len(), 1);
    let known = counts(&mut a, &mut b, &mut uplinks);
    assert_eq!(known, (0, vec![0, 1]), "there alone");
    // Nobody can take another's address by pretending to be behind the trunk.
    uplinks[1].send(&frame(A, B, b"x"));
    a.send(&frame(B, A, b"for b"));
    assert_eq!((b.take().len(), uplinks[1].take().len()), (1, 0));
    let [first, second] = uplinks;
    drop(second);
    let mut rest = [first];
    let gone = counts(&mut a, &mut b, &mut rest);
    assert_eq!(gone, (0, vec![1]), "to all trunks again");
}

#[test]
fn isolated_ports_see_the_trunk_and_not_each_other() {
    let (switch, rams) = (Arc::new(Switch::default()), rams(3));
    let isolated = |mac| Settings {
        is_isolated: true,
        ..settings(mac)
    };
    let trunk = Settings {
        is_trunk: true,
        ..settings(C)
    };
    let mut a = Guest::new(&switch, isolated(A), &rams[0]);
    let mut b = Guest::new(&switch, isolated(B), &rams[1]);
    let mut uplink = Guest::new(&switch, trunk, &rams[2]);
    for guest in [&mut a, &mut b, &mut uplink] {
        guest.listen(4);
    }
    a.send(&frame(B, A, b"x"));
    a.send(&frame(ALL, A, b"x"));
    assert_eq!((b.take().len(), uplink.take().len()), (0, 1));
    uplink.send(&frame(B, C, b"x"));
    uplink.send(&frame(ALL, C, b"x"));
    assert_eq!((a.take().len(), b.take().len()), (1, 2));
}

#[test]
fn a_rate_is_kept_and_what_exceeds_it_is_dropped() {
    let (switch, rams) = (Arc::new(Switch::default()), rams(2));
    let limited = card(&switch, settings(A), &rams[0], Some(Rate::new(8000)));
    let mut a = Guest::of(limited, &rams[0], u64::MAX);
    let mut b = Guest::new(&switch, settings(B), &rams[1]);
    b.listen(8);
    for _ in 0..4 {
        a.send(&frame(B, A, &[0; 386]));
    }
    // The third one takes more than what is left, and is paid for later.
    assert_eq!((b.take().len(), a.count(Count::Limited)), (3, 1));
    a.transmit.offer(&rams[0], &[(SENT, 412, false)]).unwrap();
    a.driver.write(0x3004, 2, 1);
    let later = Now {
        monotonic_us: 60_000,
        unix_seconds: 0,
    };
    a.driver.function.serve(&*rams[0], later);
    assert_eq!(b.take().len(), 1);
}

#[test]
fn a_header_that_lies_reaches_nobody() {
    let (switch, rams) = (Arc::new(Switch::default()), rams(2));
    let mut a = Guest::new(&switch, settings(A), &rams[0]);
    let mut b = Guest::new(&switch, settings(B), &rams[1]);
    b.listen(8);
    let header = |flags: u8, kind: u8, start: u8, offset: u8| {
        [flags, kind, 99, 99, 99, 99, start, 0, offset, 0, 99, 99]
    };
    let data = frame(B, A, &[1; 100]);
    for lie in [
        header(1, 1, 34, 16),
        header(1, 0, 34, 200),
        header(1, 0, 3, 2),
        header(4, 0, 0, 0),
    ] {
        a.send_with(&lie, &data);
    }
    a.send(&data[..13]);
    a.send(&frame(B, A, &[1; 1505]));
    assert_eq!((b.take().len(), a.count(Count::Malformed)), (0, 6));
    a.send_with(&header(1, 0, 34, 16), &data);
    assert_eq!(b.take(), [([1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 1, 0], data)]);
}

/// Returns the internet checksum of bytes that include their own.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

proptest! {
    #[test]
    fn a_checksum_is_completed_for_a_receiver_that_does_not_do_it(
        payload in proptest::collection::vec(any::<u8>(), 40..1500), start in 14u8..20, offset in 0u8..9,
    ) {
        let (switch, rams) = (Arc::new(Switch::default()), rams(2));
        let mut a = Guest::new(&switch, settings(A), &rams[0]);
        let plain = card(&switch, settings(B), &rams[1], None);
        let mut b = Guest::of(plain, &rams[1], EVENTS | CSUM);
        prop_assert_eq!(b.driver.features & GUEST_CSUM, 0);
        b.listen(1);
        // The sum starts at an even place of the frame, as in practice.
        let (start, offset) = (start & !1, offset & !1);
        let at = usize::from(start + offset);
        let mut data = frame(B, A, &payload);
        data[at..at + 2].fill(0);
        a.send_with(&[1, 0, 0, 0, 0, 0, start, 0, offset, 0, 0, 0], &data);
        let (header, received) = b.take().remove(0);
        prop_assert_eq!(header[0], 0);
        prop_assert_eq!(sum(&received[start.into()..]), 0xFFFF);
        data[at..at + 2].copy_from_slice(&received[at..at + 2]);
        prop_assert_eq!(received, data);
    }
}

#[test]
fn a_network_has_so_many_ports() {
    let switch = Arc::new(Switch::default());
    let mut ports: Vec<_> = (0..PORTS as u64)
        .map(|mac| switch.attach(settings(mac)).unwrap())
        .collect();
    assert_eq!(switch.attach(settings(A)).map(drop), Err(NoPort::Full));
    ports.pop();
    assert_eq!(switch.attach(settings(A)).unwrap().mac(), Mac(A));
}

#[test]
fn a_million_operations_on_a_card_hurt_nobody_at_its_network() {
    let (switch, rams) = (Arc::new(Switch::default()), rams(2));
    let mut b = Guest::new(&switch, settings(B), &rams[1]);
    b.listen(8);
    // A hostile guest finds no frame that it may send by chance: it is a trunk.
    let trunk = Settings {
        is_trunk: true,
        ..settings(A)
    };
    let guest = Arc::new(Ram::new(1));
    let card = Net::new(switch.attach(trunk).unwrap(), guest, None);
    hostile::torment(card, &[0, 0x4000], 1_000_000);
    b.driver.serve();
    assert_eq!(b.driver.function.fault(), None);
    b.take();
    let mut c = Guest::new(&switch, settings(C), &rams[0]);
    b.listen(0);
    c.send(&frame(B, C, b"still there"));
    assert!(b.count(Count::Received) + b.count(Count::Full) > 0);
}

#[test]
fn a_card_that_may_not_access_memory_gets_no_frame() {
    const COMMAND: usize = 4;
    let rams = rams(2);
    let switch = Arc::new(Switch::default());
    let [mut a, mut b] = [(A, 0), (B, 1)]
        .map(|(mac, ram): (u64, usize)| Guest::new(&switch, settings(mac), &rams[ram]));
    b.listen(4);
    let sent = frame(B, A, &[1; 50]);
    for (command, count) in [(6, 1), (2, 0), (6, 1)] {
        b.driver.function.config().write(COMMAND, 2, command);
        b.driver.function.configured(COMMAND..COMMAND + 2);
        a.send(&sent);
        assert_eq!(b.take().len(), count, "{command}");
    }
    assert_eq!((b.count(Count::Full), a.count(Count::Sent)), (1, 2));
}
