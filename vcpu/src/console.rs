//! A TD's console: a ring of the TD's output, kept even when nobody reads it, and a queue of typed input. One console
//! serves all lives of a TD, so the output of one life can be read in the next. The serial port and the virtio console
//! write to the same ring. The port for scripts is a console of its own beside it.

use alloc::{boxed::Box, collections::VecDeque, sync::Arc, vec};
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

use spin::{Mutex, Once};

/// Capacity of the output ring in bytes.
const KEPT: usize = 16 << 10;
/// Capacity of the input queue in bytes.
const TYPED: usize = 256;

/// The console of one TD in all of its lives.
#[derive(Debug)]
pub struct Console {
    output: Mutex<Output>,
    typed: Mutex<VecDeque<u8>>,
    /// True if `typed` has bytes. Changed with its lock held.
    has_typed: AtomicBool,
    /// True if the operator watches the output.
    watched: AtomicBool,
    /// True while the guest drives the virtio console, which takes the typed bytes then.
    has_virtio: AtomicBool,
    /// The port for scripts, once the TD has had one.
    script: Once<Arc<Self>>,
}

/// The bytes that [`Console::read`] has copied. Bytes are numbered from 0, across all lives of the TD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// Number of the first byte of the current life, written or not.
    pub began: u64,
    /// Number of the first byte copied.
    pub from: u64,
    /// Count of bytes copied.
    pub count: usize,
}

#[derive(Debug)]
struct Output {
    ring: Box<[u8]>,
    written: u64,
    /// Value of `written` at the start of the current life.
    began: u64,
}

impl Console {
    /// Creates an empty console.
    #[must_use]
    pub fn new() -> Self {
        Self {
            output: Mutex::new(Output {
                ring: vec![0; KEPT].into_boxed_slice(),
                written: 0,
                began: 0,
            }),
            typed: Mutex::new(VecDeque::with_capacity(TYPED)),
            has_typed: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            has_virtio: AtomicBool::new(false),
            script: Once::new(),
        }
    }

    /// Returns the port for scripts; creates it if the TD had none yet.
    #[must_use]
    pub fn with_script(&self) -> &Arc<Self> {
        self.script.call_once(Arc::default)
    }

    /// Returns the port for scripts, if the TD has had one.
    #[must_use]
    pub fn script(&self) -> Option<&Arc<Self>> {
        self.script.get()
    }

    /// Starts a new life of the TD. Pending input is dropped; output is kept.
    pub(crate) fn begin(&self) {
        {
            let mut typed = self.typed.lock();
            typed.clear();
            self.has_typed.store(false, SeqCst);
        }
        self.has_virtio.store(false, SeqCst);
        let mut output = self.output.lock();
        output.began = output.written;
        if let Some(script) = self.script() {
            script.begin();
        }
    }

    /// Writes a note that the new life has started to run, unless nothing was written before it.
    pub fn note_start(&self) {
        let is_first = self.output.lock().began == 0;
        if !is_first {
            self.note(format_args!("started anew"));
        }
    }

    /// Writes a byte. When the ring is full, the oldest byte is dropped.
    pub fn put(&self, byte: u8) {
        self.output.lock().put(byte);
    }

