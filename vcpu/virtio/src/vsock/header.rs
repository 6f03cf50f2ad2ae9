//! The header of a packet.
//!
//! Source: VIRTIO 1.2, section 5.10.6.

use virtio_spec::vsock::{Op, ShutdownF, Type};

/// Length of a header in bytes.
pub const HEADER: usize = 44;
/// The host's context id.
pub const HOST: u64 = 2;
/// The type of stream sockets.
pub const STREAM: u16 = Type::Stream as u16;

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Context id: 2 for the host, or a guest's.
    pub cid: u64,
    /// Port.
    pub port: u32,
}

/// A header, as the guest or this device wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The sender.
    pub from: Address,
    /// The receiver.
    pub to: Address,
    /// Length of the payload in bytes.
    pub bytes: u32,
    /// Type of the socket.
    pub kind: u16,
    /// Operation; `None` if there is none of this number.
    pub op: Option<Op>,
    /// Flags of the operation.
    pub flags: u32,
    /// Size of the sender's buffer for this connection in bytes.
    pub room: u32,
    /// Number of bytes that the sender has taken out of it, modulo 2^32.
    pub taken: u32,
}

impl Header {
    /// Creates the header of a packet without payload, flags and buffer.
    pub const fn new(op: Op, from: Address, to: Address) -> Self {
        Self {
            from,
            to,
            bytes: 0,
            kind: STREAM,
            op: Some(op),
            flags: 0,
            room: 0,
            taken: 0,
        }
    }

    /// Reads a header.
    pub fn read(bytes: &[u8; HEADER]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(word)
        };
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Self {
            from: Address {
                cid: long(0),
                port: word(16),
            },
            to: Address {
                cid: long(8),
                port: word(20),
            },
            bytes: word(24),
            kind: word(28) as u16,
            op: Op::try_from((word(28) >> 16) as u16).ok(),
            flags: word(32),
            room: word(36),
            taken: word(40),
        }
    }

    /// Returns the header as it is written.
    pub fn written(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let op = self.op.unwrap_or(Op::Invalid) as u16;
        bytes[0..8].copy_from_slice(&self.from.cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.to.cid.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&op.to_le_bytes());
        for (at, value) in [
            (16, self.from.port),
            (20, self.to.port),
            (24, self.bytes),
            (32, self.flags),
            (36, self.room),
            (40, self.taken),
        ] {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }
}

/// The directions in which one side of a connection does nothing more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shut {
    /// It receives nothing more.
    pub receive: bool,
    /// It sends nothing more.
    pub send: bool,
}

impl Shut {
    /// Both directions.
    pub const ALL: Self = Self {
        receive: true,
        send: true,
    };

    const RECEIVE: u32 = ShutdownF::RECEIVE.bits().to_ne();
    const SEND: u32 = ShutdownF::SEND.bits().to_ne();

    /// Reads the flags of a packet.
    pub const fn of(flags: u32) -> Self {
        Self {
            receive: flags & Self::RECEIVE != 0,
            send: flags & Self::SEND != 0,
        }
    }

    /// Returns the flags of a packet.
    pub const fn flags(self) -> u32 {
        let receive = if self.receive { Self::RECEIVE } else { 0 };
        receive | if self.send { Self::SEND } else { 0 }
    }

    /// Adds directions.
    pub const fn add(&mut self, more: Self) {
        self.receive |= more.receive;
        self.send |= more.send;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_header_that_is_written_is_read_again(
            cids: [u64; 2], ports: [u32; 2], bytes: u32, op in 0u16..8, rest: [u32; 3], kind: u16,
        ) {
            let [from, to] = [0, 1].map(|at| Address { cid: cids[at], port: ports[at] });
            let header = Header {
                from,
                to,
                bytes,
                kind,
                op: Op::try_from(op).ok(),
                flags: rest[0],
                room: rest[1],
                taken: rest[2],
            };
            prop_assert_eq!(Header::read(&header.written()), header);
        }

        #[test]
        fn shut_directions_are_their_flags(flags in 0u32..4) {
            prop_assert_eq!(Shut::of(flags).flags(), flags);
        }
    }

    #[test]
    fn an_unknown_operation_is_none() {
        let mut bytes = Header::new(
            Op::Rw,
            Address { cid: 3, port: 1 },
            Address { cid: 2, port: 2 },
        )
        .written();
        bytes[30] = 99;
        assert_eq!(Header::read(&bytes).op, None);
    }
}
