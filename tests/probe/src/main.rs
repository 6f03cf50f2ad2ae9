//! Checks, from inside, the machine that the SEAM stub presents: an EFI application that executes what a hypervisor does,
//! and what it must not do.
//!
//! It writes `ok NAME` or `FAIL NAME: why` for each check to the first serial port, then `probe: N ok, N failed`, and
//! switches the machine off. With orders in a file beside it ([`orders`]) it does something else instead: it measures, or it is
//! the host of a TD.
#![no_std]
#![no_main]

mod attempt;
mod checks;
mod cpu;
mod dirty;
mod dma;
mod five_levels;
mod host;
mod measure;
mod orders;
mod serial;
mod td;
mod tdx;
mod team;

use core::ffi::c_void;

use uefi::runtime::{self, ResetType};
use uefi::{Handle, Status, boot};

/// The outcome of a check: why it failed.
pub type Check = Result<(), Failure>;

/// The difference between what a check found and what it expected.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// The value's name.
    pub what: &'static str,
    /// The value that was found.
    pub found: u64,
    /// The value that was expected.
    pub expected: u64,
}

/// Fails unless `found` is `expected`.
pub fn expect(what: &'static str, found: u64, expected: u64) -> Check {
    if found == expected {
        Ok(())
    } else {
        Err(Failure {
            what,
            found,
            expected,
        })
    }
}

#[expect(unsafe_code, reason = "is the EFI entry point")]
#[unsafe(no_mangle)]
extern "efiapi" fn efi_main(handle: Handle, table: *const c_void) -> Status {
    // SAFETY: firmware calls this with its own handle for the image, and with the system table.
    unsafe {
        boot::set_image_handle(handle);
        uefi::table::set_system_table(table.cast());
    }
    // Files are read while firmware's interrupts are on.
    let orders = orders::read();
    // A program that it starts needs the firmware's handlers.
    if !orders.as_ref().is_some_and(orders::Order::starts_a_program) {
        attempt::install();
    }
    match orders {
        None => check_all(),
        Some(order) => {
            serial::line(format_args!("\nprobe: start"));
            if let Err(why) = order.execute() {
                fail("orders", why);
            }
            serial::line(format_args!("probe: end"));
        }
    }
    runtime::reset(ResetType::SHUTDOWN, Status::SUCCESS, None)
}

fn check_all() {
    let (mut good, mut bad) = (0, 0);
    serial::line(format_args!("\nprobe: start"));
    for (name, check) in checks::ALL {
        match check() {
            Ok(()) => {
                good += 1;
                serial::line(format_args!("ok {name}"));
            }
            Err(why) => {
                bad += 1;
                fail(name, why);
            }
        }
    }
    serial::line(format_args!("probe: {good} ok, {bad} failed"));
}

fn fail(
    name: &str,
    Failure {
        what,
        found,
        expected,
    }: Failure,
) {
    serial::line(format_args!(
        "FAIL {name}: {what} is {found:#x}, not {expected:#x}"
    ));
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    serial::line(format_args!("FAIL panic: {info}"));
    cpu::stop()
}
