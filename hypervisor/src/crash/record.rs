//! The record as it lies in memory, and what the crashing CPU fills into it.
#![expect(
    unsafe_code,
    reason = "the stack of the crash is searched, and a register is read"
)]

use core::{
    fmt::{self, Write},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::{
    cpu,
    exception::{self, Cause, Frame},
    memory, msr,
    seamlog::{Entry, REMEMBERED},
    time,
};

/// Maximum number of return addresses in a record.
const BACKTRACE: usize = 16;
/// Words of the stack that are searched for return addresses.
const SCANNED: u64 = 1024;
/// Size in bytes of a panic's message.
const MESSAGE: usize = 256;
/// "SEAMCRSH", in memory order.
pub const MAGIC: u64 = u64::from_le_bytes(*b"SEAMCRSH");

/// The record as it lies in memory. Version 1; all numbers are little-endian.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// "SEAMCRSH" once the record is complete.
    pub magic: u64,
    /// The version of this layout: 1.
    pub version: u32,
    /// The [`Cause`].
    pub cause: u32,
    /// The CPU's number.
    pub cpu: u32,
    /// The CPU's APIC id.
    pub apic_id: u32,
    /// The time-stamp counter.
    pub tsc: u64,
    /// CR2: the address of the last page fault.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// First and last byte plus one of the image. Symbol tables use offsets into it.
    pub image: (u64, u64),
    /// The registers. After a panic, only RIP, RSP and RBP are set, as the panic handler found them.
    pub registers: Frame,
    /// Probable return addresses, nearest first; 0 where there are no more.
    pub backtrace: [u64; BACKTRACE],
    /// The last SEAMCALLs of the CPU, oldest first.
    pub seamcalls: [Entry; REMEMBERED],
    /// A panic's message in UTF-8, zero-filled.
    pub message: [u8; MESSAGE],
}

static IMAGE: (AtomicU64, AtomicU64) = (AtomicU64::new(0), AtomicU64::new(0));
static TEXT: (AtomicU64, AtomicU64) = (AtomicU64::new(0), AtomicU64::new(0));

/// Records the addresses of the image and its code, which tell return addresses from other numbers.
pub fn know_image(image: (u64, u64), text: (u64, u64)) {
    for (to, from) in [(&IMAGE, image), (&TEXT, text)] {
        to.0.store(from.0, Relaxed);
        to.1.store(from.1, Relaxed);
    }
}

impl Record {
    /// A record of nothing.
    pub(super) const EMPTY: Self = Self {
        magic: 0,
        version: 0,
        cause: 0,
        cpu: 0,
        apic_id: 0,
        tsc: 0,
        cr2: 0,
        cr3: 0,
        image: (0, 0),
        registers: Frame {
            r15: 0,
            r14: 0,
            r13: 0,
            r12: 0,
            r11: 0,
            r10: 0,
            r9: 0,
            r8: 0,
            rbp: 0,
            rdi: 0,
            rsi: 0,
            rdx: 0,
            rcx: 0,
            rbx: 0,
            rax: 0,
            vector: 0,
            error: 0,
            rip: 0,
            cs: 0,
            rflags: 0,
            rsp: 0,
            ss: 0,
        },
        backtrace: [0; BACKTRACE],
        seamcalls: [Entry {
            tsc: 0,
            leaf: 0,
            rcx: 0,
            status: 0,
        }; REMEMBERED],
        message: [0; MESSAGE],
    };

    /// Fills in the facts about this CPU.
    pub(super) fn fill(&mut self, cause: Cause, frame: &Frame) {
        let this = cpu::this();
        self.version = 1;
        self.cause = cause as u32;
        self.cpu = this.map_or(0, |c| c.number);
        self.apic_id = this.map_or(0, |c| c.apic_id);
        self.tsc = time::tsc();
        self.cr2 = exception::fault_address();
        self.cr3 = x86_64::registers::control::Cr3::read_raw()
            .0
            .start_address()
            .as_u64();
        self.image = bounds(&IMAGE);
        self.registers = *frame;
        let stack = if frame.is_empty() && cause != Cause::Panic {
            stack_pointer()
        } else {
            frame.rsp
        };
        backtrace(stack, &mut self.backtrace);
        if let Some(this) = this {
            self.seamcalls = this.seam_log.entries();
        }
    }

    /// Sets the message. What does not fit is cut.
    pub(super) fn set_message(&mut self, text: fmt::Arguments<'_>) {
        let mut message = Message {
            bytes: &mut self.message,
            len: 0,
        };
        let _ = message.write_fmt(text);
    }

    /// Returns the message.
    pub(super) fn message(&self) -> &str {
        let end = self.message.iter().position(|&b| b == 0);
        let text = &self.message[..end.unwrap_or(MESSAGE)];
        core::str::from_utf8(text).unwrap_or("the message is not text")
    }
}

fn stack_pointer() -> u64 {
    let rsp: u64;
    // SAFETY: a register is read.
    unsafe { core::arch::asm!("mov {}, rsp", out(reg) rsp, options(nomem, nostack)) };
    rsp
}

fn bounds(range: &(AtomicU64, AtomicU64)) -> (u64, u64) {
    (range.0.load(Relaxed), range.1.load(Relaxed))
}

/// Collects numbers on the stack that are addresses of code, nearest first. Some may be left over from earlier calls.
fn backtrace(rsp: u64, out: &mut [u64; BACKTRACE]) {
    let text = bounds(&TEXT);
    // A fault here would run on the stack of the exception that is being reported, so only mapped memory is read.
    let mut page = (0, false);
    let words = (0..SCANNED).map_while(|i| {
        let at = (rsp & !7).checked_add(i * 8)?;
        if page != (at / 4096, true) {
            page = (at / 4096, memory::is_mapped(at));
        }
        page.1.then(|| msr::load(at).unwrap_or(0))
    });
    let addresses = words.filter(|word| (text.0..text.1).contains(word));
    for (slot, address) in out.iter_mut().zip(addresses) {
        *slot = address;
    }
}

/// A message buffer that cuts text that does not fit.
struct Message<'a> {
    bytes: &'a mut [u8; MESSAGE],
    len: usize,
}

impl Write for Message<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let fits = s.floor_char_boundary(MESSAGE - self.len);
        self.bytes[self.len..self.len + fits].copy_from_slice(&s.as_bytes()[..fits]);
        self.len += fits;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_too_long_is_cut() {
        let mut record = Record::EMPTY;
        record.set_message(format_args!("src/a.rs:7: {:x>1000}", "x"));
        assert!(record.message().starts_with("src/a.rs:7: xxx"));
        assert_eq!(record.message().len(), MESSAGE);
    }

    #[test]
    fn the_layout_is_fixed() {
        assert_eq!(core::mem::offset_of!(Record, cause), 12);
        assert_eq!(core::mem::offset_of!(Record, registers), 64);
        assert_eq!(core::mem::offset_of!(Record, backtrace), 64 + 22 * 8);
        assert_eq!(size_of::<Record>(), 64 + 22 * 8 + 16 * 8 + 8 * 32 + 256);
    }
}
