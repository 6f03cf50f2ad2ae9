//! The machine's memory while the hypervisor runs: frames, the direct map, device windows, stacks.
#![expect(
    unsafe_code,
    reason = "page tables and the frame allocator's bitmaps live in memory that is reached through the direct map"
)]

pub mod files;

mod firmware;

use alloc::{format, string::String, vec::Vec};
use core::{fmt, ptr::NonNull, slice};

use boot::{
    BootInfo, Region, RegionKind,
    layout::{DIRECT_MAP, DIRECT_MAP_SIZE, STACKS, WINDOWS, WINDOWS_END},
    paging::{self, Access, PageTables, Tables},
};
use mm::{
    frames::{self, Counts, Frame, Frames, ORDER_4K},
    private::Ledger,
};
use sync::{IrqLock, Once};

pub use self::firmware::{FirmwareTables, firmware_tables};

use crate::{
    exception, heap,
    msr::{self, Fault},
};

/// Memory below this is never handed out: it belongs to the AP trampoline and the firmware, and no TD may have it.
const LOW: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// Nothing allocates or frees heap memory while it holds this lock, since the heap takes its frames from here.
static MEMORY: IrqLock<Option<Memory>> = IrqLock::new(None);
/// The firmware's memory map.
static REGIONS: Once<Vec<Region>> = Once::new();

struct Memory {
    frames: Frames,
    page_tables: u64,
    gib_pages: bool,
    image: (u64, u64),
    next_window: u64,
    next_stack: u64,
}

/// The reason why memory is not available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The frame allocator refused.
    Frames(frames::FrameError),
    /// The page tables could not be changed.
    Paging(paging::Error),
    /// The range that starts at this physical address is beyond the CPU's addresses, or too large for a window.
    Address(u64),
    /// The range that starts at this physical address is RAM and not a device's.
    Ram(u64),
    /// [`init`] has not run.
    NotReady,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frames(e) => write!(f, "{e}"),
            Self::Paging(e) => write!(f, "page tables: {e:?}"),
            Self::Address(pa) => write!(f, "there is no memory at {pa:#x}"),
            Self::Ram(pa) => write!(f, "there is RAM at {pa:#x}"),
            Self::NotReady => write!(f, "memory is not set up"),
        }
    }
}

impl From<frames::FrameError> for Error {
    fn from(e: frames::FrameError) -> Self {
        Self::Frames(e)
    }
}

impl From<paging::Error> for Error {
    fn from(e: paging::Error) -> Self {
        Self::Paging(e)
    }
}

/// Takes over the memory that the firmware left. Returns a sentence for each part that can't be used.
pub fn init(info: &BootInfo) -> Vec<String> {
    let mut free: Vec<frames::Range> = info
        .memory
        .iter()
        .filter(|r| r.kind.is_free())
        .map(|r| (r.start.max(LOW), r.end.min(DIRECT_MAP_SIZE)))
        .filter(|r| r.0 < r.1)
        .collect();
    let mut problems = Vec::new();
    let mut frames = Frames::new();
    for span in frames::zones_for(&free) {
        let words = frames::words_for(span);
        let bytes = (words as u64 * 8).next_multiple_of(PAGE);
        // The bitmaps are cut from the start of the zone's first range that is large enough.
        let home = free
            .iter_mut()
            .find(|r| span.0 <= r.0 && r.1 <= span.1 && r.1 - r.0 > bytes);
        let Some(home) = home else {
            problems.push(format!(
                "memory from {:#x} to {:#x} is not used: no room for its bookkeeping",
                span.0, span.1
            ));
            continue;
        };
        let at = direct(home.0);
        home.0 += bytes;
        // SAFETY: the range is free memory of at least this size, which is in the direct map, and the cut takes it out
        // of what is handed out.
        let words = unsafe {
            (at as *mut u8).write_bytes(0, words * 8);
            slice::from_raw_parts_mut(at as *mut u64, words)
        };
        if let Err(e) = frames.add_zone(span, words) {
            problems.push(format!("{e}"));
        }
    }
    for range in free {
        if let Err(e) = frames.add(range) {
            problems.push(format!("{e}"));
        }
    }
    REGIONS.call_once(|| info.memory.clone());
    *MEMORY.lock() = Some(Memory {
        frames,
        page_tables: info.page_tables,
        gib_pages: core::arch::x86_64::__cpuid(0x8000_0001).edx & 1 << 26 != 0,
        image: info.image,
        next_window: WINDOWS + PEEK_WINDOW_SIZE,
        next_stack: boot::layout::BOOT_STACK.0 + boot::layout::BOOT_STACK.1,
    });
    problems
}

