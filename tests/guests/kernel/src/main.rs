//! A kernel that sends vCPUs back to the firmware and wakes them again, as an operating system does when it switches
//! CPUs off or makes way for another one.
//!
//! It boots as Linux does, and knows the firmware only through ACPI and the memory map. Each check is printed in the
//! guests' format.
#![no_std]
#![no_main]

mod away;
mod say;
mod start;
mod tables;

use core::panic::PanicInfo;

// For the memory functions that `core` calls.
use boot as _;
use td_base::vmcall;

use crate::away::{Command, Mailbox};
use crate::say::{Checks, line};
use crate::tables::{Kind, Parameters, Wakeup};

/// Number of rounds for each vCPU.
const ROUNDS: u32 = 20;

extern "sysv64" fn main(parameters: u64) -> ! {
    let parameters = Parameters::at(parameters);
    let mut checks = Checks::default();
    let found = tables::wakeup(&parameters);
    checks.check("the-madt-has-a-way-back", || match found {
        Some(Wakeup {
            version: 1..,
            reset: 1..,
            ..
        }) => Ok(()),
        _ => Err("version 1 of the wakeup structure"),
    });
    let Some(wakeup) = found else {
        checks.end();
    };
    checks.check("what-stays-the-firmwares-is-reserved", || {
        if parameters.kind(wakeup.mailbox) != Some(Kind::Nvs) {
            Err("the mailbox is no ACPI NVS memory")
        } else if parameters.kind(wakeup.reset) != Some(Kind::Reserved) {
            Err("the reset vector is in memory that is not reserved")
        } else {
            Ok(())
        }
    });
    let mailbox = Mailbox::new(&wakeup);
    away::prepare(&wakeup);
    checks.check("every-vcpu-comes-and-goes", || {
        (0..ROUNDS).try_for_each(|round| {
            (1..wakeup.processors).try_for_each(|id| {
                mailbox.wake(id)?;
                away::wait_for_arrival(id)?;
                away::send_back(id, round);
                mailbox.command(id, Command::Test)
            })
        })
    });
    checks.check("who-is-away-does-not-answer", || {
        mailbox.wake(1)?;
        away::wait_for_arrival(1)?;
        let answered = mailbox.command_for_a_moment(1, Command::Test);
        away::send_back(1, 0);
        if answered {
            return Err("a vCPU that the kernel has was said to wait");
        }
        mailbox.command(1, Command::Test)
    });
    checks.check("an-nmi-does-not-hurt-who-waits", || {
        for id in 1..wakeup.processors {
            away::nmi(id).map_err(|_| "the host refuses an NMI")?;
            mailbox.command(id, Command::Test)?;
        }
        Ok(())
    });
    checks.check("the-first-vcpu-goes-and-comes-too", || {
        mailbox.wake(1)?;
        away::wait_for_arrival(1)?;
        away::swap(1)
    });
    checks.end()
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    line(&["FAIL it-panicked: "]);
    line(&["test-kernel: 0 passed, 1 failed"]);
    halt()
}

/// Halts this vCPU for good.
fn halt() -> ! {
    loop {
        // Nothing else can be done, whether the request is refused or the vCPU is woken.
        let _ = vmcall::hlt(true);
    }
}
