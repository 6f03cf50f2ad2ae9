//! The crash record, which people and tools find when a CPU can't go on.
//!
//! The first CPU that crashes stops the others, fills the record and prints it on the serial port: one line `crash:
//! key=value ...` for each fact, between `crash: begin` and `crash: end`. The record itself ([`Record`]) has a fixed
//! layout and a magic number, so that a debugger can find it, or a search of a memory dump.
#![expect(
    unsafe_code,
    reason = "the record is written once, by the CPU that won the right to"
)]

use core::{
    cell::UnsafeCell,
    fmt::{self, Write},
    panic::PanicInfo,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use mca::{scan::Scan, verdict::Occasion};
use spin::Once;

use crate::{
    cpu::{self, check, nmi},
    exception::{self, Cause, Frame},
    memory, msr,
    seamlog::{Entry, FAULTED, PENDING, REMEMBERED},
    serial, time,
};

/// Maximum number of return addresses in a record.
const BACKTRACE: usize = 16;
/// Words of the stack that are searched for return addresses.
const SCANNED: u64 = 1024;
/// Size in bytes of a panic's message.
const MESSAGE: usize = 256;
/// Maximum time in microseconds that the report waits for the banks of other CPUs.
const BANKS_US: u64 = 500_000;
/// "SEAMCRSH", in memory order.
const MAGIC: u64 = u64::from_le_bytes(*b"SEAMCRSH");

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

struct Place(UnsafeCell<Record>);

// SAFETY: written only by the one CPU that set `IN_PROGRESS`.
unsafe impl Sync for Place {}

static RECORD: Place = Place(UnsafeCell::new(Record {
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
}));
static IN_PROGRESS: AtomicBool = AtomicBool::new(false);
static THEN: Once<fn() -> !> = Once::new();
static IMAGE: (AtomicU64, AtomicU64) = (AtomicU64::new(0), AtomicU64::new(0));
static TEXT: (AtomicU64, AtomicU64) = (AtomicU64::new(0), AtomicU64::new(0));

/// Records the addresses of the image and its code, which tell return addresses from other numbers.
pub fn know_image(image: (u64, u64), text: (u64, u64)) {
    for (to, from) in [(&IMAGE, image), (&TEXT, text)] {
        to.0.store(from.0, Ordering::Relaxed);
        to.1.store(from.1, Ordering::Relaxed);
    }
}

/// Sets the action after a report. Without it the machine stops.
pub fn then(what: fn() -> !) {
    THEN.call_once(|| what);
}

/// Reports that the running CPU can't go on, and stops the machine.
pub fn crash(cause: Cause, frame: &Frame) -> ! {
    report(cause, frame, |_| {})
}

/// Reports a broken invariant, and stops the machine.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    let (rsp, rbp): (u64, u64);
    // SAFETY: two registers are read.
    unsafe {
        core::arch::asm!("mov {}, rsp", "mov {}, rbp", out(reg) rsp, out(reg) rbp, options(nomem, nostack));
    }
    let frame = Frame {
        rsp,
        rbp,
        ..Frame::default()
    };
    report(Cause::Panic, &frame, |record| {
        let mut message = Message {
            bytes: &mut record.message,
            len: 0,
        };
        if let Some(place) = info.location() {
            let _ = write!(message, "{}:{}: ", place.file(), place.line());
        }
        let _ = write!(message, "{}", info.message());
    })
}

fn report(cause: Cause, frame: &Frame, complete: impl FnOnce(&mut Record)) -> ! {
    x86_64::instructions::interrupts::disable();
    if IN_PROGRESS.swap(true, Ordering::AcqRel) {
        // Another CPU already reports, or this one failed while reporting: its lines are on the way or lost.
        cpu::stop_here();
    }
    cpu::stop_others();
    // SAFETY: this CPU alone passed the swap above.
    let record = unsafe { &mut *RECORD.0.get() };
    let this = cpu::this();
    record.version = 1;
    record.cause = cause as u32;
    record.cpu = this.map_or(0, |c| c.number);
    record.apic_id = this.map_or(0, |c| c.apic_id);
    record.tsc = time::tsc();
    record.cr2 = exception::fault_address();
    record.cr3 = x86_64::registers::control::Cr3::read_raw()
        .0
        .start_address()
        .as_u64();
    record.image = bounds(&IMAGE);
    record.registers = *frame;
    let stack = if frame.is_empty() && cause != Cause::Panic {
        stack_pointer()
    } else {
        frame.rsp
    };
    backtrace(stack, &mut record.backtrace);
    if let Some(this) = this {
        record.seamcalls = this.seam_log.entries();
    }
    complete(record);
    if is_hardware(cause) {
        // Each CPU that was stopped leaves its banks. One that does not is named in the report.
        check::deposit_here();
        time::wait_us(BANKS_US, || {
            cpu::all()
                .iter()
                .all(|cpu| !has_run(cpu) || check::banks(cpu).is_some())
        });
    }
    record.magic = MAGIC;
    serial::last_words(|out| print(record, cause, out));
    match THEN.get() {
        Some(then) => then(),
        None => cpu::stop_here(),
    }
}

