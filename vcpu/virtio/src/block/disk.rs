//! A disk: an image, which several disks may share, and the blocks that this one has written.
//!
//! The memory of all blocks that can be written is taken when the disk is made, so that a guest that writes takes none.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::fmt;

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Blocks of memory that are taken at once.
const CHUNK: usize = 256;
/// Longest serial number, in bytes.
pub const SERIAL: usize = 20;

/// The content of disks, which does not change.
pub trait Image: fmt::Debug + Send + Sync {
    /// Returns the content.
    fn bytes(&self) -> &[u8];
}

/// A disk.
#[derive(Debug)]
pub struct Disk {
    /// Absent after the TD's end.
    image: Option<Arc<dyn Image>>,
    serial: [u8; SERIAL],
    overlay: Option<Overlay>,
}

/// The place of a block's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Home {
    Image,
    /// It is all zeroes.
    Nowhere,
    /// Number of a block of the overlay.
    Own(u32),
}

/// The blocks that the guest has written.
struct Overlay {
    homes: Box<[Home]>,
    chunks: Vec<Box<[u8]>>,
    free: Vec<u32>,
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlay")
            .field("free", &self.free.len())
            .finish_non_exhaustive()
    }
}

/// The host has not enough memory for the blocks that a disk may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// The number of bytes.
    pub bytes: u64,
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the host has no {} MiB of memory for what the TD writes to a disk; make its overlay smaller, or terminate a TD",
            self.bytes >> 20
        )
    }
}

impl core::error::Error for NoRoom {}

impl Disk {
    /// Creates a disk that can only be read. The serial number is cut after 20 bytes.
    #[must_use]
    pub fn read_only(image: Arc<dyn Image>, serial: &str) -> Self {
        let mut padded = [0; SERIAL];
        for (place, byte) in padded.iter_mut().zip(serial.bytes()) {
            *place = byte;
        }
        Self {
            image: Some(image),
            serial: padded,
            overlay: None,
        }
    }

    /// Lets up to `bytes` bytes of the disk be written, until the TD's end.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn with_overlay(mut self, bytes: u64) -> Result<Self, NoRoom> {
        let all = self.bytes().div_ceil(BLOCK as u64);
        let own = (bytes / BLOCK as u64).min(all) as usize;
        let overlay = Overlay::new(all as usize, own);
        self.overlay = Some(overlay.ok_or(NoRoom { bytes })?);
        Ok(self)
    }

    /// Returns the size in bytes: that of the image, up to a whole block.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.image().len() as u64).next_multiple_of(BLOCK as u64)
    }

    /// Returns the serial number, padded with zeroes.
    #[must_use]
    pub const fn serial(&self) -> &[u8; SERIAL] {
        &self.serial
    }

    /// Returns whether it can be written.
    #[must_use]
    pub const fn is_writable(&self) -> bool {
        self.overlay.is_some()
    }

    /// Returns the number of bytes that are taken for blocks that were written, and the number that can be.
    #[must_use]
    pub fn written(&self) -> (u64, u64) {
        let Some(overlay) = &self.overlay else {
            return (0, 0);
        };
        let all = overlay.chunks.iter().map(|chunk| chunk.len() as u64).sum();
        (all - overlay.free.len() as u64 * BLOCK as u64, all)
    }

    /// Returns the bytes of a block from `at` on, as far as the image has them: the rest reads as zeroes.
    pub fn block(&self, block: usize, at: usize) -> &[u8] {
        let home = self.overlay.as_ref().map(|overlay| overlay.homes[block]);
        match (home, &self.overlay) {
            (Some(Home::Own(own)), Some(overlay)) => &overlay.block(own)[at..],
            (Some(Home::Nowhere), _) => &[],
            _ => {
                let image = self.image();
                let start = (block * BLOCK + at).min(image.len());
                &image[start..(block * BLOCK + BLOCK).min(image.len())]
            }
        }
    }

    /// Returns a block to write to. Returns `None` if the disk is read-only, or its overlay is full. If it is to be written
    /// as a whole, its content is undefined.
    pub fn block_mut(&mut self, block: usize, is_whole: bool) -> Option<&mut [u8]> {
        let overlay = self.overlay.as_mut()?;
        let home = overlay.homes[block];
        if let Home::Own(own) = home {
            return Some(overlay.block_mut(own));
        }
        let own = overlay.free.pop()?;
        overlay.homes[block] = Home::Own(own);
        let content = overlay.block_mut(own);
        if !is_whole {
            let image = self.image.as_ref().map_or(&[][..], |image| image.bytes());
            let start = (block * BLOCK).min(image.len());
            let from = match home {
                Home::Image => &image[start..(start + BLOCK).min(image.len())],
                _ => &[],
            };
            content[..from.len()].copy_from_slice(from);
            content[from.len()..].fill(0);
        }
        Some(content)
    }

    /// Makes a block read as zeroes, and gives its memory back to the overlay.
    pub fn clear(&mut self, block: usize) {
        let Some(overlay) = &mut self.overlay else {
            return;
        };
        let home = core::mem::replace(&mut overlay.homes[block], Home::Nowhere);
        if let Home::Own(own) = home {
            overlay.free.push(own);
        }
    }

    /// Gives the memory of the overlay and the image back. The disk is empty from now on.
    pub fn forget(&mut self) {
        (self.overlay, self.image) = (None, None);
    }

    fn image(&self) -> &[u8] {
        self.image.as_ref().map_or(&[], |image| image.bytes())
    }
}

impl Overlay {
    /// Takes the memory for `own` of `all` blocks.
    fn new(all: usize, own: usize) -> Option<Self> {
        let mut homes = Vec::new();
        homes.try_reserve_exact(all).ok()?;
        homes.resize(all, Home::Image);
        let mut free = Vec::new();
        free.try_reserve_exact(own).ok()?;
        free.extend((0..own as u32).rev());
        let mut chunks = Vec::new();
        chunks.try_reserve_exact(own.div_ceil(CHUNK)).ok()?;
        let mut left = own;
        while left > 0 {
            let blocks = left.min(CHUNK);
            let mut chunk = Vec::new();
            chunk.try_reserve_exact(blocks * BLOCK).ok()?;
            chunk.resize(blocks * BLOCK, 0);
            chunks.push(chunk.into_boxed_slice());
            left -= blocks;
        }
        Some(Self {
            homes: homes.into_boxed_slice(),
            chunks,
            free,
        })
    }

    fn block(&self, own: u32) -> &[u8] {
        let (chunk, at) = place(own);
        &self.chunks[chunk][at..at + BLOCK]
    }

    fn block_mut(&mut self, own: u32) -> &mut [u8] {
        let (chunk, at) = place(own);
        &mut self.chunks[chunk][at..at + BLOCK]
    }
}

const fn place(own: u32) -> (usize, usize) {
    let own = own as usize;
    (own / CHUNK, own % CHUNK * BLOCK)
}
