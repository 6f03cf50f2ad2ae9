//! An NVMe drive on the TD's PCI bus, driven by hand: its configuration space through ports, its registers through the
//! host, its queues in shared memory.
//!
//! Source: PCI Local Bus 3.0, chapter 6; NVM Express Base 1.4, sections 3.1 (registers), 4 (queues), 5.15 (Identify).

use guest_kit::check::{Check, Failure};
use guest_kit::{ensure, memory, vmcall};
use seam::abi::{PAGE_2M, PAGE_4K};

use crate::pci::{self, COMMAND, ON};

/// Vendor and device of QEMU's drive.
const DRIVE: u32 = 0x0010_1B36;

/// The base address register of the drive's memory, in eight bytes.
pub const BAR: u8 = 0x10;
const CAPABILITIES: u8 = 0x34;
/// The capability of PCI Express.
pub const EXPRESS: u8 = 0x10;
/// The capability of MSI-X.
pub const MSIX: u8 = 0x11;

/// The guest-physical address that the drive's memory gets.
pub const PLACE: u64 = 0xC000_0000;
/// Its size in bytes.
pub const BYTES: u64 = 0x4000;
/// Offset of the MSI-X table in it.
pub const TABLE: u64 = 0x2000;

/// Registers of the controller.
const CONFIGURATION: u64 = 0x14;
const STATUS: u64 = 0x1C;
const QUEUE_SIZES: u64 = 0x24;
const SUBMISSIONS: u64 = 0x28;
const COMPLETIONS: u64 = 0x30;
const TAIL: u64 = 0x1000;
const HEAD: u64 = 0x1004;
/// CC: entries of 64 and 16 bytes, enabled.
const ENABLE: u64 = 4 << 20 | 6 << 16 | 1;
const READY: u64 = 1;
/// Number of entries of each queue.
const LENGTH: u64 = 32;
const SUBMISSION: u64 = 64;
const COMPLETION: u64 = 16;
const IDENTIFY: u64 = 6;
const CONTROLLER: u64 = 1;
/// Number of looks at an entry before the drive counts as silent.
const PATIENCE: u32 = 10_000_000;
/// Number of looks at a register.
const REQUESTS: u32 = 5000;

/// The drive, with an administration queue.
#[derive(Debug)]
pub struct Nvme {
    device: u32,
    /// Shared memory: submissions, completions, data.
    pages: u64,
    tail: u64,
    head: u64,
    phase: u64,
}

impl Nvme {
    /// Finds the drive.
    ///
    /// # Errors
    /// There is none, or no memory.
    pub fn find() -> Result<Self, Failure> {
        let is_drive = |device: &u32| pci::config(*device, 0) == DRIVE;
        let Some(device) = (1..31).find(is_drive) else {
            return Err(Failure::new(format_args!("no drive")));
        };
        let Some(pages) = memory::take_unaccepted(PAGE_2M) else {
            return Err(Failure::new(format_args!("no memory")));
        };
        let drive = Self {
            device,
            pages,
            tail: 0,
            head: 0,
            phase: 1,
        };
        drive.share(0..3)?;
        Ok(drive)
    }

    /// Shares pages of the drive's memory.
    ///
    /// # Errors
    /// The host refuses.
    pub fn share(&self, pages: core::ops::Range<u64>) -> Check {
        let start = self.page(pages.start) | memory::shared_bit();
        let bytes = (pages.end - pages.start) * PAGE_4K;
        let shared = vmcall::map_gpa(start, bytes);
        ensure!(shared.is_ok(), "MapGPA: {shared:x?}");
        Ok(())
    }

    /// Makes pages of the drive's memory private.
    ///
    /// # Errors
    /// The host refuses.
    pub fn unshare(&self, pages: core::ops::Range<u64>) -> Check {
        let range = self.page(pages.start)..self.page(pages.end);
        let private = vmcall::map_gpa(range.start, range.end - range.start);
        ensure!(private.is_ok(), "MapGPA: {private:x?}");
        let accepted = memory::accept(range);
        ensure!(accepted.is_ok(), "acceptance: {accepted:x?}");
        Ok(())
    }

    /// Returns the guest-physical address of a page: 0 has submissions, 1 completions, 2 data.
    pub fn page(&self, number: u64) -> u64 {
        self.pages + number * PAGE_4K
    }

    /// Reads a word of the data.
    pub fn data(&self, word: u64) -> u64 {
        memory::word(memory::shared_alias(self.page(2)) + word * 8)
    }

