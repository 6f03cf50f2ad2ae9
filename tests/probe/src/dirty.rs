//! A firmware that leaves much behind: its watchdog armed, its memory map changing, interrupts open, ACPI mode off.
//! ExitBootServices is replaced beneath another program, which is then started.
//!
//! Source: UEFI Specification 2.10, sections 7.4 and 7.5; ACPI Specification 6.5, section 4.8.3.2.1; Intel 82093AA I/O
//! APIC data sheet, section 3; the ports are those of QEMU's q35.
#![expect(
    unsafe_code,
    reason = "changes the firmware's table of services, and registers in memory"
)]

use core::ffi::c_void;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

use seam::abi::x86::msr::x2apic::{
    DIVIDE, INITIAL_COUNT, LVT_ERROR, LVT_LINT0, LVT_PERFORMANCE, LVT_THERMAL, LVT_TIMER,
};
use uefi::Status;
use uefi::boot;
use uefi::table::system_table_raw;

use crate::attempt::wrmsr;
use crate::{Check, Failure, cpu, five_levels, serial};

/// The time in seconds after which the firmware resets the machine, and the time in microseconds for which this program
/// holds up a caller of ExitBootServices.
const WATCHDOG_S: usize = 1;
const STALL_US: usize = 3_000_000;

/// Vectors that the started program does not use.
const TIMER: u64 = 0x41;
const PIT: u32 = 0x42;
const OTHERS: u64 = 0x43;

type ExitBootServices = unsafe extern "efiapi" fn(*mut c_void, usize) -> Status;

/// The address of the firmware's service.
static SERVICE: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicU32 = AtomicU32::new(0);

/// Replaces the service, arms the watchdog, and starts the program, which must not return.
pub fn start(program: &[u8]) -> Check {
    let failure = |what| Failure {
        what,
        found: 0,
        expected: 1,
    };
    let table = system_table_raw().ok_or(failure("the system table"))?;
    // SAFETY: the firmware's tables last until its services end, and no other processor uses them. The new function has
    // the service's type, and this program stays in memory.
    unsafe {
        let services = (*table.as_ptr()).boot_services;
        SERVICE.store((*services).exit_boot_services as usize, Relaxed);
        (*services).exit_boot_services = exit_boot_services;
        let armed = ((*services).set_watchdog_timer)(WATCHDOG_S, 0x1_0000, 0, core::ptr::null());
        if armed != Status::SUCCESS {
            return Err(failure("a watchdog"));
        }
    }
    five_levels::start_image(program)
}

/// Refuses the first call, after a pause in which an armed watchdog resets the machine. After the firmware's own answer to
/// a later one, opens interrupts and leaves ACPI mode.
unsafe extern "efiapi" fn exit_boot_services(image: *mut c_void, key: usize) -> Status {
    if CALLS.fetch_add(1, Relaxed) == 0 {
        boot::stall(core::time::Duration::from_micros(STALL_US as u64));
        serial::line(format_args!("probe: ExitBootServices is refused once"));
        return Status::INVALID_PARAMETER;
    }
    // SAFETY: the address is that of the firmware's service.
    let service: ExitBootServices = unsafe { core::mem::transmute(SERVICE.load(Relaxed)) };
    // SAFETY: as the caller of this function promises.
    let status = unsafe { service(image, key) };
    if status == Status::SUCCESS {
        // The firmware's handlers are gone.
        cpu::disable_interrupts();
        // The registers are written as an x2APIC's.
        if cpu::cpuid(1, 0)[2] >> 21 & 1 == 1 {
            open_local_interrupts();
        }
        open_lines();
        leave_acpi_mode();
        serial::line(format_args!("probe: everything is open"));
    }
    status
}

/// Lets the APIC's timer fire a thousand times a second, and opens the other local interrupts.
fn open_local_interrupts() {
    const PERIODIC: u64 = 1 << 17;
    const EXTERNAL: u64 = 7 << 8;
    for (register, value) in [
        (DIVIDE, 0b1011),
        (LVT_TIMER, PERIODIC | TIMER),
        (INITIAL_COUNT, 25_000),
        (LVT_LINT0, EXTERNAL),
        (LVT_PERFORMANCE, OTHERS),
        (LVT_THERMAL, OTHERS),
        (LVT_ERROR, OTHERS),
    ] {
        if wrmsr(register, value).is_err() {
            serial::line(format_args!("FAIL: register {register:#x} is not written"));
        }
    }
}

/// Opens every input of the I/O APIC and of the two older controllers. The timer at input 2 runs.
fn open_lines() {
    const IO_APIC: *mut u32 = 0xFEC0_0000 as *mut u32;
    const INPUTS: u32 = 24;
    for input in 0..INPUTS {
        for (register, value) in [(0x11 + input * 2, 0), (0x10 + input * 2, PIT)] {
            // SAFETY: the firmware's page tables map the registers of the chipset's I/O APIC.
            unsafe {
                IO_APIC.write_volatile(register);
                IO_APIC.byte_add(0x10).write_volatile(value);
            }
        }
    }
    for port in [0x21, 0xA1] {
        cpu::out_byte(port, 0);
    }
}

/// Takes the machine back to legacy mode: QEMU's FADT has port 0xB2 as SMI_CMD, and 3 as ACPI_DISABLE.
fn leave_acpi_mode() {
    cpu::out_byte(0xB2, 3);
}