fn stack_pointer() -> u64 {
    let rsp: u64;
    // SAFETY: a register is read.
    unsafe { core::arch::asm!("mov {}, rsp", out(reg) rsp, options(nomem, nostack)) };
    rsp
}

fn bounds(range: &(AtomicU64, AtomicU64)) -> (u64, u64) {
    (
        range.0.load(Ordering::Relaxed),
        range.1.load(Ordering::Relaxed),
    )
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

fn print(record: &Record, cause: Cause, out: &mut dyn Write) {
    let base = record.image.0;
    let r = &record.registers;
    let place = |address: u64| {
        let inside = (record.image.0..record.image.1).contains(&address);
        if inside {
            ("image+", address - base)
        } else {
            ("", address)
        }
    };
    let _ = writeln!(out, "\ncrash: begin version={}", record.version);
    let _ = writeln!(
        out,
        "crash: cpu={} apic_id={:#x} cause={} tsc={} us={}",
        record.cpu,
        record.apic_id,
        cause.name(),
        record.tsc,
        time::us()
    );
    if cause == Cause::Panic {
        let end = record.message.iter().position(|&b| b == 0);
        let text = &record.message[..end.unwrap_or(MESSAGE)];
        let text = core::str::from_utf8(text).unwrap_or("the message is not text");
        let _ = writeln!(out, "crash: message={text}");
    } else if cause == Cause::Firmware {
        let _ = writeln!(out, "crash: registers=none cr3={:#x}", record.cr3);
    } else if r.is_empty() {
        let _ = writeln!(
            out,
            "crash: vector={} name={} registers=none interrupted=td cr3={:#x}",
            r.vector,
            exception::name(r.vector as u8),
            record.cr3
        );
    } else {
        let (prefix, rip) = place(r.rip);
        let _ = writeln!(
            out,
            "crash: vector={} name={} error={:#x} rip={prefix}{rip:#x} cr2={:#x} cr3={:#x}",
            r.vector,
            exception::name(r.vector as u8),
            r.error,
            record.cr2,
            record.cr3
        );
        let _ = writeln!(
            out,
            "crash: rax={:#x} rbx={:#x} rcx={:#x} rdx={:#x} rsi={:#x} rdi={:#x} rbp={:#x} rsp={:#x}",
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp
        );
        let _ = writeln!(
            out,
            "crash: r8={:#x} r9={:#x} r10={:#x} r11={:#x} r12={:#x} r13={:#x} r14={:#x} r15={:#x} rflags={:#x}",
            r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rflags
        );
    }
    if let Some(source) = nmi::stopped_by() {
        let _ = writeln!(out, "crash: nmi={}", source.name());
    }
    if let Some(why) = check::stopped_by() {
        let _ = writeln!(out, "crash: reason={why}");
    }
    if is_hardware(cause) {
        for cpu in cpu::all().iter().filter(|cpu| has_run(cpu)) {
            print_banks(out, cpu.number, check::banks(cpu).as_ref());
        }
    }
    for address in record.backtrace.iter().filter(|a| **a != 0) {
        let _ = writeln!(out, "crash: called_from=image+{:#x}", address - base);
    }
    for call in record.seamcalls.iter().filter(|c| c.tsc != 0) {
        let _ = write!(
            out,
            "crash: seamcall={:#x} rcx={:#x} tsc={} status=",
            call.leaf, call.rcx, call.tsc
        );
        let _ = match call.status {
            PENDING => writeln!(out, "pending"),
            FAULTED => writeln!(out, "faulted"),
            status => writeln!(out, "{status:#x}"),
        };
    }
    let _ = writeln!(out, "crash: end");
}

fn has_run(cpu: &cpu::Cpu) -> bool {
    cpu.is_up() || cpu.state() == cpu::State::Stopped
}

const fn is_hardware(cause: Cause) -> bool {
    matches!(cause, Cause::MachineCheck | Cause::Nmi | Cause::Firmware)
}

/// Prints the machine-check banks of a CPU. They were not cleared. A register that the CPU does not have is absent.
fn print_banks(out: &mut dyn Write, cpu: u32, banks: Option<&Scan>) {
    let Some(scan) = banks else {
        let _ = writeln!(out, "crash: mc_cpu={cpu} banks=unknown");
        return;
    };
    let global = Absent(scan.global.map(|global| global.0));
    let _ = writeln!(out, "crash: mc_cpu={cpu} mcg_status={global}");
    for (reading, verdict) in scan.judged(Occasion::MachineCheck) {
        let _ = writeln!(
            out,
            "crash: mc_cpu={cpu} mc_bank={} status={:#x} addr={} misc={} verdict={} error={}",
            reading.bank,
            reading.status.0,
            Absent(reading.address),
            Absent(reading.misc),
            verdict.name(),
            reading.status.code()
        );
    }
}

/// A register that may not exist or hold nothing.
struct Absent(Option<u64>);

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => write!(f, "{value:#x}"),
            None => f.write_str("absent"),
        }
    }
}