    /// Clears the data's first words.
    pub fn clear_data(&self) {
        for word in 0..8 {
            memory::set_word(memory::shared_alias(self.page(2)) + word * 8, 0);
        }
    }

    /// Reads four bytes of the configuration space.
    pub fn config(&self, offset: u8) -> u32 {
        pci::config(self.device, offset)
    }

    /// Writes four bytes of the configuration space.
    pub fn set_config(&self, offset: u8, value: u32) {
        pci::set_config(self.device, offset, value);
    }

    /// Returns the offset of a capability.
    pub fn capability(&self, id: u8) -> Option<u8> {
        let mut at = self.config(CAPABILITIES) as u8;
        for _ in 0..16 {
            if at < 0x40 {
                return None;
            }
            let register = self.config(at & 0xFC);
            if register as u8 == id {
                return Some(at);
            }
            at = (register >> 8) as u8;
        }
        None
    }

    /// Starts the controller at [`PLACE`], whatever its state.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn start(&mut self) -> Check {
        // It may be in a reset, during which it does not answer.
        let is_back = (0..REQUESTS * 40).any(|_| self.config(0) == DRIVE);
        ensure!(is_back, "its id is {:#x}", self.config(0));
        self.set_config(COMMAND, 0);
        self.set_config(BAR, PLACE as u32);
        self.set_config(BAR + 4, 0);
        self.set_config(COMMAND, ON);
        self.set_register(CONFIGURATION, 0);
        self.wait_ready(false)?;
        for page in 0..2 {
            for word in 0..PAGE_4K / 8 {
                memory::set_word(memory::shared_alias(self.page(page)) + word * 8, 0);
            }
        }
        (self.tail, self.head, self.phase) = (0, 0, 1);
        self.set_register(QUEUE_SIZES, (LENGTH - 1) << 16 | (LENGTH - 1));
        self.set_wide(SUBMISSIONS, self.page(0));
        self.set_wide(COMPLETIONS, self.page(1));
        self.set_register(CONFIGURATION, ENABLE);
        self.wait_ready(true)
    }

    /// Asks the drive to describe itself at `target`. Returns the completion's status, or `None` if there is no
    /// completion.
    pub fn identify(&mut self, target: u64) -> Option<u64> {
        self.submit(target);
        let found = self.complete(PATIENCE);
        if found.is_some() {
            self.set_register(HEAD, self.head);
        }
        found
    }

    /// Submits a command that describes the drive at `target`.
    pub fn submit(&mut self, target: u64) {
        let at = memory::shared_alias(self.page(0)) + self.tail * SUBMISSION;
        memory::set_word(at, IDENTIFY | self.tail << 16);
        memory::set_word(at + 24, target);
        memory::set_word(at + 32, 0);
        memory::set_word(at + 40, CONTROLLER);
        self.tail = (self.tail + 1) % LENGTH;
        self.ring();
    }

    /// Tells the drive of the submissions.
    pub fn ring(&self) {
        self.set_register(TAIL, self.tail);
    }

    /// Takes the next completion. Returns its status.
    pub fn complete(&mut self, looks: u32) -> Option<u64> {
        let at = memory::shared_alias(self.page(1)) + self.head * COMPLETION;
        for _ in 0..looks {
            let word = memory::word(at + 8);
            if word >> 48 & 1 == self.phase {
                self.head = (self.head + 1) % LENGTH;
                self.phase ^= u64::from(self.head == 0);
                return Some(word >> 49);
            }
            core::hint::spin_loop();
        }
        None
    }

    /// Reads a register of four bytes at [`PLACE`].
    pub fn register(&self, offset: u64) -> u64 {
        vmcall::mmio_load(at(offset), 4).unwrap_or(u64::MAX)
    }

    /// Writes a register of four bytes at [`PLACE`].
    pub fn set_register(&self, offset: u64, value: u64) {
        // Where the drive does not answer, a write is lost.
        let _ = vmcall::mmio_store(at(offset), 4, value & 0xFFFF_FFFF);
    }

    fn set_wide(&self, offset: u64, value: u64) {
        self.set_register(offset, value);
        self.set_register(offset + 4, value >> 32);
    }

    fn wait_ready(&self, is_ready: bool) -> Check {
        for _ in 0..REQUESTS {
            let status = self.register(STATUS);
            if status != 0xFFFF_FFFF && (status & READY != 0) == is_ready {
                return Ok(());
            }
        }
        guest_kit::fail!("CSTS is {:#x}", self.register(STATUS))
    }
}

/// Returns the address of a register, as requests to the host have it.
fn at(offset: u64) -> u64 {
    (PLACE + offset) | memory::shared_bit()
}