    /// Writes a line of the host into the guest's output.
    pub(crate) fn note(&self, text: fmt::Arguments<'_>) {
        struct Bytes<'a>(&'a Console);
        impl fmt::Write for Bytes<'_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                text.bytes().for_each(|byte| self.0.put(byte));
                Ok(())
            }
        }
        // Writing to the ring never fails.
        _ = fmt::Write::write_fmt(&mut Bytes(self), format_args!("\r\n[{text}]\r\n"));
    }

    /// Notes whether the operator watches the output.
    pub fn set_watched(&self, watched: bool) {
        self.watched.store(watched, SeqCst);
    }

    /// Returns whether the operator watches the output. The machine's console must then be woken after each write.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.watched.load(SeqCst)
    }

    /// Returns the number of bytes written in all lives.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.output.lock().written
    }

    /// Copies output from byte number `from` on, or from the oldest byte that is kept.
    pub fn read(&self, from: u64, into: &mut [u8]) -> Excerpt {
        let output = self.output.lock();
        let oldest = output.written.saturating_sub(KEPT as u64);
        let from = from.clamp(oldest, output.written);
        let count = (output.written - from).min(into.len() as u64) as usize;
        for (number, byte) in (from..).zip(&mut into[..count]) {
            *byte = output.ring[(number % KEPT as u64) as usize];
        }
        Excerpt {
            began: output.began,
            from,
            count,
        }
    }

    /// Types a byte for the guest. Returns `false` if the queue is full; the byte is lost.
    pub fn type_byte(&self, byte: u8) -> bool {
        let mut typed = self.typed.lock();
        let fits = typed.len() < TYPED;
        if fits {
            typed.push_back(byte);
            self.has_typed.store(true, SeqCst);
        }
        fits
    }

    /// Returns whether the guest drives the virtio console. Typed bytes are not the serial port's then.
    #[must_use]
    pub fn has_virtio(&self) -> bool {
        self.has_virtio.load(SeqCst)
    }

    /// Takes the next typed byte. Takes no lock if there is none.
    pub fn take_typed(&self) -> Option<u8> {
        if !self.has_typed.load(SeqCst) {
            return None;
        }
        let mut typed = self.typed.lock();
        let byte = typed.pop_front();
        self.has_typed.store(!typed.is_empty(), SeqCst);
        byte
    }
}

impl Output {
    fn put(&mut self, byte: u8) {
        let at = (self.written % KEPT as u64) as usize;
        self.ring[at] = byte;
        self.written += 1;
    }
}

impl virtio::Terminal for Console {
    fn write(&self, bytes: &[u8]) {
        let mut output = self.output.lock();
        bytes.iter().for_each(|byte| output.put(*byte));
    }

    fn read(&self, into: &mut [u8]) -> usize {
        let typed = core::iter::from_fn(|| self.take_typed());
        let taken = into
            .iter_mut()
            .zip(typed)
            .map(|(place, byte)| *place = byte);
        taken.count()
    }

    fn attach(&self, is_attached: bool) {
        self.has_virtio.store(is_attached, SeqCst);
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

    use std::string::String;

    use super::*;

    fn first_life(from: u64, count: usize) -> Excerpt {
        Excerpt {
            began: 0,
            from,
            count,
        }
    }

    /// Returns all output that is kept, and the number of the first byte of the current life.
    fn all(console: &Console) -> (String, u64) {
        let mut bytes = vec![0; KEPT];
        let excerpt = console.read(0, &mut bytes);
        bytes.truncate(excerpt.count);
        (String::from_utf8(bytes).unwrap(), excerpt.began)
    }

    #[test]
    fn the_newest_output_is_kept() {
        let console = Console::new();
        let mut seen = [0; 8];
        assert_eq!(console.read(0, &mut seen), first_life(0, 0));
        for number in 0..KEPT as u32 + 3 {
            console.put(number as u8);
        }
        assert_eq!(console.read(0, &mut seen), first_life(3, 8));
        assert_eq!(seen, [3, 4, 5, 6, 7, 8, 9, 10]);
        let last = console.written() - 2;
        assert_eq!(console.read(last, &mut seen), first_life(last, 2));
        assert_eq!(seen[..2], [1, 2]);
        assert_eq!(console.read(u64::MAX, &mut seen), first_life(last + 2, 0));
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

    #[test]
    fn what_one_life_wrote_outlives_it() {
        let console = Console::new();
        let write = |text: &str| text.bytes().for_each(|byte| console.put(byte));
        console.begin();
        console.note_start();
        write("oops");
        assert_eq!(all(&console), ("oops".into(), 0));
        // A life that never starts to run writes no note.
        console.begin();
        assert_eq!(all(&console), ("oops".into(), 4));
        console.begin();
        console.note_start();
        write("hello");
        assert_eq!(all(&console), ("oops\r\n[started anew]\r\nhello".into(), 4));
        assert_eq!(console.written(), 27);
    }

    #[test]
    fn what_is_typed_is_for_the_life_that_lives() {
        let console = Console::new();
        console.type_byte(b'a');
        console.begin();
        assert_eq!(console.take_typed(), None);
        console.type_byte(b'b');
        console.note_start();
        assert_eq!(console.take_typed(), Some(b'b'));
    }
}
