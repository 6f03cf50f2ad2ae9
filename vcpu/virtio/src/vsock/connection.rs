//! A connection of a guest: its packets become bytes of a link, and the link's bytes become packets.

use alloc::sync::Arc;

use devices::{Memory, Now, Other, Unshared};
use virtio_spec::vsock::Op;

use super::credit::{Credit, Told};
use super::header::{Address, Header, Shut};
use super::hub::Service;
use super::link::{CAPACITY, End, Seen};
use crate::chain::Cursor;

/// The connection.
#[derive(Debug)]
pub struct Connection {
    /// The guest's side.
    pub own: Address,
    /// The other side.
    pub other: Address,
    far: Far,
    /// The guest asked for it.
    pub is_outgoing: bool,
    end: End,
    state: State,
    credit: Credit,
    told: Told,
    /// The guest asked for the state of the buffer.
    owes_credit: bool,
    /// The directions that the guest has shut, and those of the other side that it knows of.
    shut: Shut,
    told_shut: Shut,
    /// The other side has not been told of what the guest did.
    has_news: bool,
}

/// The other side.
pub enum Far {
    /// A service of the host.
    Service(Arc<dyn Service>),
    /// Another guest.
    Guest(Other),
}

impl core::fmt::Debug for Far {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Service(_) => "Service",
            Self::Guest(_) => "Guest",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The other side has to accept.
    Asking,
    /// The guest has to be asked.
    Waiting,
    /// The guest has to accept.
    Asked,
    Open,
}

/// The fate of a connection after a packet of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It stays.
    Good,
    /// It ends.
    Closed,
    /// It ends, because the guest broke its rules, and the guest has to be told.
    Refused,
}

/// The next packet for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    op: Op,
    flags: u32,
    /// Length of the payload.
    pub bytes: usize,
    /// Bytes that the other side has taken.
    taken: u32,
}

impl Next {
    /// Returns whether the connection ends with it.
    pub fn is_last(&self) -> bool {
        self.op == Op::Rst
    }
}

impl Connection {
    /// Creates a connection that the guest asked for by this packet.
    pub fn outgoing(request: &Header, far: Far, end: End) -> Self {
        let mut connection = Self::new(request.from, request.to, far, end);
        (connection.is_outgoing, connection.state) = (true, State::Asking);
        connection.has_news = true;
        connection.credit.hear(request.room, request.taken);
        connection
    }

    /// Creates a connection that the guest is to be asked to accept.
    pub fn new(own: Address, other: Address, far: Far, end: End) -> Self {
        Self {
            own,
            other,
            far,
            is_outgoing: false,
            end,
            state: State::Waiting,
            credit: Credit::default(),
            told: Told::default(),
            owes_credit: false,
            shut: Shut::default(),
            told_shut: Shut::default(),
            has_news: false,
        }
    }

    /// Takes a packet of the guest with this payload.
    ///
    /// # Errors
    /// [`Unshared`].
    pub fn hear(
        &mut self,
        header: &Header,
        payload: &mut Cursor<'_>,
        memory: &dyn Memory,
    ) -> Result<Heard, Unshared> {
        self.credit.hear(header.room, header.taken);
        let mut is_good = true;
        match (header.op, self.state) {
            (Some(Op::Rst), _) => return Ok(Heard::Closed),
            (Some(Op::Response), State::Asked) => {
                self.end.open();
                (self.state, self.has_news) = (State::Open, true);
            }
            (Some(Op::Rw), State::Open) if !self.shut.send => {
                is_good = self.end.fill(memory, payload, header.bytes as usize)?;
                self.has_news = true;
            }
            (Some(Op::Shutdown), State::Open) => {
                self.shut.add(Shut::of(header.flags));
                self.end.shut(self.shut);
                self.has_news = true;
            }
            (Some(Op::CreditUpdate), State::Open) => {}
            (Some(Op::CreditRequest), State::Open) => self.owes_credit = true,
            _ => is_good = false,
        }
        Ok(if is_good { Heard::Good } else { Heard::Refused })
    }

    /// Returns the next packet for the guest, if there is any.
    pub fn next(&self) -> Option<Next> {
        let seen = self.end.see();
        let packet = |op: Op, flags, bytes| Next {
            op,
            flags,
            bytes,
            taken: seen.taken,
        };
        match self.state {
            State::Asking if seen.is_open => Some(packet(Op::Response, 0, 0)),
            State::Open => self.next_open(&seen, packet),
            _ if seen.is_gone => Some(packet(Op::Rst, 0, 0)),
            State::Waiting => Some(packet(Op::Request, 0, 0)),
            State::Asking | State::Asked => None,
        }
    }

    fn next_open(&self, seen: &Seen, packet: impl Fn(Op, u32, usize) -> Next) -> Option<Next> {
        let readable = if self.shut.receive { 0 } else { seen.readable };
        let bytes = readable.min(self.credit.left() as usize);
        // The other side has all that the guest sent, and the guest wants nothing more.
        let is_over = self.shut == Shut::ALL && (seen.room == CAPACITY || seen.is_gone);
        if bytes > 0 {
            Some(packet(Op::Rw, 0, bytes))
        } else if is_over || readable == 0 && seen.is_gone {
            Some(packet(Op::Rst, 0, 0))
        } else if readable == 0 && seen.shut != self.told_shut {
            Some(packet(Op::Shutdown, seen.shut.flags(), 0))
        } else if self.owes_credit || self.told.is_stale(seen.taken, CAPACITY as u32) {
            Some(packet(Op::CreditUpdate, 0, 0))
        } else {
            None
        }
    }

    /// Writes a packet that [`Self::next`] returned, with `bytes` bytes of payload at most.
    ///
    /// # Errors
    /// [`Unshared`].
    pub fn write(
        &mut self,
        next: Next,
        into: &mut Cursor<'_>,
        memory: &dyn Memory,
    ) -> Result<(), Unshared> {
        let header = Header {
            bytes: next.bytes as u32,
            flags: next.flags,
            room: CAPACITY as u32,
            taken: next.taken,
            ..Header::new(next.op, self.other, self.own)
        };
        into.write(memory, &header.written())?;
        self.told.tell(next.taken);
        self.owes_credit = false;
        match next.op {
            Op::Rw => {
                self.end.drain(memory, into, next.bytes)?;
                self.credit.spend(next.bytes as u32);
                self.has_news = true;
            }
            Op::Response => self.state = State::Open,
            Op::Request => self.state = State::Asked,
            Op::Shutdown => self.told_shut = Shut::of(next.flags),
            _ => {}
        }
        Ok(())
    }

    /// Tells the other side what the guest did, if it did something.
    pub fn tell(&mut self, memory: &dyn Memory, now: Now) {
        if !core::mem::take(&mut self.has_news) {
            return;
        }
        self.far.tell(memory, now);
    }

    /// Ends the connection, and tells the other side.
    pub fn close(self, memory: &dyn Memory, now: Now) {
        self.into_far().tell(memory, now);
    }

    /// Ends the connection. Returns the other side, which is to be told.
    pub fn into_far(self) -> Far {
        // The end goes here.
        self.far
    }
}

impl Far {
    /// Tells it that there is something to see at its end.
    pub fn tell(&self, memory: &dyn Memory, now: Now) {
        match self {
            Self::Service(service) => service.attend(memory, now),
            Self::Guest(guest) => memory.ring(guest),
        }
    }
}