/// Returns true once [`init`] has run.
#[must_use]
pub fn is_ready() -> bool {
    MEMORY.lock().is_some()
}

/// Returns the address of physical address `pa` in the direct map.
#[must_use]
pub fn direct(pa: u64) -> u64 {
    DIRECT_MAP + pa
}

/// Returns the physical address of the hypervisor's memory at `va`: of the image, the heap or the direct map.
#[must_use]
pub fn physical(va: u64) -> u64 {
    // Below the direct map, the image and the heap's first region are identity-mapped.
    va.checked_sub(DIRECT_MAP).unwrap_or(va)
}

/// Allocates a block of frames. Its content is undefined.
///
/// # Errors
/// [`Error`].
pub fn alloc(order: u32) -> Result<Frame, Error> {
    let mut memory = MEMORY.lock();
    let memory = memory.as_mut().ok_or(Error::NotReady)?;
    Ok(memory.frames.alloc_for_host(order)?)
}

/// Allocates a block of zeroed frames.
#[must_use]
pub fn alloc_zeroed(order: u32) -> Option<Frame> {
    let frame = alloc(order).ok()?;
    // SAFETY: the frames belong to the caller from here on, and are in the direct map.
    unsafe { (direct(frame.pa) as *mut u8).write_bytes(0, frame.bytes() as usize) };
    Some(frame)
}

/// Frees a block.
///
/// # Errors
/// [`Error`] if the block is not one that was handed out; nothing has changed then.
pub fn free(frame: Frame) -> Result<(), Error> {
    let mut memory = MEMORY.lock();
    let memory = memory.as_mut().ok_or(Error::NotReady)?;
    Ok(memory.frames.free(frame)?)
}

/// Takes a block out of use for good.
///
/// # Errors
/// [`Error`] if the block is not one that was handed out; nothing has changed then.
pub fn quarantine(frame: Frame) -> Result<(), Error> {
    let mut memory = MEMORY.lock();
    let memory = memory.as_mut().ok_or(Error::NotReady)?;
    Ok(memory.frames.quarantine(frame)?)
}

/// Notes that a block will be freed in frames of 4 KiB.
///
/// # Errors
/// [`Error`] if the block is not one that was handed out; nothing has changed then.
pub fn split(frame: Frame) -> Result<(), Error> {
    let mut memory = MEMORY.lock();
    let memory = memory.as_mut().ok_or(Error::NotReady)?;
    Ok(memory.frames.split(frame, ORDER_4K)?)
}

/// Returns the frame ledger: the bytes that were added, and the blocks of each order.
#[must_use]
pub fn ledger() -> (u64, [Counts; frames::ORDERS]) {
    HostFrames.with(|frames| (frames.total_bytes(), *frames.counts()))
}

/// The frame allocator as the code that gives frames to the TDX module needs it.
#[derive(Clone, Copy, Debug)]
pub struct HostFrames;

impl Ledger for HostFrames {
    fn with<R>(&self, work: impl FnOnce(&mut Frames) -> R) -> R {
        match &mut *MEMORY.lock() {
            Some(memory) => work(&mut memory.frames),
            // Before `init` there is no memory.
            None => work(&mut Frames::new()),
        }
    }
}

/// The frames that the heap consists of, apart from its first region.
#[derive(Debug)]
pub struct HeapFrames;

// SAFETY: a frame that the allocator hands out is RAM, aligned to its size, that the direct map has and that nothing
// else uses until it is freed.
unsafe impl heap::Blocks for HeapFrames {
    fn take(&self, order: u32) -> Option<NonNull<u8>> {
        NonNull::new(direct(alloc(order).ok()?.pa) as *mut u8)
    }

    unsafe fn give(&self, block: NonNull<u8>, order: u32) {
        let pa = physical(block.addr().get() as u64);
        if let Err(error) = free(Frame { pa, order }) {
            log::error!("a block of the heap: {error}");
        }
    }
}

/// Returns the firmware's memory map.
#[must_use]
pub fn regions() -> &'static [Region] {
    REGIONS.get().map_or(&[], Vec::as_slice)
}

/// Creates a stack of `bytes` with an unmapped page below it. Returns the stack's end.
///
/// # Errors
/// [`Error`].
pub fn stack(bytes: u64) -> Result<u64, Error> {
    let mut memory = MEMORY.lock();
    let memory = memory.as_mut().ok_or(Error::NotReady)?;
    let bottom = memory.next_stack + PAGE;
    debug_assert!(bottom > STACKS);
    for page in 0..bytes / PAGE {
        let frame = memory.frames.alloc_for_host(ORDER_4K)?;
        memory.tables(|t| t.map(bottom + page * PAGE, frame.pa, PAGE, Access::Write))?;
    }
    memory.next_stack = bottom + bytes;
    Ok(bottom + bytes)
}

