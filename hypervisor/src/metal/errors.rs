//! Hardware errors after their handlers: they are logged, and lost pages are taken out of use.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arrayvec::ArrayVec;
use host::{
    sched::lost::{self, Owner},
    td::error::Error,
};
use mca::{books::Kept, pages::WAITING};
use seam::address::Hpa;

use super::{platform::METAL, tds};
use crate::cpu::{self, check, ghes, nmi};

/// Logs errors that are new, and takes lost pages out of use. The bootstrap CPU calls it in its loop, with interrupts
/// on.
pub fn serve() {
    check::look_if_due();
    for cpu in cpu::all() {
        tell_new(cpu);
    }
    tell_firmware();
    tell_nmis();
    let mut busy: ArrayVec<u64, WAITING> = ArrayVec::new();
    while !busy.is_full()
        && let Some(page) = cpu::LOST_PAGES.take()
    {
        if retire(Hpa(page)) == Outcome::Busy {
            busy.push(page);
        }
    }
    busy.into_iter().for_each(|page| cpu::LOST_PAGES.add(page));
}

/// The state of a lost page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nothing is left to do.
    Done,
    /// Another CPU changes the state of its TD: try again.
    Busy,
}

/// Returns true if [`serve`] has something to do.
pub fn are_waiting() -> bool {
    let is_new = |cpu: &&cpu::Cpu| {
        let checks = &cpu.checks;
        checks.logged.load(Relaxed) != checks.books.last()
    };
    cpu::LOST_PAGES.is_any()
        || cpu::all().iter().any(is_new)
        || RECORDS.load(Relaxed) != records()
        || NMIS.load(Relaxed) != nmis()
}

/// The firmware's records and the NMIs that were logged.
static RECORDS: AtomicU64 = AtomicU64::new(0);
static NMIS: AtomicU64 = AtomicU64::new(0);

fn records() -> u64 {
    ghes::counts()
        .map(|count| count.corrected + count.recoverable + count.fatal)
        .sum()
}

fn nmis() -> u64 {
    nmi::counts().iter().map(|(_, count)| count).sum()
}

fn tell_new(cpu: &cpu::Cpu) {
    let checks = &cpu.checks;
    let (logged, last) = (checks.logged.load(Relaxed), checks.books.last());
    if logged == last {
        return;
    }
    checks.logged.store(last, Relaxed);
    for kept in checks.books.since(logged) {
        tell(cpu.number, &kept);
    }
}

fn tell(cpu: u32, kept: &Kept) {
    let reading = &kept.reading;
    let when = if kept.is_stale {
        " from before the start"
    } else {
        ""
    };
    let code = reading.status.code();
    let (bank, status) = (reading.bank, reading.status.0);
    let address = reading.address.unwrap_or(0);
    let level = match kept.verdict {
        "corrected" => log::Level::Warn,
        _ => log::Level::Error,
    };
    log::log!(
        level,
        "hardware error{when}: CPU {cpu}, bank {bank}: {}, {code}, status {status:#x}, address {address:#x}",
        kept.verdict
    );
}

fn tell_firmware() {
    let now = records();
    let new = now - RECORDS.swap(now, Relaxed);
    if new != 0 {
        log::warn!("the firmware reported {new} hardware errors; \"mca\" counts them by source");
    }
}

fn tell_nmis() {
    let now = nmis();
    let new = now - NMIS.swap(now, Relaxed);
    if new != 0 {
        let sources = nmi::counts().map(|(source, count)| (source.name(), count));
        log::warn!("{new} foreign NMIs; since the start, by source: {sources:?}");
    }
}

/// Takes a page whose data is lost out of use. If it is a TD's, that TD ends.
fn retire(page: Hpa) -> Outcome {
    use mm::frames::Retired;
    match METAL.retire(page) {
        Ok(Retired::Now) => {
            log::error!("the page at {:#x} was free, and is out of use", page.0);
            return Outcome::Done;
        }
        Ok(Retired::WhenFreed) => {}
        Ok(Retired::Unknown) => {
            log::error!("the page at {:#x} is not memory of this program", page.0);
        }
        Err(error) => log::error!("the page at {:#x} stays in use: {error}", page.0),
    }
    let (Some(tds), Some(scheduler)) = (tds::get(), tds::scheduler()) else {
        return Outcome::Done;
    };
    match lost::end_owner(scheduler, tds, page) {
        Ok(Owner::Host) => log::error!(
            "the page at {:#x} holds data of the hypervisor: its next use may end the machine",
            page.0
        ),
        Ok(Owner::Td(id)) => {
            let config = tds.config(id);
            let name = config.as_ref().map_or("", |config| &config.name);
            log::error!(
                "TD {id} {name} ends: the machine lost the data in its page at {:#x}",
                page.0
            );
        }
        Ok(Owner::Module) => log::error!(
            "the page at {:#x} is the TDX module's own: its next use may end TDX",
            page.0
        ),
        Err(Error::Busy) => return Outcome::Busy,
        Err(error) => log::error!("the owner of the page at {:#x}: {error}", page.0),
    }
    Outcome::Done
}
