//! The text of a report: one line `crash: key=value ...` for each fact.

use core::fmt::{self, Write};

use mca::{scan::Scan, verdict::Occasion};

use super::record::Record;
use crate::{
    cpu::{self, check, nmi},
    exception::{self, Cause},
    rtc,
    seamlog::{FAULTED, PENDING},
    time,
};

/// The last line of a report.
pub const END: &str = "crash: end\n";

/// Writes the lines of a report, all but the last.
pub fn print(record: &Record, cause: Cause, out: &mut dyn Write) {
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
    let _ = writeln!(out, "crash: begin version={}", record.version);
    let _ = writeln!(
        out,
        "crash: cpu={} apic_id={:#x} cause={} tsc={} us={} unix={} image={:#x}",
        record.cpu,
        record.apic_id,
        cause.name(),
        record.tsc,
        time::us(),
        rtc::unix_seconds(),
        record.image.0
    );
    if cause == Cause::Panic {
        // A message of several lines is one line of the report.
        let _ = write!(out, "crash: message=");
        for c in record.message().chars() {
            let _ = match c {
                '\n' => write!(out, "\\n"),
                c => write!(out, "{c}"),
            };
        }
        let _ = writeln!(out);
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
}

/// Returns true if the CPU ran when the machine crashed.
pub fn has_run(cpu: &cpu::Cpu) -> bool {
    cpu.is_up() || cpu.state() == cpu::State::Stopped
}

/// Returns true if the report has the machine-check banks of every CPU.
pub const fn is_hardware(cause: Cause) -> bool {
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

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::String;

    use super::*;
    use crate::{exception::Frame, seamlog::Entry};

    fn record() -> Record {
        Record {
            image: (0x1000, 0x9000),
            ..Record::EMPTY
        }
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
        assert!(text.lines().all(|l| l.starts_with("crash: ")));
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
    fn a_panic_says_what_and_where_in_one_line() {
        let mut record = record();
        record.set_message(format_args!("src/a.rs:7: left: 1\nright: 2"));
        let mut text = String::new();
        print(&record, Cause::Panic, &mut text);
        assert!(
            text.contains("crash: message=src/a.rs:7: left: 1\\nright: 2\n"),
            "{text}"
        );
    }
}