/// Returns an address where `len` bytes at physical address `pa` can be read and written: in the direct map if they
/// are RAM, otherwise in a new uncached window, which stays.
///
/// # Errors
/// [`Error`].
pub fn window(pa: u64, len: u64) -> Result<u64, Error> {
    // An address that firmware wrote may be anything, and one beyond the CPU's would fault.
    let end = pa.checked_add(len).filter(|end| *end <= end_of_addresses());
    let end = end.ok_or(Error::Address(pa))?;
    let mut memory = MEMORY.lock();
    let memory = memory.as_mut().ok_or(Error::NotReady)?;
    if memory.in_direct_map(pa, end) {
        return Ok(direct(pa));
    }
    let start = pa / PAGE * PAGE;
    let size = end.next_multiple_of(PAGE) - start;
    // The window's offset within 2 MiB equals the physical address's, so that large windows use large pages.
    const ALIGN: u64 = 2 << 20;
    let va = memory.next_window.next_multiple_of(ALIGN) + start % ALIGN;
    if WINDOWS_END.checked_sub(va).is_none_or(|left| left < size) {
        return Err(Error::Address(pa));
    }
    memory.tables(|t| t.map(va, start, size, Access::Device))?;
    memory.next_window = va + size;
    Ok(va + (pa - start))
}

/// Returns an address where the device registers at physical address `pa` can be read and written, uncached. Refuses
/// RAM: firmware that names it as a device's registers is wrong.
///
/// # Errors
/// [`Error`].
pub fn device(pa: u64, len: u64) -> Result<u64, Error> {
    let mut ram = regions().iter().filter(|r| r.kind.is_ram());
    if ram.any(|r| r.start < pa.saturating_add(len) && pa < r.end) {
        return Err(Error::Ram(pa));
    }
    window(pa, len)
}

/// Returns true if the range holds memory that the host uses or may hand out, which firmware must not name as its own.
#[must_use]
pub fn is_hosts(pa: u64, len: u64) -> bool {
    let mut hosts = regions()
        .iter()
        .filter(|r| r.kind.is_free() || r.kind == RegionKind::Loader);
    hosts.any(|r| r.start < pa.saturating_add(len) && pa < r.end)
}

/// Returns the end of the CPU's physical addresses.
pub fn end_of_addresses() -> u64 {
    let bits = core::arch::x86_64::__cpuid(0x8000_0008).eax & 0xFF;
    1 << bits.clamp(36, 52)
}

const PEEK_WINDOW_SIZE: u64 = PAGE;

/// Reads 64 bytes of physical memory, lowest address first. `line` is a multiple of 64.
///
/// RAM is read write-back in loads of 8 bytes, anything else uncached in loads of 4 bytes, which device registers are
/// made for. The page is mapped for these loads only.
///
/// # Errors
/// A sentence: the address is beyond the CPU's, or the fault that the load caused.
pub fn peek(line: u64) -> Result<[u8; 64], String> {
    let end = end_of_addresses();
    if !line.is_multiple_of(64) || line >= end {
        return Err(format!(
            "{line:#x} is not the address of a 64-byte line below 2^{}",
            end.ilog2()
        ));
    }
    let mut guard = MEMORY.lock();
    let Some(memory) = guard.as_mut() else {
        drop(guard);
        return Err(format!("{}", Error::NotReady));
    };
    let page = line / PAGE * PAGE;
    let ram = regions()
        .iter()
        .any(|r| r.kind.is_ram() && (r.start..r.end).contains(&page));
    let access = if ram { Access::Read } else { Access::Device };
    if let Err(e) = memory.tables(|t| t.map(WINDOWS, page, PAGE, access)) {
        drop(guard);
        return Err(format!("{line:#x} can't be mapped: {e:?}"));
    }
    let flush = || x86_64::instructions::tlb::flush(x86_64::VirtAddr::new(WINDOWS));
    flush();
    let mut bytes = [0; 64];
    let loaded = load_line(WINDOWS + line % PAGE, &mut bytes, ram, LOADS);
    let unmapped = memory.tables(|t| t.unmap(WINDOWS, PAGE));
    flush();
    drop(guard);
    unmapped.map_err(|e| format!("the peek window can't be unmapped: {e:?}"))?;
    match loaded {
        Ok(()) => Ok(bytes),
        Err((offset, fault)) => Err(format!(
            "the load from {:#x} faulted: {}",
            line + offset,
            exception::describe(fault)
        )),
    }
}

