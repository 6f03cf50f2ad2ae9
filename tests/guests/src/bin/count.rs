//! A guest that spins with interrupts on and counts them, for a host that counts what it sends.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};

use guest_kit::check::{Check, Checks};
use guest_kit::{cpu, ensure, guest, memory, vcpu, vmcall};
use guests::tries::{Own, own};
use seam::abi::PAGE_4K;

guest!("count", main);

/// The page shared with the host, at its address in this guest.
static PAGE: AtomicU64 = AtomicU64::new(0);

/// Words of the page.
mod word {
    pub const STOP: u64 = 0;
    pub const TOTAL: u64 = 1;
    pub const COUNTED: u64 = 8;
    pub const SENT: u64 = 64;
}

fn main(checks: &mut Checks) {
    vcpu::start_all();
    checks.once("shares-a-page", share);
    checks.together("counts", count);
    checks.once("none-lost-none-doubled", compare);
}

fn at(word: u64) -> u64 {
    PAGE.load(Ordering::Relaxed) + word * 8
}

fn share() -> Check {
    let page = memory::take(PAGE_4K, PAGE_4K);
    // The host converts only pages of 4 KiB.
    let Some(page_4k) = memory::take_unaccepted(PAGE_4K) else {
        return guest_kit::fail!("no memory after {page:#x}");
    };
    let shared = page_4k | memory::shared_bit();
    ensure!(vmcall::map_gpa(shared, PAGE_4K).is_ok(), "MapGPA");
    PAGE.store(memory::shared_alias(page_4k), Ordering::Relaxed);
    ensure!(own(Own::Mailbox, page_4k) == 0, "nobody wants it");
    Ok(())
}

fn total() -> u64 {
    let vcpu = vcpu::current();
    (32..=255)
        .map(|vector| u64::from(vcpu.interrupts(vector)))
        .sum()
}

fn count() -> Check {
    let counted = at(word::COUNTED + u64::from(vcpu::current().index()));
    cpu::enable_interrupts();
    while memory::word(at(word::STOP)) == 0 {
        memory::set_word(counted, total());
    }
    cpu::disable_interrupts();
    Ok(())
}

fn compare() -> Check {
    let sent = memory::word(at(word::TOTAL));
    let counted = total();
    ensure!(counted == sent, "{counted} came of {sent}");
    for vector in 32..=255 {
        let (sent, came) = (
            memory::word(at(word::SENT + u64::from(vector))),
            vcpu::current().interrupts(vector),
        );
        ensure!(
            sent == u64::from(came),
            "of vector {vector}, {came} came of {sent}"
        );
    }
    guest_kit::say!("counted {counted}");
    Ok(())
}
