//! Several connections of two guests against a model: bytes come once, in order and at their own connection, within the
//! credit, before the end that the other side makes of it; and in the end nothing is left.

use super::*;

/// Number of connections. Each guest asks for every other one.
const CONNECTIONS: usize = 4;
/// The port at which both listen, and the first one from which they ask.
const LISTENS: u32 = 5;
const ASKS: u32 = 1000;
/// Room that each guest has for the bytes of a connection.
const ROOM: u32 = 3000;
/// The flag of a side that sends no more.
const SENDS_NO_MORE: u32 = 2;

/// A step of a guest, at a connection.
#[derive(Clone, Debug)]
enum Step {
    /// The guest that asks for the connection does so.
    Ask(usize),
    /// One sends so many bytes, as far as it has credit.
    Send(usize, usize, usize),
    /// It says that it has read all that came.
    Say(usize, usize),
    /// It sends no more.
    Shut(usize, usize),
    /// It ends the connection.
    Reset(usize, usize),
    /// A device looks for news.
    Look(usize),
    /// A guest takes what came, and offers buffers of this size.
    Take(usize, u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let side = || 0usize..2;
    let at = || 0..CONNECTIONS;
    let step = prop_oneof![
        2 => at().prop_map(Step::Ask),
        6 => (at(), side(), 1usize..3000).prop_map(|(at, side, bytes)| Step::Send(at, side, bytes)),
        3 => (at(), side()).prop_map(|(at, side)| Step::Say(at, side)),
        1 => (at(), side()).prop_map(|(at, side)| Step::Shut(at, side)),
        1 => (at(), side()).prop_map(|(at, side)| Step::Reset(at, side)),
        4 => side().prop_map(Step::Look),
        5 => (side(), 45u32..BUFFER).prop_map(|(side, bytes)| Step::Take(side, bytes)),
    ];
    proptest::collection::vec(step, 1..200)
}

/// A guest's knowledge of a connection, and the bytes that are to come for it.
#[derive(Default)]
struct Side {
    is_open: bool,
    is_over: bool,
    is_shut: bool,
    sent: u32,
    /// The word of the device: bytes that the other side has taken.
    taken: u32,
    got: u32,
    said: u32,
    expected: VecDeque<u8>,
    number: u8,
}

#[derive(Default)]
struct Connection {
    is_asked: bool,
    sides: [Side; 2],
}

struct Model<'r> {
    guests: [Guest<'r>; 2],
    connections: [Connection; CONNECTIONS],
}

/// Returns the port of a guest at a connection.
const fn port(at: usize, side: usize) -> u32 {
    if at % 2 == side {
        ASKS + at as u32
    } else {
        LISTENS
    }
}

impl Model<'_> {
    fn side(&mut self, at: usize, side: usize) -> &mut Side {
        &mut self.connections[at].sides[side]
    }

