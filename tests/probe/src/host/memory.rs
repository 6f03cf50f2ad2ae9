//! The TD's memory while it runs: pages that it misses, and pages that are taken away.

use seam::abi::{Gprs, Leaf, PAGE_2M, PAGE_4K, SeptState, Status, level_bytes};
use spin::Mutex;

use super::Host;
use crate::attempt::{movdir64b, read, write};
use crate::cpu::{rdtsc, ticks_of};
use crate::td::{SHARED, clear, page_at};
use crate::tdx::{call, pages};
use crate::{Check, Failure};

/// Memory for the guest: pages of 2 MiB.
const POOL_PAGES: u64 = 160;
/// Those of them that are handed out in pages of 4 KiB.
const SMALL: u64 = 24;
/// The time that a SEAMCALL may be busy, in seconds.
const PATIENCE: u64 = 20;
/// Present, writable, executable; write-back.
const SHARED_LEAF: u64 = 7 | 6 << 3;
const SHARED_TABLE: u64 = 7;

/// The source of the guest's memory. The one who changes the TD's mappings holds it.
pub struct Memory {
    pool: Mutex<Pool>,
}

/// Memory that nobody has had yet.
pub struct Pool {
    next: u64,
    end: u64,
    /// The other half of pages of which the first was needed.
    large_end: u64,
}

impl Memory {
    /// Memory from firmware.
    pub fn new() -> Self {
        let size = (POOL_PAGES + 1) * PAGE_2M;
        let start = pages((size / PAGE_4K) as usize).next_multiple_of(PAGE_2M);
        Self {
            pool: Mutex::new(Pool {
                next: start,
                end: start + PAGE_2M * SMALL,
                large_end: start + POOL_PAGES * PAGE_2M,
            }),
        }
    }
}

impl Pool {
    /// A page of 4 KiB, or of 2 MiB. Zero when there are no more.
    pub fn take(&mut self, level: u64) -> u64 {
        if level > 0 {
            self.large_end -= PAGE_2M;
            return if self.large_end >= self.end {
                self.large_end
            } else {
                0
            };
        }
        let page = self.next;
        if page >= self.end {
            return 0;
        }
        self.next += PAGE_4K;
        page
    }
}

/// A SEAMCALL that is repeated while somebody else has what it needs.
///
/// # Errors
/// Any other status.
pub fn insist(leaf: Leaf, operands: Gprs) -> Result<Gprs, Status> {
    let deadline = rdtsc() + ticks_of(PATIENCE);
    loop {
        let answer = call(leaf, operands);
        let Err(status) = answer.map_err(Status) else {
            return answer.map_err(Status);
        };
        let is_busy = matches!(
            status.code(),
            Status::OPERAND_BUSY
                | Status::PREVIOUS_TLB_EPOCH_BUSY
                | Status::INTERRUPTED_RESTARTABLE
                | Status::INTERRUPTED_RESUMABLE
        );
        if !is_busy || rdtsc() > deadline {
            return Err(status);
        }
        core::hint::spin_loop();
    }
}

fn failure(what: &'static str) -> impl Fn(Status) -> Failure {
    move |status| Failure {
        what,
        found: status.0,
        expected: 0,
    }
}

impl Host {
    /// An EPT violation: the page is added, as the guest has to accept it. False if that can't be.
    pub fn missing(&self, number: usize, registers: &Gprs) -> bool {
        const ACCEPT: u64 = 1;
        let gpa = registers.r8;
        let accepts = registers.rdx & 0xF == ACCEPT;
        let level = if accepts { registers.rdx >> 32 & 7 } else { 0 };
        if gpa & SHARED != 0 || gpa >= self.ram {
            self.fail(format_args!(
                "vCPU {number} uses {gpa:#x}, which is no memory of the TD's"
            ));
            return false;
        }
        if gpa & !(PAGE_4K - 1) == self.target() {
            return self.target_missed(number);
        }
        let added = self.add(gpa, level);
        if let Err(Failure { what, found, .. }) = added {
            self.fail(format_args!("{what} at {gpa:#x}: {found:#x}"));
            return false;
        }
        true
    }

