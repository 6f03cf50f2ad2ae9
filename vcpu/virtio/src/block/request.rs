//! Requests: read, write, flush, discard, write zeroes, and the serial number.

use devices::Memory;
use virtio_spec::blk::{S, T};

use super::disk::{BLOCK, Disk};
use crate::chain::{Chain, Cursor};
use crate::queue::Fault;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// Largest number of bytes that one request discards.
pub const MOST_CLEARED: u64 = 64 << 20;

/// Number of bytes that are copied at a time.
pub const AT_ONCE: u64 = 256 << 10;

/// Bytes of a request's header, and of a segment to discard.
const HEADER: usize = 16;
const SEGMENT: usize = 16;
/// The flag of a segment that lets its blocks be discarded, and not only be zero.
const UNMAP: u32 = 1;
/// The bytes that are written where the image has no more.
const ZEROES: &[u8] = &[0; BLOCK];

/// A request that was carried out.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// Number of bytes written to the guest's memory.
    pub written: u32,
    /// Cost of the request, in bytes that could be copied in that time.
    pub cost: u64,
}

/// The rest of a request after its first look.
#[derive(Clone, Copy, Debug)]
pub enum Begun {
    /// Nothing: it was carried out.
    Done(Done),
    /// Its bytes have to be copied in parts.
    Long(Long),
}

/// A request for more than [`AT_ONCE`] bytes, whose chain the device keeps.
#[derive(Clone, Copy, Debug)]
pub struct Long {
    extent: Extent,
    is_read: bool,
    /// Number of bytes that were copied.
    copied: u64,
}

/// Sectors of a disk, in bytes.
#[derive(Clone, Copy, Debug)]
struct Extent {
    start: u64,
    bytes: u64,
}

impl Extent {
    /// Returns the extent, if the disk has it.
    fn new(disk: &Disk, sector: u64, bytes: u64) -> Option<Self> {
        let start = sector.checked_mul(SECTOR)?;
        let end = start.checked_add(bytes)?;
        let is_there = bytes.is_multiple_of(SECTOR) && end <= disk.bytes();
        is_there.then_some(Self { start, bytes })
    }

    /// Returns the parts in each block: block, offset in it, and number of bytes.
    fn parts(self) -> impl Iterator<Item = (usize, usize, usize)> {
        let end = self.start + self.bytes;
        let mut at = self.start;
        core::iter::from_fn(move || {
            let offset = at as usize % BLOCK;
            let bytes = (end - at).min((BLOCK - offset) as u64) as usize;
            let part = (at as usize / BLOCK, offset, bytes);
            at += bytes as u64;
            (bytes > 0).then_some(part)
        })
    }
}

/// Carries out the request in a chain, unless it is long.
///
/// # Errors
/// [`Fault`]: the chain is no request, or it is not in shared memory.
pub fn serve(disk: &mut Disk, chain: &Chain, memory: &dyn Memory) -> Result<Begun, Fault> {
    let mut input = chain.readable();
    let mut header = [0; HEADER];
    let mut output = chain.writable();
    if input.read(memory, &mut header)? != HEADER || output.left() == 0 {
        return Err(Fault::Request);
    }
    let header = u128::from_le_bytes(header);
    let (kind, sector) = (T::try_from(header as u32), (header >> 64) as u64);
    let room = output.left() - 1;
    let mut rest = output.clone();
    let mut cost = room.max(input.left());
    let (status, written) = match kind {
        Ok(T::In) => match Extent::new(disk, sector, room) {
            Some(extent) if room > AT_ONCE => return Ok(Begun::Long(Long::new(extent, true))),
            Some(extent) => (read(disk, extent, &mut output, memory)?, room),
            None => (S::Ioerr, 0),
        },
        Ok(T::Out) => match Extent::new(disk, sector, input.left()) {
            Some(extent) if extent.bytes > AT_ONCE => {
                return Ok(Begun::Long(Long::new(extent, false)));
            }
            Some(extent) => (write(disk, extent, &mut input, memory)?, 0),
            None => (S::Ioerr, 0),
        },
        Ok(T::Flush) => (S::Ok, 0),
        Ok(T::GetId) => {
            let bytes = room.min(disk.serial().len() as u64);
            output.write(memory, &disk.serial()[..bytes as usize])?;
            (S::Ok, bytes)
        }
        Ok(T::Discard | T::WriteZeroes) if disk.is_writable() => {
            // Clearing a block costs a few instructions.
            cost = MOST_CLEARED;
            (
                clear(disk, kind == Ok(T::WriteZeroes), &mut input, memory)?,
                0,
            )
        }
        _ => (S::Unsupp, 0),
    };
    rest.skip(room);
    rest.write(memory, &[status.into()])?;
    Ok(Begun::Done(Done {
        written: written as u32 + 1,
        cost,
    }))
}

