//! The log's ring: the newest records, in a fixed number of bytes.
//!
//! A record is stored in one piece: header, target, message. New records push out the oldest.

use log::Level;

const HEADER: usize = 18;

/// A ring of records in `N` bytes.
pub struct Ring<const N: usize> {
    bytes: [u8; N],
    /// Offset of the oldest record.
    head: usize,
    /// Offset behind the newest record.
    tail: usize,
    /// Bytes at the end that the records before the wrap do not reach; 0 when nothing wraps. An empty ring is all
    /// zeroes, so a static one takes no space in the image.
    gap: usize,
    records: usize,
    lost: u64,
}

/// One record of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Microseconds since the first line.
    pub us: u64,
    /// The CPU that logged it.
    pub cpu: u32,
    /// The severity.
    pub level: Level,
    /// The module that logged the record.
    pub target: &'a str,
    /// The text.
    pub message: &'a str,
}

impl<const N: usize> Ring<N> {
    /// Creates an empty ring.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bytes: [0; N],
            head: 0,
            tail: 0,
            gap: 0,
            records: 0,
            lost: 0,
        }
    }

    /// Returns the end of the records before the wrap.
    const fn wrap(&self) -> usize {
        N - self.gap
    }

    /// Adds a record. A target longer than 255 bytes and a message longer than a quarter of the ring are cut.
    pub fn push(&mut self, record: &Record<'_>) {
        let target = cut(record.target, 255);
        let message = cut(record.message, N / 4);
        let len = HEADER + target.len() + message.len();
        self.make_room(len);
        let mut at = self.tail;
        let mut put = |part: &[u8]| {
            self.bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        };
        put(&record.us.to_le_bytes());
        put(&record.cpu.to_le_bytes());
        put(&[record.level as u8, target.len() as u8]);
        put(&(message.len() as u32).to_le_bytes());
        put(target.as_bytes());
        put(message.as_bytes());
        self.tail = at;
        self.records += 1;
    }

    /// Iterates over the records, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Record<'_>> {
        let mut at = self.head;
        (0..self.records).map(move |_| {
            if at >= self.wrap() {
                at = 0;
            }
            let (record, len) = self.record(at);
            at += len;
            record
        })
    }

    /// Returns the number of records that were pushed out.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Returns the number of records that were ever added.
    #[must_use]
    pub fn pushed(&self) -> u64 {
        self.lost + self.records as u64
    }

    /// Frees `len` bytes at the tail.
    fn make_room(&mut self, len: usize) {
        if self.tail + len > N {
            // The wrap drops what is between the tail and the end, including the records that are still there.
            while self.records > 0 && self.head >= self.tail {
                self.drop_oldest();
            }
            self.gap = N - self.tail;
            self.tail = 0;
            if self.head >= self.wrap() || self.records == 0 {
                self.head = 0;
                if self.records == 0 {
                    self.gap = 0;
                }
            }
        }
        while self.records > 0 && self.head >= self.tail && self.head < self.tail + len {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let (_, len) = self.record(self.head);
        self.head += len;
        self.records -= 1;
        self.lost += 1;
        if self.records == 0 {
            self.head = self.tail;
            self.gap = 0;
        } else if self.head >= self.wrap() {
            self.head = 0;
            self.gap = 0;
        }
    }

    fn record(&self, at: usize) -> (Record<'_>, usize) {
        let bytes = &self.bytes[at..];
        let word =
            |o: usize| u32::from_le_bytes([bytes[o], bytes[o + 1], bytes[o + 2], bytes[o + 3]]);
        let target_len = usize::from(bytes[13]);
        let message_len = word(14) as usize;
        let text = &bytes[HEADER..HEADER + target_len + message_len];
        let (target, message) = text.split_at(target_len);
        let record = Record {
            us: u64::from(word(0)) | u64::from(word(4)) << 32,
            cpu: word(8),
            level: Level::iter()
                .nth(usize::from(bytes[12]).saturating_sub(1))
                .unwrap_or(Level::Error),
            target: core::str::from_utf8(target).unwrap_or("?"),
            message: core::str::from_utf8(message).unwrap_or("?"),
        };
        (record, HEADER + text.len())
    }
}

impl<const N: usize> Default for Ring<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns the longest prefix of `s` with at most `max` bytes.
fn cut(s: &str, max: usize) -> &str {
    &s[..s.floor_char_boundary(max)]
}

#[cfg(test)]
mod tests {
    use alloc::{collections::VecDeque, string::String, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    fn record<'a>(us: u64, message: &'a str) -> Record<'a> {
        Record {
            us,
            cpu: 3,
            level: Level::Warn,
            target: "here",
            message,
        }
    }

    #[test]
    fn records_come_back_as_they_went_in() {
        let mut ring = Ring::<256>::new();
        ring.push(&record(7, "one"));
        ring.push(&record(8, ""));
        let all: Vec<_> = ring.iter().collect();
        assert_eq!(all, [record(7, "one"), record(8, "")]);
        assert_eq!(ring.lost(), 0);
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let mut ring = Ring::<64>::new();
        ring.push(&record(1, "äääääääääää"));
        assert_eq!(ring.iter().next().unwrap().message, "ääääääää");
    }

    proptest! {
        /// The ring always holds the newest records without a gap, and counts the others as lost.
        #[test]
        fn the_newest_records_survive(messages: Vec<String>) {
            let mut ring = Ring::<300>::new();
            let mut model = VecDeque::new();
            for (i, message) in messages.iter().enumerate() {
                ring.push(&record(i as u64, message));
                model.push_back((i as u64, cut(message, 75)));
                let held: Vec<_> = ring.iter().map(|r| (r.us, r.message)).collect();
                prop_assert!(!held.is_empty());
                let newest: Vec<_> = model.iter().rev().take(held.len()).rev().copied().collect();
                prop_assert_eq!(&held, &newest);
                prop_assert_eq!(ring.lost() as usize + held.len(), i + 1);
            }
        }
    }
}