    /// Makes sure that there is a page of `level` at `gpa`, or a larger one in parts of that size.
    pub fn add(&self, gpa: u64, level: u64) -> Check {
        let mut pool = self.memory.pool.lock();
        let base = gpa & !(level_bytes(level as u8) - 1);
        let (state, found) = self.entry(base, level)?;
        if state == SeptState::Pending as u64 && found > level {
            return self.split(&mut pool, base & !(PAGE_2M - 1));
        }
        if state != SeptState::Free as u64 {
            // Another vCPU was faster.
            return Ok(());
        }
        for above in (level + 1..=found).rev() {
            self.add_table_at(&mut pool, base, above)?;
        }
        let page = pool.take(level);
        self.aug(base, level, page)
    }

    /// TDH.MEM.PAGE.AUG.
    pub fn aug(&self, gpa: u64, level: u64, page: u64) -> Check {
        let operands = Gprs {
            r8: page,
            ..page_at(gpa | level, self.td.tdr)
        };
        insist(Leaf::MemPageAug, operands)
            .map(drop)
            .map_err(failure("TDH.MEM.PAGE.AUG"))
    }

    fn add_table_at(&self, pool: &mut Pool, gpa: u64, level: u64) -> Check {
        let operands = Gprs {
            r8: pool.take(0),
            ..page_at(gpa & !(level_bytes(level as u8) - 1) | level, self.td.tdr)
        };
        insist(Leaf::MemSeptAdd, operands)
            .map(drop)
            .map_err(failure("TDH.MEM.SEPT.ADD"))
    }

    /// The state of the S-EPT entry of `level` at `gpa`, and the level at which the walk ended: a free entry above means
    /// that tables are missing down from there.
    fn entry(&self, gpa: u64, level: u64) -> Result<(u64, u64), Failure> {
        let operands = page_at(gpa | level, self.td.tdr);
        let mut registers = Gprs {
            rax: Leaf::MemSeptRd.rax(),
            ..operands
        };
        loop {
            if crate::attempt::seamcall_all(&mut registers).is_err() {
                return Err(failure("TDH.MEM.SEPT.RD")(Status(u64::MAX)));
            }
            let status = Status(registers.rax);
            if status.code() == Status::OPERAND_BUSY {
                registers = Gprs {
                    rax: Leaf::MemSeptRd.rax(),
                    ..operands
                };
                continue;
            }
            if !matches!(status.code(), Status::SUCCESS | Status::EPT_WALK_FAILED) {
                return Err(failure("TDH.MEM.SEPT.RD")(status));
            }
            return Ok((registers.rdx >> 8 & 0xFF, registers.rdx & 7));
        }
    }

    /// Splits a page of 2 MiB.
    fn split(&self, pool: &mut Pool, gpa: u64) -> Check {
        self.block(gpa, 1)?;
        let operands = Gprs {
            r8: pool.take(0),
            ..page_at(gpa | 1, self.td.tdr)
        };
        insist(Leaf::MemPageDemote, operands)
            .map(drop)
            .map_err(failure("TDH.MEM.PAGE.DEMOTE"))
    }

    /// TDH.MEM.RANGE.BLOCK, TDH.MEM.TRACK, and a kick for each vCPU: no TLB holds the page afterwards.
    pub fn block(&self, gpa: u64, level: u64) -> Check {
        insist(Leaf::MemRangeBlock, page_at(gpa | level, self.td.tdr))
            .map_err(failure("TDH.MEM.RANGE.BLOCK"))?;
        self.flush()
    }