impl Long {
    const fn new(extent: Extent, is_read: bool) -> Self {
        Self {
            extent,
            is_read,
            copied: 0,
        }
    }

    /// Copies the next part. At the end, returns the number of bytes that were written to the guest's memory.
    ///
    /// # Errors
    /// [`Fault`]: the memory is not shared any more.
    #[cold]
    pub fn go_on(
        &mut self,
        disk: &mut Disk,
        chain: &Chain,
        memory: &dyn Memory,
    ) -> Result<Option<u32>, Fault> {
        let bytes = (self.extent.bytes - self.copied).min(AT_ONCE);
        let part = Extent {
            start: self.extent.start + self.copied,
            bytes,
        };
        let mut output = chain.writable();
        let status = if self.is_read {
            output.skip(self.copied);
            read(disk, part, &mut output, memory)?
        } else {
            let mut input = chain.readable();
            input.skip(HEADER as u64 + self.copied);
            write(disk, part, &mut input, memory)?
        };
        self.copied += bytes;
        if status == S::Ok && self.copied < self.extent.bytes {
            return Ok(None);
        }
        output.skip(output.left() - 1);
        output.write(memory, &[status.into()])?;
        let written = if self.is_read { self.extent.bytes } else { 0 };
        Ok(Some(written as u32 + 1))
    }
}

fn read(
    disk: &Disk,
    extent: Extent,
    output: &mut Cursor<'_>,
    memory: &dyn Memory,
) -> Result<S, Fault> {
    for (block, at, bytes) in extent.parts() {
        let content = disk.block(block, at);
        let content = &content[..bytes.min(content.len())];
        output.write(memory, content)?;
        if content.len() < bytes {
            output.write(memory, &ZEROES[..bytes - content.len()])?;
        }
    }
    Ok(S::Ok)
}

fn write(
    disk: &mut Disk,
    extent: Extent,
    input: &mut Cursor<'_>,
    memory: &dyn Memory,
) -> Result<S, Fault> {
    for (block, at, bytes) in extent.parts() {
        let Some(content) = disk.block_mut(block, bytes == BLOCK) else {
            return Ok(S::Ioerr);
        };
        if let Err(fault) = input.read(memory, &mut content[at..at + bytes]) {
            // A block that should have been written as a whole may have the content of one that was discarded.
            content[at..at + bytes].fill(0);
            return Err(fault.into());
        }
    }
    Ok(S::Ok)
}

/// Discards the extents in a request, or writes zeroes to them. Blocks that are only partly named are not discarded.
fn clear(
    disk: &mut Disk,
    is_zeroing: bool,
    input: &mut Cursor<'_>,
    memory: &dyn Memory,
) -> Result<S, Fault> {
    let mut segment = [0; SEGMENT];
    if input.left() != SEGMENT as u64 || input.read(memory, &mut segment)? != SEGMENT {
        return Ok(S::Ioerr);
    }
    let segment = u128::from_le_bytes(segment);
    let (sector, sectors) = (segment as u64, (segment >> 64) as u32);
    let flags = (segment >> 96) as u32;
    let known = if is_zeroing { UNMAP } else { 0 };
    if flags & !known != 0 {
        return Ok(S::Unsupp);
    }
    let bytes = u64::from(sectors) * SECTOR;
    let extent = Extent::new(disk, sector, bytes).filter(|_| bytes <= MOST_CLEARED);
    let Some(extent) = extent else {
        return Ok(S::Ioerr);
    };
    for (block, at, bytes) in extent.parts() {
        if bytes == BLOCK {
            disk.clear(block);
        } else if is_zeroing {
            let Some(content) = disk.block_mut(block, false) else {
                return Ok(S::Ioerr);
            };
            content[at..at + bytes].fill(0);
        }
    }
    Ok(S::Ok)
}
