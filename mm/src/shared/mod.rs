//! A TD's shared memory: the shared EPT, which the host owns, and the frames that it maps.
//!
//! A TD that has devices of the machine has a second view of the same memory, its [`Mirror`]. Memory of the devices
//! ([`DeviceMemory`]) is mapped for the guest alone.
//!
//! The CPU walks it for guest-physical addresses with the SHARED bit, which is part of the address used in the walk. An
//! access to an unmapped address raises #VE in the guest (suppress-#VE is clear) and costs the host nothing; the guest
//! makes a TDVMCALL of it. Only memory that the guest asked to share is mapped. The tables for it stay until the TD's
//! end; the TD's memory size bounds their number.
//!
//! Host and guest share the frames. The host reads and writes them a word at a time with atomic operations, and never
//! assumes that a value read once stays the same.
//!
//! Source: Intel SDM volume 3C, section 29.3 (EPT entries); TDX Module 1.5 Base Architecture, "Shared EPT".

mod end;
mod entry;
mod io;
mod mirror;
mod reader;
#[cfg(test)]
mod tests;
mod unmap;
mod walk;

use alloc::sync::Arc;
use core::fmt;
use core::ops::DerefMut;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use seam::abi::{PAGE_2M, PAGE_4K, PageSize, level_bytes};
use seam::address::{Gpa, Hpa};

use crate::private::{Levels, NoAnswer};
use entry::Entry;
pub use io::{DeviceMemory, MOST_IO_TABLES};
pub use mirror::{Mirror, MirrorError, Page};
use reader::LastBlock;
pub use reader::Reader;

/// Number of entries in a table.
const ENTRIES: usize = 512;

/// The words of a 4 KiB frame.
pub type Words = [AtomicU64; ENTRIES];

/// Allocation of the host's frames for shared memory, and access to them.
pub trait Frames {
    /// Allocates a zeroed frame of 4 KiB or 2 MiB. Returns `None` when there is none.
    fn take(&self, size: PageSize) -> Option<Hpa>;

    /// Frees a frame.
    fn give(&self, hpa: Hpa, size: PageSize);

    /// Takes an allocated frame out of use for good: a device may still reach it.
    fn quarantine(&self, hpa: Hpa, size: PageSize);

    /// Notes that an allocated frame of 2 MiB will be freed in parts of 4 KiB.
    fn split(&self, hpa: Hpa);

    /// Returns the 4 KiB at `hpa`, in an allocated frame.
    fn words(&self, hpa: Hpa) -> &Words;
}

/// Invalidates a TD's shared EPT translations on every CPU. The hypervisor implements it.
pub trait Flush {
    /// Returns once each vCPU that was in the guest has left it at least once, and no CPU uses a translation that was
    /// removed before the call.
    ///
    /// # Errors
    /// [`NoAnswer`] when a CPU did not answer in time.
    fn flush(&self) -> Result<(), NoAnswer>;
}

/// Reason why an operation on shared memory failed. Nothing has changed then, unless the operation says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedError {
    /// The address is not aligned, or is outside the TD's shared half.
    BadRange,
    /// Something is mapped there.
    Occupied,
    /// Nothing is mapped there.
    NotMapped,
    /// The host has no free frame of this size.
    NoFrames(PageSize),
    /// A CPU may still use the memory to be unmapped.
    NoAnswer(NoAnswer),
    /// The devices' view can't follow. After [`MirrorError::NoAnswer`] nothing can be mapped or unmapped any more.
    Mirror(MirrorError),
}

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadRange => f.write_str("the address is not aligned or can't be shared"),
            Self::Occupied => f.write_str("it is shared already"),
            Self::NotMapped => f.write_str("it is not shared"),
            Self::NoFrames(size) => write!(f, "no frame of {} KiB is free", size.bytes() >> 10),
            Self::NoAnswer(error) => error.fmt(f),
            Self::Mirror(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for SharedError {}

impl From<MirrorError> for SharedError {
    fn from(error: MirrorError) -> Self {
        Self::Mirror(error)
    }
}

/// Memory used by a shared map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Frames of 4 KiB and 2 MiB.
    pub pages: [u64; 2],
    /// Pages of the EPT, including the root.
    pub tables: u64,
}

/// The shared memory of one TD.
#[derive(Debug)]
pub struct SharedMap {
    root: Hpa,
    top: u8,
    shared: u64,
    // Held for writing by a CPU that changes an entry, and for reading by each CPU that uses a frame, which therefore cannot
    // be unmapped meanwhile.
    state: sync::RwLock<State>,
    last: LastBlock,
}

