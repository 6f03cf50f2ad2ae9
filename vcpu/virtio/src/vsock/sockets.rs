//! The connections of a guest, and the packets of none.

use alloc::sync::Arc;

use arrayvec::ArrayVec;
use devices::{Memory, Now};
use virtio_spec::vsock::Op;

use super::connection::{Connection, Far, Heard, Next};
use super::header::{HEADER, Header, STREAM};
use super::hub::{Asked, Attached, CONNECTIONS, INCOMING, Way, ask};
use super::link::{End, Link};
use crate::chain::{Chain, Cursor};
use crate::device::Work;
use crate::queue::Fault;

/// Number of answers to packets of no connection that wait for the guest to take them.
pub const REFUSALS: usize = 32;

/// The connections.
#[derive(Debug)]
pub struct Sockets {
    /// The guest's place at the hub, until the TD's end.
    member: Option<Attached>,
    lines: [Line; CONNECTIONS],
    connections: ArrayVec<Connection, CONNECTIONS>,
    /// The connection whose turn it is.
    turn: usize,
    refusals: ArrayVec<Header, REFUSALS>,
    /// Number of packets that belonged to no connection, or broke the rules of one.
    refused: u64,
    /// The other sides of connections that ended with the driver, and have not been told.
    left: ArrayVec<Far, CONNECTIONS>,
}

/// A link for a connection that the guest asks for.
#[derive(Debug)]
struct Line {
    link: Arc<Link>,
    /// The context id of the other side of its last connection.
    cid: u64,
}

/// The next packet for the guest: an answer to one of no connection, or one of a connection, by its index.
#[derive(Clone, Copy, Debug)]
pub enum Pending {
    Refusal(Header),
    Packet(usize, Next),
}

impl Sockets {
    pub fn new(member: Attached) -> Self {
        Self {
            member: Some(member),
            lines: [(); CONNECTIONS].map(|()| Line {
                link: Link::new(),
                cid: 0,
            }),
            connections: ArrayVec::new(),
            turn: 0,
            refusals: ArrayVec::new(),
            refused: 0,
            left: ArrayVec::new(),
        }
    }

    /// Lets others ask the guest for connections.
    pub fn listen(&self) {
        if let Some(member) = &self.member {
            member.listen(true);
        }
    }

    /// Ends all connections, without a word to the guest.
    pub fn clear(&mut self) {
        if let Some(member) = &self.member {
            member.listen(false);
        }
        self.refusals.clear();
        for far in self.connections.drain(..).map(Connection::into_far) {
            // A side that is not told finds out when it looks next.
            _ = self.left.try_push(far);
        }
    }

    /// Gives the guest's place at the hub back.
    pub fn leave(&mut self) {
        self.member = None;
    }

    /// Returns the number of connections.
    pub const fn count(&self) -> usize {
        self.connections.len()
    }

    /// Returns the number of packets that were refused.
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// Returns whether no packet of the guest can be taken before it takes some itself.
    pub const fn is_full(&self) -> bool {
        self.refusals.is_full()
    }

    /// Takes the connections that the guest is to be asked to accept.
    pub fn take_asked(&mut self) {
        let Some(member) = &self.member else {
            return;
        };
        while let Some(Asked { caller, port, end }) = member.next_asked() {
            let own = member.caller(port).address;
            let mut all = self.connections.iter();
            let is_known = all.any(|other| (other.own, other.other) == (own, caller.address));
            let incoming = || self.connections.iter().filter(|other| !other.is_outgoing);
            let from_same = incoming().filter(|other| other.other.cid == caller.address.cid);
            let has_room = incoming().count() < INCOMING
                && from_same.count() < member.share_of_incoming()
                && !self.connections.is_full();
            // The end is dropped otherwise, which refuses the connection.
            if has_room && !is_known {
                let far = Far::Guest(caller.guest);
                let connection = Connection::new(own, caller.address, far, end);
                self.connections.push(connection);
            }
        }
    }

