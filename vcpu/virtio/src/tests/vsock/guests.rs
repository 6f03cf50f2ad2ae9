//! Connections between two guests.

use super::*;

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