/// The loads of a line: of 8 bytes and of 4.
#[derive(Clone, Copy)]
struct Loads {
    long: fn(u64) -> Result<u64, Fault>,
    short: fn(u64) -> Result<u32, Fault>,
}

/// Loads that a fault does not end.
const LOADS: Loads = Loads {
    long: msr::load,
    short: msr::load_u32,
};

/// Loads a line from virtual address `at`, in loads of 8 bytes from RAM and of 4 bytes from anything else.
///
/// # Errors
/// The offset of the load that faulted, and its fault.
fn load_line(at: u64, bytes: &mut [u8; 64], ram: bool, loads: Loads) -> Result<(), (u64, Fault)> {
    let width = if ram { 8 } else { 4 };
    for (i, word) in bytes.chunks_exact_mut(width).enumerate() {
        let offset = (i * width) as u64;
        let loaded = if ram {
            (loads.long)(at + offset)
        } else {
            (loads.short)(at + offset).map(u64::from)
        };
        let loaded = loaded.map_err(|fault| (offset, fault))?.to_le_bytes();
        word.copy_from_slice(&loaded[..width]);
    }
    Ok(())
}

/// Returns true if virtual address `va` is mapped. It takes no lock: crash reports call it while no other CPU runs.
#[must_use]
pub fn is_mapped(va: u64) -> bool {
    /// The page tables, read-only.
    struct Reader;
    impl Tables for Reader {
        fn alloc(&mut self) -> Option<u64> {
            None
        }
        fn table(&mut self, pa: u64) -> &mut [u64; 512] {
            // SAFETY: `pa` is a page table of this address space, which the direct map has; the other CPUs are
            // stopped, and nothing is written.
            unsafe { &mut *(direct(pa) as *mut [u64; 512]) }
        }
    }
    use x86_64::registers::control::{Cr3, Cr4, Cr4Flags};
    let cr3 = Cr3::read_raw().0.start_address().as_u64();
    let la57 = Cr4::read().contains(Cr4Flags::L5_PAGING);
    PageTables::of_cpu(Reader, cr3, la57)
        .translate(va)
        .is_some()
}

impl Memory {
    fn in_direct_map(&self, start: u64, end: u64) -> bool {
        let outside_image = end <= self.image.0 || self.image.1 <= start;
        let mut at = start;
        for r in regions().iter().filter(|r| r.kind.is_ram()) {
            if (r.start..r.end).contains(&at) {
                at = r.end;
            }
        }
        outside_image && start >= PAGE && at >= end && end <= DIRECT_MAP_SIZE
    }

    fn tables<R>(&mut self, with: impl FnOnce(&mut PageTables<Direct<'_>>) -> R) -> R {
        let tables = Direct(&mut self.frames);
        with(&mut PageTables::existing(
            tables,
            self.page_tables,
            self.gib_pages,
        ))
    }
}

/// Page tables in frames of the allocator, accessed through the direct map.
struct Direct<'a>(&'a mut Frames);

impl Tables for Direct<'_> {
    fn alloc(&mut self) -> Option<u64> {
        let frame = self.0.alloc_for_host(ORDER_4K).ok()?;
        // SAFETY: the frame was just handed out, and is in the direct map.
        unsafe { (direct(frame.pa) as *mut u8).write_bytes(0, PAGE as usize) };
        Some(frame.pa)
    }

    fn table(&mut self, pa: u64) -> &mut [u64; 512] {
        // SAFETY: `pa` is a page table of this address space, in RAM that the direct map has; the lock around
        // `Memory` keeps others away.
        unsafe { &mut *(direct(pa) as *mut [u64; 512]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loads that give the address, or the size where that can't be.
    const MARKED: Loads = Loads {
        long: Ok,
        short: |at| Ok(at as u32 | 1),
    };

    #[test]
    fn a_line_outside_ram_is_loaded_four_bytes_at_a_time() {
        let words = |ram| {
            let mut bytes = [0; 64];
            assert!(load_line(0x1000, &mut bytes, ram, MARKED).is_ok());
            let words = bytes.chunks_exact(4);
            let words = words.map(|word| u32::from_le_bytes(word.try_into().unwrap()));
            words.collect::<Vec<_>>()
        };
        let device: Vec<u32> = (0..16).map(|word| (0x1000 + 4 * word) | 1).collect();
        assert_eq!(words(false), device);
        let ram: Vec<u32> = (0..8).flat_map(|word| [0x1000 + 8 * word, 0]).collect();
        assert_eq!(words(true), ram);
    }
}
