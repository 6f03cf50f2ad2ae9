//! A frame on its way from a sender to receivers.

use core::cell::{Cell, OnceCell};

use devices::Memory;

use super::header::{ADDRESSES, Start};
use super::large::Large;
use crate::chain::Cursor;

/// A frame on its way.
#[derive(Clone)]
pub struct Frame<'f> {
    /// The sender's memory.
    pub memory: &'f dyn Memory,
    /// Its start, which was read and checked.
    pub start: Start,
    /// Headers behind the start, which were read and checked: those of a frame that others cut.
    pub headers: &'f [u8],
    /// The rest, in the sender's memory.
    pub payload: Cursor<'f>,
    /// Length of the frame in bytes.
    pub bytes: usize,
    /// The frame is to be cut.
    pub large: Option<&'f Large>,
    /// Number of the receivers' descriptors that were read for it.
    pub read: &'f Cell<usize>,
    /// Its flow, once someone wants to know it.
    pub flow: &'f OnceCell<u8>,
}

impl Frame<'_> {
    /// Returns the number of bytes in the sender's memory.
    pub const fn rest(&self) -> usize {
        self.bytes - ADDRESSES - self.headers.len()
    }
}