/// A message buffer that cuts text that does not fit.
struct Message<'a> {
    bytes: &'a mut [u8; MESSAGE],
    len: usize,
}

impl Write for Message<'_> {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        let fits = s.floor_char_boundary(MESSAGE - self.len);
        self.bytes[self.len..self.len + fits].copy_from_slice(&s.as_bytes()[..fits]);
        self.len += fits;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::String;

    use super::*;

    fn record() -> Record {
        // SAFETY: no test starts a crash, so nothing writes to the record.
        let mut record = unsafe { *RECORD.0.get() };
        record.image = (0x1000, 0x9000);
        record
    }

    #[test]
    fn an_exception_is_printed_in_lines_that_tools_find() {
        let mut record = record();
        record.registers.vector = 14;
        record.registers.cs = 8;
        record.registers.rip = 0x1234;
        record.backtrace[0] = 0x2000;
        record.seamcalls[7] = Entry {
            tsc: 9,
            leaf: 33,
            rcx: 0,
            status: PENDING,
        };
        let mut text = String::new();
        print(&record, Cause::Exception, &mut text);
        assert!(text.contains("crash: vector=14 name=#PF error=0x0 rip=image+0x234 "));
        assert!(text.contains("crash: called_from=image+0x1000\n"));
        assert!(text.contains("crash: seamcall=0x21 rcx=0x0 tsc=9 status=pending\n"));
        assert!(text.trim_start().lines().all(|l| l.starts_with("crash: ")));
        assert!(text.ends_with("crash: end\n"));
    }

    #[test]
    fn what_a_tds_exit_consumed_is_not_shown_as_registers() {
        for vector in [exception::NMI, exception::MACHINE_CHECK] {
            let mut record = record();
            record.registers = Frame::of_td_exit(vector);
            let mut text = String::new();
            print(&record, Cause::Nmi, &mut text);
            let name = exception::name(vector);
            let line =
                std::format!("crash: vector={vector} name={name} registers=none interrupted=td ");
            assert!(text.contains(&line), "{text}");
            assert!(!text.contains("rax="), "{text}");
        }
    }

    #[test]
    fn banks_are_those_of_every_cpu_and_absent_registers_are_not_zero() {
        let mut scan = Scan {
            capability: Some(mca::capability::Capability(2 | 1 << 24)),
            ..Scan::default()
        };
        let mut text = String::new();
        print_banks(&mut text, 3, None);
        print_banks(&mut text, 4, Some(&scan));
        scan.global = Some(mca::capability::GlobalStatus(5));
        scan.readings.push(mca::bank::Reading {
            bank: 1,
            status: mca::bank::Status(0xB600_0000_0000_0134),
            address: Some(0x5000),
            misc: None,
        });
        print_banks(&mut text, 5, Some(&scan));
        let lines = [
            "crash: mc_cpu=3 banks=unknown",
            "crash: mc_cpu=4 mcg_status=absent",
            "crash: mc_cpu=5 mcg_status=0x5",
            "crash: mc_cpu=5 mc_bank=1 status=0xb600000000000134 addr=0x5000 misc=absent verdict=fatal error=load of \
             poisoned data (0x0134)",
        ];
        assert_eq!(text, std::format!("{}\n", lines.join("\n")));
    }

    #[test]
    fn a_panic_says_what_and_where_even_if_it_is_long() {
        let mut record = record();
        let mut message = Message {
            bytes: &mut record.message,
            len: 0,
        };
        write!(message, "src/a.rs:7: {}", "x".repeat(1000)).unwrap();
        let mut text = String::new();
        print(&record, Cause::Panic, &mut text);
        assert!(text.contains("crash: message=src/a.rs:7: xxx"));
    }

    #[test]
    fn the_layout_is_fixed() {
        assert_eq!(core::mem::offset_of!(Record, cause), 12);
        assert_eq!(core::mem::offset_of!(Record, registers), 64);
        assert_eq!(core::mem::offset_of!(Record, backtrace), 64 + 22 * 8);
        assert_eq!(size_of::<Record>(), 64 + 22 * 8 + 16 * 8 + 8 * 32 + 256);
    }
}
