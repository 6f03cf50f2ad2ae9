//! A TD's console: what it wrote, kept in a ring whether anybody watches or not, and what was typed for it.

use alloc::{boxed::Box, collections::VecDeque, vec};
use core::fmt;

use spin::Mutex;

/// Bytes of output that are kept.
const KEPT: usize = 16 << 10;
/// Bytes typed that wait for the guest at most.
const TYPED: usize = 256;

/// The console of one TD.
#[derive(Debug)]
pub struct Console {
    output: Mutex<Output>,
    typed: Mutex<VecDeque<u8>>,
}

#[derive(Debug)]
struct Output {
    ring: Box<[u8]>,
    written: u64,
}

impl Console {
    /// A console on which nothing was written.
    #[must_use]
    pub fn new() -> Self {
        Self {
            output: Mutex::new(Output {
                ring: vec![0; KEPT].into_boxed_slice(),
                written: 0,
            }),
            typed: Mutex::new(VecDeque::with_capacity(TYPED)),
        }
    }

    /// Writes a byte; the oldest one goes when the ring is full.
    pub fn put(&self, byte: u8) {
        let mut output = self.output.lock();
        let at = (output.written % KEPT as u64) as usize;
        output.ring[at] = byte;
        output.written += 1;
    }

    /// A line of the host's own among what the guest wrote.
    pub(crate) fn note(&self, text: fmt::Arguments<'_>) {
        struct Bytes<'a>(&'a Console);
        impl fmt::Write for Bytes<'_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                text.bytes().for_each(|byte| self.0.put(byte));
                Ok(())
            }
        }
        // The ring takes everything.
        _ = fmt::Write::write_fmt(&mut Bytes(self), format_args!("\r\n[{text}]\r\n"));
    }

    /// Bytes that were written since the start.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.output.lock().written
    }

    /// Copies what was written from byte number `from` on, or from the oldest one that is kept. Returns the number of the
    /// first byte that was copied, and how many were.
    pub fn read(&self, from: u64, into: &mut [u8]) -> (u64, usize) {
        let output = self.output.lock();
        let oldest = output.written.saturating_sub(KEPT as u64);
        let start = from.clamp(oldest, output.written);
        let count = (output.written - start).min(into.len() as u64) as usize;
        for (number, byte) in (start..).zip(&mut into[..count]) {
            *byte = output.ring[(number % KEPT as u64) as usize];
        }
        (start, count)
    }

    /// Types a byte for the guest. `false` when too many wait: it is lost.
    pub fn type_byte(&self, byte: u8) -> bool {
        let mut typed = self.typed.lock();
        let fits = typed.len() < TYPED;
        if fits {
            typed.push_back(byte);
        }
        fits
    }

    /// The next typed byte.
    pub fn take_typed(&self) -> Option<u8> {
        self.typed.lock().pop_front()
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn the_newest_output_is_kept() {
        let console = Console::new();
        let mut seen = [0; 8];
        assert_eq!(console.read(0, &mut seen), (0, 0));
        for number in 0..KEPT as u32 + 3 {
            console.put(number as u8);
        }
        assert_eq!(console.read(0, &mut seen), (3, 8));
        assert_eq!(seen, [3, 4, 5, 6, 7, 8, 9, 10]);
        let last = console.written() - 2;
        assert_eq!(console.read(last, &mut seen), (last, 2));
        assert_eq!(seen[..2], [1, 2]);
        assert_eq!(console.read(u64::MAX, &mut seen), (last + 2, 0));
    }

    #[test]
    fn what_is_typed_waits_in_order_up_to_a_bound() {
        let console = Console::new();
        let taken = (0..=TYPED).filter(|n| console.type_byte(*n as u8)).count();
        assert_eq!(taken, TYPED);
        assert_eq!(console.take_typed(), Some(0));
        assert_eq!(console.take_typed(), Some(1));
        assert!(console.type_byte(7));
    }
}
