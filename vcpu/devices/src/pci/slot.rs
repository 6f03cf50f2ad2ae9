//! A function's place on the bus.

use alloc::sync::Arc;
use sync::atomic::{AtomicBool, AtomicU64};

use sync::Mutex;

use super::{BARS, Doorbells, Function};

/// A function and its place.
#[derive(Debug)]
pub(super) struct Slot {
    /// Device and function number in one byte.
    pub at: u8,
    pub function: Arc<Mutex<dyn Function>>,
    /// The function's memory, by base address register.
    pub bars: [Region; BARS],
    /// The registers that are written without the function's lock.
    pub doorbells: Option<Doorbells>,
    /// True while the function may have interrupts to send.
    pub is_signalled: AtomicBool,
    /// True while the function may have work.
    pub has_work: AtomicBool,
    /// True while there may be news ([`super::Bus::tell`]).
    pub has_news: AtomicBool,
    /// True if there is memory that the guest may access without the host.
    pub is_direct: bool,
}

/// The memory of a base address register.
#[derive(Debug, Default)]
pub(super) struct Region {
    /// Zero while the function does not answer.
    pub start: AtomicU64,
    /// Zero if there is no such register.
    pub bytes: u64,
}

impl Slot {
    pub fn new(at: u8, function: Arc<Mutex<dyn Function>>) -> Self {
        let bytes = function.lock().config().bar_bytes();
        let is_direct = !function.lock().direct().is_empty();
        let doorbells = function.lock().doorbells();
        Self {
            at,
            is_direct,
            doorbells,
            function,
            bars: bytes.map(|bytes| Region {
                start: AtomicU64::new(0),
                bytes,
            }),
            is_signalled: AtomicBool::new(false),
            has_work: AtomicBool::new(false),
            has_news: AtomicBool::new(false),
        }
    }
}
