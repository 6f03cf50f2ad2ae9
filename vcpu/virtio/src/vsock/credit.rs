//! Flow control: the bytes that may be sent to a guest, and those that it may send.
//!
//! Source: VIRTIO 1.2, section 5.10.6.3.

/// The guest's buffer of a connection, as the device knows it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Credit {
    /// Its size, and the number of bytes that the guest has taken out of it, modulo 2^32.
    room: u32,
    taken: u32,
    /// Number of bytes that were sent.
    sent: u32,
}

impl Credit {
    /// Notes the guest's word for its buffer, which comes with every packet.
    pub const fn hear(&mut self, room: u32, taken: u32) {
        (self.room, self.taken) = (room, taken);
    }

    /// Returns the number of bytes that the guest has room for. A guest that claims to have taken more than was sent has
    /// none.
    pub const fn left(&self) -> u32 {
        self.room.saturating_sub(self.sent.wrapping_sub(self.taken))
    }

    /// Notes that bytes were sent, at most [`Self::left`].
    pub const fn spend(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }
}

/// The last report to the guest of the buffer for its own bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told(u32);

impl Told {
    /// Returns whether the guest should be told that `taken` bytes were taken out of a buffer of `room` bytes: it can't
    /// know of half of it.
    pub const fn is_stale(self, taken: u32, room: u32) -> bool {
        taken.wrapping_sub(self.0) >= room / 2
    }

    /// Notes that it was told.
    pub const fn tell(&mut self, taken: u32) {
        self.0 = taken;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A guest that keeps the rules: its buffer, and what it last said of it.
    #[derive(Debug, Default)]
    struct Model {
        held: u64,
        taken: u64,
        sent: u64,
        said: u64,
    }

    proptest! {
        #[test]
        fn a_guest_never_gets_more_than_it_has_room_for(
            room in 1u32..100_000,
            start: u32,
            steps in proptest::collection::vec((0u8..3, 0u32..200_000), 1..300),
        ) {
            let mut model = Model::default();
            let mut credit = Credit { room, taken: start, sent: start };
            for (step, amount) in steps {
                match step {
                    // The device sends what it may.
                    0 => {
                        let bytes = amount.min(credit.left());
                        credit.spend(bytes);
                        model.sent += u64::from(bytes);
                        model.held += u64::from(bytes);
                    }
                    // The guest reads.
                    1 => {
                        let bytes = u64::from(amount).min(model.held);
                        model.held -= bytes;
                        model.taken += bytes;
                    }
                    // It says so.
                    _ => {
                        credit.hear(room, start.wrapping_add(model.taken as u32));
                        model.said = model.taken;
                    }
                }
                prop_assert!(model.held <= u64::from(room));
                let expected = u64::from(room) - (model.sent - model.said);
                prop_assert_eq!(u64::from(credit.left()), expected);
            }
        }

        #[test]
        fn a_lie_never_overflows(words in proptest::collection::vec((any::<u32>(), any::<u32>(), any::<u32>()), 1..50)) {
            let mut credit = Credit::default();
            for (room, taken, bytes) in words {
                credit.hear(room, taken);
                prop_assert!(credit.left() <= room);
                credit.spend(bytes.min(credit.left()));
            }
        }

        #[test]
        fn a_guest_that_fills_the_buffer_is_told_once_half_is_free(room in 2u32..100_000, start: u32) {
            let mut told = Told(start);
            let half = room / 2;
            prop_assert!(!told.is_stale(start.wrapping_add(half - 1), room));
            prop_assert!(told.is_stale(start.wrapping_add(half), room));
            told.tell(start.wrapping_add(half));
            prop_assert!(!told.is_stale(start.wrapping_add(half), room));
        }
    }
}
