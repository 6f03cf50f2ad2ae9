//! The output that was not sent yet, and the count of what did not fit.

use core::fmt::{self, Write};

use crate::ring::Ring;

/// Size in bytes that the line about lost output never exceeds.
const MARK: usize = 64;

/// A ring of output. From the byte that does not fit until the ring is half empty, everything is lost and counted, so
/// that one long gap replaces many short ones. A line with the count stands for the gap.
#[derive(Debug)]
pub struct Output<const N: usize> {
    ring: Ring<N>,
    /// Bytes lost since the last mark.
    gap: u64,
    /// Bytes lost in all.
    lost: u64,
}

impl<const N: usize> Output<N> {
    pub const fn new() -> Self {
        assert!(N >= 4 * MARK, "the mark fits into the half of a ring");
        Self {
            ring: Ring::new(),
            gap: 0,
            lost: 0,
        }
    }

    pub const fn len(&self) -> usize {
        self.ring.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// Adds as many of `bytes` as fit, and returns their number.
    pub fn offer(&mut self, bytes: &[u8]) -> usize {
        self.mark();
        if self.gap != 0 {
            return 0;
        }
        self.ring.push(bytes)
    }

    /// Adds all of `bytes`. What does not fit is lost.
    pub fn push(&mut self, bytes: &[u8]) {
        let fit = self.offer(bytes);
        self.lose(bytes.len() - fit);
    }

    /// Drops the oldest bytes but `keep`, and puts a mark in their place.
    pub fn cut(&mut self, keep: usize) {
        let surplus = self.ring.len().saturating_sub(keep);
        if surplus == 0 {
            return;
        }
        self.ring.skip(surplus);
        self.lost += surplus as u64;
        let mark = Mark::of(surplus as u64);
        self.ring.push_front(mark.text());
    }

    /// Takes the next byte to send.
    pub fn pop(&mut self) -> Option<u8> {
        self.mark();
        self.ring.pop()
    }

    fn lose(&mut self, count: usize) {
        self.gap += count as u64;
        self.lost += count as u64;
    }

    /// Ends a gap once the ring is half empty.
    fn mark(&mut self) {
        if self.gap != 0 && self.ring.len() <= N / 2 {
            let mark = Mark::of(core::mem::take(&mut self.gap));
            // The mark is shorter than the free half of the ring.
            self.ring.push(mark.text());
        }
    }
}

/// The line that stands for lost output.
struct Mark {
    bytes: [u8; MARK],
    len: usize,
}

impl Mark {
    fn of(lost: u64) -> Self {
        let mut mark = Self {
            bytes: [0; MARK],
            len: 0,
        };
        // No number of 64 bits makes the line too long.
        let _ = write!(mark, "\r\n[{lost} bytes of output lost]\r\n");
        mark
    }

    fn text(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Write for Mark {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        let free = self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?;
        free.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{string::String, vec::Vec};

    use super::Output;

    fn drained(output: &mut Output<256>) -> String {
        let bytes: Vec<u8> = core::iter::from_fn(|| output.pop()).collect();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_gap_is_marked_once_in_its_place() {
        let mut output = Output::<256>::new();
        output.push(&[b'a'; 250]);
        output.push(&[b'b'; 10]);
        output.push(b"c");
        for _ in 0..128 {
            output.pop();
        }
        output.push(b"d");
        let rest = drained(&mut output);
        let (before, after) = rest.split_once("\r\n[5 bytes of output lost]\r\n").unwrap();
        assert!(before.ends_with("abbbbbb"), "{rest}");
        assert_eq!((after, output.lost()), ("d", 5));
    }

    #[test]
    fn a_gap_at_the_end_is_marked_without_more_output() {
        let mut output = Output::<256>::new();
        output.push(&[b'a'; 257]);
        assert!(drained(&mut output).ends_with("\r\n[1 bytes of output lost]\r\n"));
    }

    #[test]
    fn a_cut_keeps_the_newest() {
        let mut output = Output::<256>::new();
        output.push(b"old, new");
        output.cut(3);
        let rest = drained(&mut output);
        assert_eq!(rest, "\r\n[5 bytes of output lost]\r\nnew");
    }
}