/// The state that the lock protects, beside the entries.
#[derive(Debug)]
struct State {
    /// No tables: everything has been freed.
    holding: Holding,
    /// Tables that device memory needed, of those in `holding`.
    io_tables: u64,
    /// The devices' view, if the TD has devices that access its memory.
    mirror: Option<Arc<dyn Mirror>>,
    /// The reason why devices may reach memory that is not shared any more, or not reach what is.
    is_astray: Option<MirrorError>,
}

impl State {
    /// Checks that entries may change.
    fn check(&self) -> Result<(), SharedError> {
        match self.is_astray {
            Some(error) => Err(error.into()),
            None if self.holding.tables == 0 => Err(SharedError::BadRange),
            None => Ok(()),
        }
    }

    /// Lets the devices reach a page.
    fn reflect(&self, gpa: Gpa, page: Page) -> Result<(), MirrorError> {
        match &self.mirror {
            Some(mirror) => mirror.map(gpa, page),
            None => Ok(()),
        }
    }
}

impl SharedMap {
    /// Creates an empty map with `levels` levels for a TD whose addresses have `shared` as SHARED bit.
    ///
    /// # Errors
    /// [`SharedError::NoFrames`]; [`SharedError::BadRange`] when `shared` is not a single bit within the reach of the levels.
    pub fn new(frames: &impl Frames, levels: Levels, shared: u64) -> Result<Self, SharedError> {
        let top = match levels {
            Levels::Four => 3,
            Levels::Five => 4,
        };
        if !shared.is_power_of_two() || shared >= level_bytes(top) * ENTRIES as u64 {
            return Err(SharedError::BadRange);
        }
        let size = PageSize::Size4K;
        let root = frames.take(size).ok_or(SharedError::NoFrames(size))?;
        Ok(Self {
            root,
            top,
            shared,
            state: sync::RwLock::new(State {
                holding: Holding {
                    pages: [0; 2],
                    tables: 1,
                },
                io_tables: 0,
                mirror: None,
                is_astray: None,
            }),
            last: LastBlock::default(),
        })
    }

    /// Has `mirror`, which is empty, map what this map, which is empty too, will map.
    #[must_use]
    pub fn with_mirror(self, mirror: Arc<dyn Mirror>) -> Self {
        self.write().mirror = Some(mirror);
        self
    }

    /// Returns the root page, for the TD VMCS field SHARED_EPTP.
    pub const fn root(&self) -> Hpa {
        self.root
    }

    /// Returns the SHARED bit of the TD's addresses.
    pub const fn shared_bit(&self) -> u64 {
        self.shared
    }

    /// Returns the memory that the map uses.
    pub fn holding(&self) -> Holding {
        self.state.read().holding
    }

    /// Maps a zeroed frame of 4 KiB or 2 MiB at `gpa` (without the SHARED bit).
    ///
    /// # Errors
    /// [`SharedError`]; tables allocated for it stay.
    pub fn map(&self, frames: &impl Frames, gpa: Gpa, size: PageSize) -> Result<(), SharedError> {
        if size > PageSize::Size2M || gpa.0 >= self.shared || !gpa.0.is_multiple_of(size.bytes()) {
            return Err(SharedError::BadRange);
        }
        let mut state = self.write();
        state.check()?;
        let entry = self.link(frames, gpa, size as u8, &mut state.holding)?;
        if Entry::load(entry).is_present() {
            return Err(SharedError::Occupied);
        }
        let frame = frames.take(size).ok_or(SharedError::NoFrames(size))?;
        let page = Page {
            hpa: frame,
            size,
            is_read_only: false,
        };
        if let Err(error) = state.reflect(gpa, page) {
            // No device has reached it.
            frames.give(frame, size);
            return Err(error.into());
        }
        entry.store(Entry::leaf(frame, size).0, SeqCst);
        state.holding.pages[size as usize] += 1;
        Ok(())
    }

    /// Allocates the tables for a page of 4 KiB at `gpa` (without the SHARED bit), and maps nothing.
    ///
    /// # Errors
    /// As [`Self::map`]; [`SharedError::Occupied`] when `gpa` is part of a page of 2 MiB.
    pub fn prepare(&self, frames: &impl Frames, gpa: Gpa) -> Result<(), SharedError> {
        if gpa.0 >= self.shared {
            return Err(SharedError::BadRange);
        }
        let mut state = self.write();
        state.check()?;
        self.link(frames, gpa, 0, &mut state.holding).map(drop)
    }