    /// Sends a packet of a connection.
    fn send(&mut self, at: usize, side: usize, op: Op, payload: &[u8]) {
        let said = self.side(at, side).said;
        let to = self.guests[1 - side].at(port(at, 1 - side));
        let guest = &mut self.guests[side];
        (guest.room, guest.taken) = (ROOM, said);
        guest.send(op, port(at, side), to, payload);
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Ask(at) => {
                let connection = &mut self.connections[at];
                if !core::mem::replace(&mut connection.is_asked, true) {
                    self.send(at, at % 2, Op::Request, &[]);
                }
            }
            Step::Send(at, side, bytes) => self.send_bytes(at, side, bytes),
            Step::Say(at, side) => {
                let known = self.side(at, side);
                if known.is_open && !known.is_over {
                    known.said = known.got;
                    self.send(at, side, Op::CreditUpdate, &[]);
                }
            }
            Step::Shut(at, side) => self.shut(at, side),
            Step::Reset(at, side) => {
                let known = self.side(at, side);
                if known.is_open && !known.is_over {
                    known.is_over = true;
                    self.send(at, side, Op::Rst, &[]);
                }
            }
            Step::Look(side) => self.guests[side].look(),
            Step::Take(side, bytes) => {
                while let Some((header, payload)) = self.guests[side].take() {
                    self.heed(side, header, &payload);
                    self.guests[side].listen(1, bytes);
                }
            }
        }
    }

    fn send_bytes(&mut self, at: usize, side: usize, most: usize) {
        let known = self.side(at, side);
        if !known.is_open || known.is_over || known.is_shut {
            return;
        }
        let credit = CAPACITY as u32 - (known.sent - known.taken);
        let bytes: Vec<_> = (0..most.min(credit as usize))
            .map(|_| {
                known.number = known.number.wrapping_add(1);
                // Different at each connection.
                known.number ^ (at as u8) << 6
            })
            .collect();
        if !bytes.is_empty() {
            known.sent += bytes.len() as u32;
            self.side(at, 1 - side).expected.extend(&bytes);
            self.send(at, side, Op::Rw, &bytes);
        }
    }

    fn shut(&mut self, at: usize, side: usize) {
        let known = self.side(at, side);
        if !known.is_open || known.is_over || known.is_shut {
            return;
        }
        known.is_shut = true;
        let taken = known.said;
        let to = self.guests[1 - side].at(port(at, 1 - side));
        let guest = &mut self.guests[side];
        let header = packet(Op::Shutdown, guest.at(port(at, side)), to);
        let header = Header {
            flags: SENDS_NO_MORE,
            room: ROOM,
            taken,
            ..header
        };
        guest.send_raw(header, &[]);
        assert!(guest.transmit.take(guest.driver.ram).is_some());
    }

    /// Checks a packet, and answers it.
    fn heed(&mut self, side: usize, header: Header, payload: &[u8]) {
        let at = (0..CONNECTIONS).find(|at| {
            let ports = (header.to.port, header.from.port);
            ports == (port(*at, side), port(*at, 1 - side))
        });
        let at = at.expect("a connection");
        let Connection { sides, .. } = &mut self.connections[at];
        let [first, second] = sides;
        let (known, other) = match side {
            0 => (first, second),
            _ => (second, first),
        };
        if header.op != Some(Op::Rst) {
            assert_eq!(header.room as usize, CAPACITY);
            assert!((known.taken..=known.sent).contains(&header.taken));
            known.taken = header.taken;
        }
        match header.op.unwrap() {
            Op::Request => {
                assert!(at % 2 != side && !known.is_open);
                known.is_open = true;
                self.send(at, side, Op::Response, &[]);
            }
            Op::Response => {
                assert!(at % 2 == side && !known.is_open && other.is_open);
                known.is_open = true;
            }
            Op::Rw => {
                assert!(known.is_open);
                known.got += payload.len() as u32;
                assert!(known.got - known.said <= ROOM, "beyond the credit");
                let count = payload.len().min(known.expected.len());
                let expected: Vec<_> = known.expected.drain(..count).collect();
                assert_eq!(payload, expected);
            }
            Op::CreditUpdate => assert!(known.is_open),
            Op::Shutdown => {
                assert!(other.is_shut && header.flags == SENDS_NO_MORE);
                assert!(known.expected.is_empty(), "bytes come after it");
            }
            Op::Rst => {
                // It has none, or the other side ended it. What that had sent before has come.
                assert!(known.is_over || other.is_over);
                assert!(known.is_over || known.expected.is_empty());
                known.is_over = true;
            }
            op => panic!("{op:?}"),
        }
    }

    /// Lets all arrive that can.
    fn settle(&mut self) {
        for _ in 0..20 {
            for side in 0..2 {
                self.step(&Step::Look(side));
                self.step(&Step::Take(side, BUFFER));
                for at in 0..CONNECTIONS {
                    self.step(&Step::Say(at, side));
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn connections_do_as_their_model(steps in steps()) {
        let (rams, (hub, _)) = (rams(), hub());
        let mut guests = [0, 1].map(|side| Guest::new(&hub, settings(A + side as u64), &rams[side]));
        guests.iter_mut().for_each(|guest| guest.listen(12, BUFFER));
        let mut model = Model {
            guests,
            connections: Default::default(),
        };
        steps.iter().for_each(|step| model.step(step));
        model.settle();
        for connection in &model.connections {
            let [one, other] = &connection.sides;
            prop_assert_eq!(one.is_open && other.is_open, connection.is_asked);
            prop_assert_eq!(one.is_over, other.is_over);
            if !one.is_over {
                prop_assert!(one.expected.is_empty() && other.expected.is_empty());
            }
        }
        let open = model.connections.iter().filter(|connection| connection.is_asked && !connection.sides[0].is_over);
        let open = open.count();
        let counts = model.guests.each_ref().map(|guest| guest.driver.function.device().connections());
        prop_assert_eq!(counts, [open; 2]);
        for at in 0..CONNECTIONS {
            model.step(&Step::Reset(at, at / 2));
        }
        model.settle();
        let counts = model.guests.each_ref().map(|guest| guest.driver.function.device().connections());
        prop_assert_eq!(counts, [0; 2]);
    }
}
