//! A guest whose vCPUs all use one page without pause, for a host that takes the page away.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};

use guest_kit::check::{Check, Checks};
use guest_kit::{ensure, guest, memory, tdcall, vcpu, vmcall};
use guests::tries::{Own, own};
use seam::abi::{PAGE_2M, PAGE_4K, Status};

guest!("hammer", main);

/// The page that is shared with the host, and the page that is hammered.
static MAILBOX: AtomicU64 = AtomicU64::new(0);
static TARGET: AtomicU64 = AtomicU64::new(0);

mod word {
    pub const STOP: u64 = 0;
    pub const WRITTEN: u64 = 8;
}

fn main(checks: &mut Checks) {
    vcpu::start_all();
    checks.once("shares-a-page", share);
    checks.together("hammers", hammer);
}

fn at(word: u64) -> u64 {
    MAILBOX.load(Ordering::Relaxed) + word * 8
}

fn share() -> Check {
    let Some(region) = memory::take_unaccepted(PAGE_2M) else {
        return guest_kit::fail!("no memory");
    };
    // Small pages from the start.
    let status = tdcall::page_accept(region, 0);
    ensure!(status == Status::SUCCESS, "accepting: {status:?}");
    let mailbox = region + PAGE_4K;
    let shared = mailbox | memory::shared_bit();
    ensure!(vmcall::map_gpa(shared, PAGE_4K).is_ok(), "MapGPA");
    MAILBOX.store(memory::shared_alias(mailbox), Ordering::Relaxed);
    TARGET.store(region + 2 * PAGE_4K, Ordering::Relaxed);
    ensure!(
        own(Own::Target, region + 2 * PAGE_4K) == 0 && own(Own::Mailbox, mailbox) == 0,
        "nobody wants them"
    );
    Ok(())
}

fn hammer() -> Check {
    let index = u64::from(vcpu::current().index());
    let target = TARGET.load(Ordering::Relaxed) + 64 * index;
    let told = at(word::WRITTEN + index);
    let mut value = 0;
    while memory::word(at(word::STOP)) == 0 {
        value += 1;
        memory::set_word(target, value);
        memory::set_word(told, value);
        let found = memory::word(target);
        // The page is new and empty if it was taken away meanwhile.
        ensure!(
            found == value || found == 0,
            "the page holds {found:#x}, not {value:#x}"
        );
    }
    Ok(())
}