    /// TDH.MEM.TRACK, and a kick for each vCPU.
    fn flush(&self) -> Check {
        insist(Leaf::MemTrack, page_at(self.td.tdr, 0)).map_err(failure("TDH.MEM.TRACK"))?;
        self.seats[..self.td.size]
            .iter()
            .for_each(|seat| seat.kick());
        Ok(())
    }

    /// Takes the page of 4 KiB at `gpa` away, which is mapped or waits to be accepted; its address.
    pub fn remove(&self, gpa: u64) -> Result<u64, Failure> {
        self.block(gpa, 0)?;
        let removed = insist(Leaf::MemPageRemove, page_at(gpa, self.td.tdr));
        let page = removed.map_err(failure("TDH.MEM.PAGE.REMOVE"))?.rcx & !(PAGE_4K - 1);
        self.give_back(page)
    }

    /// Makes a page usable for the host that a TD had.
    fn give_back(&self, page: u64) -> Result<u64, Failure> {
        const KEYID_SHIFT: u32 = 48;
        let page = page & ((1 << KEYID_SHIFT) - 1);
        let keyed = page | self.td.hkid << KEYID_SHIFT;
        insist(Leaf::PhymemPageWbinvd, page_at(keyed, 0))
            .map_err(failure("TDH.PHYMEM.PAGE.WBINVD"))?;
        for line in (0..PAGE_4K).step_by(64) {
            let _ = movdir64b(page + line, &ZEROS.0);
        }
        Ok(page)
    }

    /// MapGPA of one page. False if that can't be.
    pub fn convert(&self, gpa: u64, shared: bool) -> bool {
        let done = if shared {
            self.make_shared(gpa)
        } else {
            self.make_private(gpa)
        };
        if let Err(Failure { what, found, .. }) = done {
            self.fail(format_args!("MapGPA of {gpa:#x}: {what}: {found:#x}"));
            return false;
        }
        true
    }

    fn make_shared(&self, gpa: u64) -> Check {
        let mut pool = self.memory.pool.lock();
        let (state, level) = self.entry(gpa, 0)?;
        if state != SeptState::Free as u64 {
            if level > 0 {
                // A larger page that was accepted: nothing here needs that.
                return Err(failure("a page of 2 MiB")(Status(state)));
            }
            self.remove(gpa)?;
        }
        let page = pool.take(0);
        clear(page);
        self.set_shared(&mut pool, gpa, page | SHARED_LEAF);
        Ok(())
    }

    fn make_private(&self, gpa: u64) -> Check {
        let mut pool = self.memory.pool.lock();
        self.set_shared(&mut pool, gpa, 0);
        self.flush()
    }

    /// The entry of the host's own EPT for `gpa`.
    fn set_shared(&self, pool: &mut Pool, gpa: u64, value: u64) {
        let mut table = self.td.shared_eptp;
        for level in (0..4u8).rev() {
            // The SHARED bit is the highest of those that the walk uses.
            let at = table + ((gpa | SHARED) / level_bytes(level) % 512) * 8;
            if level == 0 {
                write(at, value);
                return;
            }
            let entry = read(at);
            table = if entry == 0 {
                let page = pool.take(0);
                clear(page);
                write(at, page | SHARED_TABLE);
                page
            } else {
                entry & !(PAGE_4K - 1)
            };
        }
    }

    /// The host's address of a shared page of the guest's.
    pub fn shared_page(&self, gpa: u64) -> Option<u64> {
        let mut table = self.td.shared_eptp;
        for level in (0..4u8).rev() {
            let entry = read(table + ((gpa | SHARED) / level_bytes(level) % 512) * 8);
            if entry == 0 {
                return None;
            }
            table = entry & !(PAGE_4K - 1);
        }
        Some(table)
    }

    /// A page for the hammer's use.
    pub fn spare_page(&self) -> u64 {
        self.memory.pool.lock().take(0)
    }
}

#[repr(align(64))]
struct Line([u64; 8]);

static ZEROS: Line = Line([0; 8]);
