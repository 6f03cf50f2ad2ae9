//! KOT and WBT: the owner of each HKID, and the packages whose caches may still hold lines with it.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use seam::abi::{MAX_HKIDS, MAX_PACKAGES, Operand, Status};

use crate::Platform;
use crate::lock::{Guard, Lock, Mode};

/// The state of an HKID.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HkidState {
    /// Not in use.
    Free = 0,
    /// Assigned to a TD.
    Assigned = 1,
    /// No longer assigned, but caches may still hold lines with it.
    Flushed = 2,
    /// Used by the module itself.
    Reserved = 3,
}

#[derive(Debug)]
struct Hkid {
    state: AtomicU8,
    /// Packages that have yet to write back their caches, one bit each.
    write_back: AtomicU32,
}

/// Progress of a package's cache write-back.
#[derive(Debug, Default)]
pub struct WriteBack {
    taken: AtomicBool,
    /// The sub-block at which an interrupted round resumes; 0 if there is none.
    resume_at: AtomicU32,
    /// The HKIDs that were FLUSHED when the round started, one bit each.
    covered: [AtomicU64; MAX_HKIDS / 64],
}

fn copy8(to: &AtomicU8, from: &AtomicU8) {
    to.store(from.load(Ordering::Acquire), Ordering::Release);
}

fn copy32(to: &AtomicU32, from: &AtomicU32) {
    to.store(from.load(Ordering::Acquire), Ordering::Release);
}

/// The key ownership table, with the write-back state of each package.
#[derive(Debug)]
pub struct Keys {
    lock: AtomicU64,
    first: u32,
    hkids: Box<[Hkid]>,
    packages: Box<[WriteBack]>,
}

impl Keys {
    /// Creates a table in which all private HKIDs of the platform are free.
    pub fn new(platform: &Platform<'_>) -> Self {
        Self {
            lock: AtomicU64::new(0),
            first: platform.first_private_hkid(),
            hkids: (0..platform.num_tdx_keyids)
                .map(|_| Hkid {
                    state: AtomicU8::new(HkidState::Free as u8),
                    write_back: AtomicU32::new(0),
                })
                .collect(),
            packages: (0..MAX_PACKAGES).map(|_| WriteBack::default()).collect(),
        }
    }

    /// Takes over the states in a predecessor's table, of the same platform.
    pub fn take_over(&self, other: &Self) {
        for (own, other) in self.hkids.iter().zip(&other.hkids) {
            copy8(&own.state, &other.state);
            copy32(&own.write_back, &other.write_back);
        }
        for (own, other) in self.packages.iter().zip(&other.packages) {
            copy32(&own.resume_at, &other.resume_at);
            for (own, other) in own.covered.iter().zip(&other.covered) {
                own.store(other.load(Ordering::Acquire), Ordering::Release);
            }
        }
    }

    /// Takes the table's lock.
    ///
    /// # Errors
    /// OPERAND_BUSY with KOT.
    pub fn lock(&self, mode: Mode) -> Result<Guard<'_>, Status> {
        Lock::new(&self.lock, 0)
            .acquire(mode)
            .map_err(|_| Status::OPERAND_BUSY.with(Operand::KOT))
    }

    /// Returns the state of `hkid`, a private HKID.
    pub fn state(&self, hkid: u32) -> HkidState {
        match self.hkid(hkid).state.load(Ordering::Acquire) {
            0 => HkidState::Free,
            1 => HkidState::Assigned,
            2 => HkidState::Flushed,
            _ => HkidState::Reserved,
        }
    }

    /// Sets the state of `hkid`. The caller holds the table's lock exclusively.
    pub fn set_state(&self, hkid: u32, state: HkidState) {
        self.hkid(hkid).state.store(state as u8, Ordering::Release);
    }

    /// Marks `hkid` as not yet written back by every package in `packages`.
    pub fn set_flushed(&self, hkid: u32, packages: u32) {
        self.hkid(hkid)
            .write_back
            .store(packages, Ordering::Release);
        self.set_state(hkid, HkidState::Flushed);
    }

    /// Returns whether every package has written back `hkid`.
    pub fn is_written_back(&self, hkid: u32) -> bool {
        self.hkid(hkid).write_back.load(Ordering::Acquire) == 0
    }

    fn hkid(&self, hkid: u32) -> &Hkid {
        &self.hkids[(hkid - self.first) as usize]
    }

    /// Acquires the write-back state of a package.
    ///
    /// # Errors
    /// OPERAND_BUSY with WBCACHE.
    pub fn write_back(&self, package: u32) -> Result<WriteBackRound<'_>, Status> {
        let state = &self.packages[package as usize];
        if state.taken.swap(true, Ordering::Acquire) {
            return Err(Status::OPERAND_BUSY.with(Operand::WBCACHE));
        }
        Ok(WriteBackRound {
            keys: self,
            package,
            state,
        })
    }
}

impl Clone for Keys {
    fn clone(&self) -> Self {
        let hkid = || Hkid {
            state: AtomicU8::new(HkidState::Free as u8),
            write_back: AtomicU32::new(0),
        };
        let copy = Self {
            lock: AtomicU64::new(0),
            first: self.first,
            hkids: self.hkids.iter().map(|_| hkid()).collect(),
            packages: (0..MAX_PACKAGES).map(|_| WriteBack::default()).collect(),
        };
        copy.take_over(self);
        copy
    }
}

/// A package's write-back state, held until this is dropped. The caller holds the key table's lock.
#[derive(Debug)]
pub struct WriteBackRound<'a> {
    keys: &'a Keys,
    package: u32,
    state: &'a WriteBack,
}

impl WriteBackRound<'_> {
    /// Starts a round that covers every HKID that is FLUSHED now. Returns false if there is none.
    pub fn begin(&self) -> bool {
        self.set_resume_at(0);
        let mut any = false;
        for (i, word) in self.state.covered.iter().enumerate() {
            let mut covered = 0;
            for (bit, hkid) in self.keys.hkids.iter().skip(64 * i).take(64).enumerate() {
                if hkid.state.load(Ordering::Acquire) == HkidState::Flushed as u8 {
                    covered |= 1 << bit;
                }
            }
            word.store(covered, Ordering::Relaxed);
            any |= covered != 0;
        }
        any
    }

    /// Returns the sub-block at which an interrupted round resumes; `None` if there is none.
    pub fn resume_at(&self) -> Option<u32> {
        let sub_block = self.state.resume_at.load(Ordering::Relaxed);
        (sub_block != 0).then_some(sub_block)
    }

    /// Saves the sub-block at which to resume; 0 means none.
    pub fn set_resume_at(&self, sub_block: u32) {
        self.state.resume_at.store(sub_block, Ordering::Relaxed);
    }

    /// Ends a round: the package's caches no longer hold lines with the HKIDs that it covered.
    pub fn finish(&self) {
        self.set_resume_at(0);
        for (i, hkid) in self.keys.hkids.iter().enumerate() {
            let covered = self.state.covered[i / 64].load(Ordering::Relaxed) >> (i % 64) & 1 != 0;
            if covered {
                hkid.write_back
                    .fetch_and(!(1 << self.package), Ordering::AcqRel);
            }
        }
    }
}

impl Drop for WriteBackRound<'_> {
    fn drop(&mut self) {
        self.state.taken.store(false, Ordering::Release);
    }
}