    /// Maps `bytes` of the host's own memory at `hpa`, read-only, at `gpa` (without the SHARED bit), until the TD's
    /// end. The memory consists of whole pages, and no CPU writes to it meanwhile. The guest can neither change nor
    /// unmap the pages.
    ///
    /// # Errors
    /// [`SharedError`]; pages mapped before the error stay mapped.
    pub fn lend(
        &self,
        frames: &impl Frames,
        gpa: Gpa,
        hpa: Hpa,
        bytes: u64,
    ) -> Result<(), SharedError> {
        let aligned = gpa.0.is_multiple_of(PAGE_4K) && hpa.0.is_multiple_of(PAGE_4K);
        if !aligned || gpa.0.checked_add(bytes).is_none_or(|end| end > self.shared) {
            return Err(SharedError::BadRange);
        }
        let mut state = self.write();
        for offset in (0..bytes).step_by(PAGE_4K as usize) {
            let at = Gpa(gpa.0 + offset);
            let entry = self.link(frames, at, 0, &mut state.holding)?;
            if Entry::load(entry).is_present() {
                return Err(SharedError::Occupied);
            }
            let page = Page {
                hpa: Hpa(hpa.0 + offset),
                size: PageSize::Size4K,
                is_read_only: true,
            };
            state.reflect(at, page)?;
            entry.store(Entry::lent(Hpa(hpa.0 + offset)).0, SeqCst);
        }
        Ok(())
    }

    /// Returns whether memory of the guest is mapped in the aligned 2 MiB around `gpa` (without the SHARED bit).
    pub fn has_block(&self, frames: &impl Frames, gpa: Gpa) -> bool {
        let state = self.state.read();
        if state.holding.tables == 0 {
            return false;
        }
        let block = gpa.0 / PAGE_2M * PAGE_2M;
        let pages = (block..block + PAGE_2M).step_by(PAGE_4K as usize);
        match self.table(frames, Gpa(block), 0) {
            Some(_) => pages
                .into_iter()
                .any(|gpa| self.find(frames, Gpa(gpa)).is_some()),
            None => self.find(frames, Gpa(block)).is_some(),
        }
    }

    /// Returns whether memory of the guest is mapped at `gpa` (without the SHARED bit).
    pub fn has(&self, frames: &impl Frames, gpa: Gpa) -> bool {
        let state = self.state.read();
        state.holding.tables > 0 && self.find(frames, gpa).is_some()
    }

    /// Returns whether anything is mapped at `gpa` (without the SHARED bit): memory of the guest, lent memory, or
    /// device memory.
    pub fn is_mapped(&self, frames: &impl Frames, gpa: Gpa) -> bool {
        let state = self.state.read();
        state.holding.tables > 0 && self.leaf(frames, gpa).is_some()
    }

    /// Calls `work` with the words of the 4 KiB around `gpa` (without the SHARED bit), which stay mapped meanwhile. The
    /// guest may change them at any time.
    ///
    /// # Errors
    /// [`SharedError::NotMapped`].
    pub fn with_page<R>(
        &self,
        frames: &impl Frames,
        gpa: Gpa,
        work: impl FnOnce(&Words) -> R,
    ) -> Result<R, SharedError> {
        let reader = self.reader(frames);
        let page = reader.page(gpa).ok_or(SharedError::NotMapped)?;
        Ok(work(page))
    }

    /// Looks pages up, all of which stay mapped until the reader is dropped. Others who need the map wait for that.
    pub fn reader<'m, F: Frames>(&'m self, frames: &'m F) -> Reader<'m, F> {
        Reader::new(self, self.state.read(), frames)
    }

    /// As [`Self::reader`], for a CPU that can't wait: it has other locks, or works for another TD. Returns `None` while
    /// entries change.
    pub fn try_reader<'m, F: Frames>(&'m self, frames: &'m F) -> Option<Reader<'m, F>> {
        Some(Reader::new(self, self.state.try_read()?, frames))
    }

    /// Takes the lock for writing. No reader comes in from now on, so that other TDs' CPUs, which read for a moment each,
    /// can't keep the writer out.
    fn write(&self) -> impl DerefMut<Target = State> + '_ {
        let state = self.state.upgradeable_read().upgrade();
        self.last.forget();
        state
    }
}