    /// Takes a packet of the guest. Returns its length.
    ///
    /// # Errors
    /// [`Fault`]: the chain has no header, or not the payload that the header tells of.
    pub fn heed(&mut self, chain: &Chain, work: &Work<'_>) -> Result<usize, Fault> {
        let memory = work.memory;
        let mut payload = chain.readable();
        let mut bytes = [0; HEADER];
        if payload.read(memory, &mut bytes)? != HEADER {
            return Err(Fault::Request);
        }
        let header = Header::read(&bytes);
        if u64::from(header.bytes) > payload.left() {
            return Err(Fault::Request);
        }
        let bytes = HEADER + header.bytes as usize;
        if self.member.as_ref().map(Attached::cid) != Some(header.from.cid) {
            self.refused += 1;
            // It has no sender to answer to.
            return Ok(bytes);
        }
        let mut all = self.connections.iter();
        let found = all.position(|known| (known.own, known.other) == (header.from, header.to));
        match found {
            Some(at) if header.kind == STREAM => {
                let heard = self.connections[at].hear(&header, &mut payload, memory)?;
                if heard != Heard::Good {
                    self.connections.swap_remove(at).close(memory, work.now);
                }
                if heard == Heard::Refused {
                    self.refuse(&header);
                }
            }
            None if header.kind == STREAM && header.op == Some(Op::Request) => {
                self.connect(&header);
            }
            _ => self.refuse(&header),
        }
        Ok(bytes)
    }

    /// Answers a packet that belongs to no connection.
    fn refuse(&mut self, header: &Header) {
        self.refused += 1;
        if header.op == Some(Op::Rst) {
            return;
        }
        let refusal = Header {
            kind: header.kind,
            ..Header::new(Op::Rst, header.to, header.from)
        };
        // There is room: no packet is taken otherwise.
        _ = self.refusals.try_push(refusal);
    }

    /// Begins a connection that the guest asks for.
    fn connect(&mut self, request: &Header) {
        match self.reach(request) {
            Some((far, end)) => {
                let connection = Connection::outgoing(request, far, end);
                self.connections.push(connection);
            }
            None => self.refuse(request),
        }
    }

    /// Asks the other side for a connection.
    fn reach(&mut self, request: &Header) -> Option<(Far, End)> {
        let member = self.member.as_ref()?;
        let cid = request.to.cid;
        let way = member.way(request.to)?;
        if self.connections.is_full() {
            return None;
        }
        if matches!(way, Way::Guest(..)) {
            let same = |line: &&Line| line.cid == cid && line.link.is_used();
            let with_same = self.lines.iter().filter(same).count();
            if with_same >= member.share_of_links() {
                return None;
            }
        }
        let begin = |line: &mut Line| {
            let ends = line.link.begin()?;
            line.cid = cid;
            Some(ends)
        };
        let [own, end] = self.lines.iter_mut().find_map(begin)?;
        let caller = member.caller(request.from.port);
        let far = match way {
            Way::Service(service) => {
                service.connect(caller, end);
                Far::Service(service)
            }
            Way::Guest(guest, inbox) => {
                let port = request.to.port;
                ask(&inbox, Asked { caller, port, end });
                Far::Guest(guest)
            }
        };
        Some((far, own))
    }

    /// Returns the next packet for the guest, if there is any.
    pub fn next(&self) -> Option<Pending> {
        if let Some(refusal) = self.refusals.first() {
            return Some(Pending::Refusal(*refusal));
        }
        let count = self.connections.len();
        let mut turns = (self.turn..self.turn + count).map(|turn| turn % count);
        turns.find_map(|at| Some(Pending::Packet(at, self.connections[at].next()?)))
    }

    /// Writes the packet that [`Self::next`] returned last, into buffers with room for more than a header. Returns its
    /// length.
    ///
    /// # Errors
    /// [`Fault::NotShared`].
    pub fn write(
        &mut self,
        pending: Pending,
        into: &mut Cursor<'_>,
        work: &Work<'_>,
    ) -> Result<usize, Fault> {
        let memory = work.memory;
        match pending {
            Pending::Refusal(refusal) => {
                into.write(memory, &refusal.written())?;
                self.refusals.remove(0);
                Ok(HEADER)
            }
            Pending::Packet(at, mut packet) => {
                let room = into.left() as usize - HEADER;
                packet.bytes = packet.bytes.min(room);
                self.connections[at].write(packet, into, memory)?;
                if packet.is_last() {
                    self.connections.swap_remove(at).close(memory, work.now);
                }
                self.turn = at + 1;
                Ok(HEADER + packet.bytes)
            }
        }
    }

    /// Tells the other sides what the guest did.
    pub fn tell(&mut self, memory: &dyn Memory, now: Now) {
        for far in self.left.drain(..) {
            far.tell(memory, now);
        }
        for connection in &mut self.connections {
            connection.tell(memory, now);
        }
    }
}
