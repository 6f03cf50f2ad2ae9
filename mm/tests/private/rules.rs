//! The termination rules that concern a TD's memory. Each has its test here, by number.
//!
//! 2. Nothing is linked or mapped once the TD is being terminated. Code that maps checks this under the map's lock.
//! 5. The map has three modes, and removal checks which one applies. TDH.MNG.VPFLUSHDONE is the point of no return.
//! 6. The TDR comes last, with TDH.PHYMEM.PAGE.WBINVD under the module's own HKID. A page returns to the allocator only
//!    after it was cleared.
//! 10. After termination, freeing memory works, and using the TD fails before any SEAMCALL.
//! 11. A frame is allocated again only if the TD lost its key, TDH.PHYMEM.PAGE.RECLAIM released it, and it was cleared.

use core::cell::Cell;
use core::ops::ControlFlow;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::thread;

use mm::private::{Clearing, Cpu, Error, Mode, NoneRuns, Outcome, Pool, Reclaim, Step};
use seam::abi::{Gprs, Leaf, PAGE_1G, PAGE_2M, PAGE_4K, PageSize, Status};
use seam::address::{Gpa, Hpa};
use seam::call::{Fault, SeamCall};
use seam::page::{Clean, Dirty, Page, State};
use seam::retry::Never;
use seam::tdh::Tdh;
use stub_module::Point;
use stub_module::host::Processor;

use crate::build::end;
use crate::kit::{BASE, GLOBAL_HKID, Host, SOURCE, Td};
use crate::reclaim::{Now, plan, reclaim, work_until};

/// Tries everything that would use the TD, or map something for it.
fn use_it(td: &Td<'_>) -> Vec<Result<(), Error>> {
    let map = &td.map;
    td.host.with(0, |cpu| {
        vec![
            map.add(cpu, Gpa(PAGE_1G), SOURCE, true),
            map.map(cpu, Gpa(PAGE_1G), PageSize::Size4K),
            map.map(cpu, Gpa(PAGE_1G), PageSize::Size2M),
            map.populate(cpu, PAGE_1G..PAGE_1G + 2 * PAGE_2M).map(drop),
            map.demote(cpu, Gpa(0), PageSize::Size2M, &NoneRuns),
            map.promote(cpu, Gpa(0), PageSize::Size2M, &NoneRuns),
            map.promote_all(cpu, 0..PAGE_1G, &NoneRuns).map(drop),
            map.unblock(cpu, Gpa(0), &NoneRuns),
            map.finalize(cpu.tdh),
            map.keyed(|_| Ok(())),
        ]
    })
}

fn assert_unused(td: &Td<'_>) {
    let before = calls(td.host);
    for (number, result) in use_it(td).into_iter().enumerate() {
        assert_eq!(result, Err(Error::Terminated), "use {number}");
    }
    assert_eq!(calls(td.host), before, "the module was not asked");
}

fn calls(host: &Host) -> u64 {
    Leaf::ALL.iter().map(|leaf| host.calls(*leaf)).sum()
}

fn never_wait(_: u32) -> ControlFlow<()> {
    ControlFlow::Break(())
}

#[test]
fn rule_2_nothing_is_mapped_from_the_moment_on_at_which_the_map_is_closed() {
    let host = Host::new("patterns");
    let td = Td::runnable(&host, 33, 1);
    host.with(0, |cpu| td.map.populate(cpu, 0..PAGE_2M).unwrap());
    td.map.close(never_wait).unwrap();
    assert_unused(&td);
    // This can be undone until TDH.MNG.VPFLUSHDONE.
    td.map.reopen().unwrap();
    host.with(0, |cpu| td.map.map(cpu, Gpa(PAGE_1G), PageSize::Size4K))
        .unwrap();
    end(td);
}

/// A mapping in progress holds the map's lock: the map is not closed before it is done, and no new work begins
/// meanwhile.
#[test]
fn rule_2_who_maps_asks_under_the_maps_lock() {
    let host = Host::new("patterns");
    let td = Td::new(&host, 33, 1);
    host.with(0, |cpu| td.map.add(cpu, Gpa(0), SOURCE, true).unwrap());
    let held = host
        .server
        .machine()
        .hold_at(2, Point::Movdir64b, 1)
        .unwrap();
    thread::scope(|scope| {
        let adding =
            scope.spawn(|| host.with(2, |cpu| td.map.add(cpu, Gpa(PAGE_4K), SOURCE, true)));
        assert!(held.wait());
        assert_eq!(td.map.close(never_wait), Err(Error::Busy));
        assert_eq!(td.map.mode(), Mode::Keyed, "as it was");
        let mut held = Some((held, adding));
        let closed = td.map.close(|_| {
            // While a CPU waits to close the map, no new work begins.
            assert_eq!(td.map.keyed(|_| Ok(())), Err(Error::Terminated));
            if let Some((held, adding)) = held.take() {
                drop(held);
                assert_eq!(adding.join().unwrap(), Ok(()));
            }
            ControlFlow::Continue(())
        });
        assert_eq!(closed, Ok(()));
    });
    assert_eq!(td.map.holding().pages, [2, 0, 0]);
    td.map.reopen().unwrap();
    end(td);
}

#[test]
fn rule_5_frees_are_queued_while_the_key_is_released_and_done_when_it_is_not() {
    let host = Host::new("patterns");
    let td = Td::runnable(&host, 33, 1);
    host.with(0, |cpu| {
        td.map.populate(cpu, 0..4 * PAGE_2M).unwrap();
        assert_eq!(td.map.mode(), Mode::Keyed);
        td.map.close(never_wait).unwrap();
        td.map.close(never_wait).expect("asking twice is harmless");
        assert_eq!(td.map.mode(), Mode::Releasing);
        let before = calls(&host);
        for range in [0..PAGE_2M, 2 * PAGE_2M..3 * PAGE_2M] {
            assert_eq!(td.map.remove(cpu, range, &NoneRuns), Ok(Outcome::Queued));
        }
        assert_eq!(calls(&host), before);
        td.map.reopen().unwrap();
        assert_eq!(td.map.mode(), Mode::Keyed);
        td.map.run_queued(cpu, &NoneRuns, &|| true).unwrap();
    });
    assert_eq!(td.map.holding().pages, [0, 2, 0]);
    end(td);
}

/// Between two batches, a removal makes way for the CPU that terminates the TD, which then finds nothing claimed.
#[test]
fn rule_5_a_free_that_does_not_go_on_is_queued_and_done_when_it_is_asked_for() {
    let host = Host::new("patterns");
    let td = Td::runnable(&host, 33, 1);
    let range = 0..64 * PAGE_2M;
    host.with(0, |cpu| {
        td.map.populate(cpu, range.clone()).unwrap();
        let asked = Cell::new(0);
        let twice = || asked.replace(asked.get() + 1) < 2;
        let removed = td.map.remove_while(cpu, range.clone(), &NoneRuns, &twice);
        assert_eq!(removed, Ok(Outcome::Queued));
        let left = td.map.holding().pages[1];
        assert!((1..64).contains(&left), "{left}");
        td.map.run_queued(cpu, &NoneRuns, &|| false).unwrap();
        assert_eq!(td.map.holding().pages[1], left);
        // Everything that was not taken can still be taken.
        let rest = td.map.remove(cpu, 48 * PAGE_2M..range.end, &NoneRuns);
        assert!(matches!(rest, Ok(Outcome::Removed(_))), "{rest:?}");
        td.map.run_queued(cpu, &NoneRuns, &|| true).unwrap();
    });
    assert_eq!(td.map.holding().pages, [0; 3]);
    end(td);
}

#[test]
fn rule_5_vpflushdone_is_the_point_of_no_return() {
    let host = Host::new("patterns");
    let td = Td::runnable(&host, 33, 1);
    host.with(0, |cpu| td.map.populate(cpu, 0..2 * PAGE_2M).unwrap());
    let tdh = host.on(0);
    assert_eq!(
        td.map.flush_done(&tdh),
        Err(Error::Busy),
        "it was not closed"
    );
    td.map.close(never_wait).unwrap();
    // The vCPU is still associated: the module refuses, and the TD is unchanged.
    assert!(matches!(td.map.flush_done(&tdh), Err(Error::Seam(_))));
    td.map.reopen().unwrap();
    assert_eq!(td.map.mode(), Mode::Keyed);
    td.release();
    assert_eq!(td.map.mode(), Mode::Keyless);
    assert_eq!(td.map.reopen(), Err(Error::Terminated));
    host.with(0, |cpu| {
        assert_eq!(
            td.map.remove(cpu, 0..PAGE_2M, &NoneRuns),
            Ok(Outcome::LeftToReclaim)
        );
    });
    assert_eq!(reclaim(td, Clearing::Clear).pages, [0, 2, 0]);
    assert_eq!(host.out(), (0, 0));
}

/// A CPU that records the leaf and RCX of its calls.
struct Noted<'h>(Processor<'h>, &'h Mutex<Vec<(u64, u64)>>);

impl SeamCall for Noted<'_> {
    fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault> {
        self.1.lock().unwrap().push((regs.rax, regs.rcx));
        self.0.seamcall(regs)
    }

    fn note_shutdown(&self) {
        self.0.note_shutdown();
    }
}

#[test]
fn rule_6_the_tdr_comes_last_and_is_written_back_under_the_modules_own_hkid() {
    let host = Host::new("patterns");
    let td = Td::runnable(&host, 33, 1);
    host.with(0, |cpu| td.map.populate(cpu, PAGE_4K..3 * PAGE_2M).unwrap());
    let tdr = td.map.keyed(|tdr| Ok(tdr.hpa())).unwrap();
    td.release();
    let calls = Mutex::default();
    let counters = seam::counters::Counters::new();
    let tdh = Tdh::new(
        Noted(host.server.processor(0).unwrap(), &calls),
        Never,
        &counters,
    );
    let clock = Now::new();
    let (map, control) = td.into_parts();
    let owned = map.holding().pages.iter().sum::<u64>() + map.holding().sept + control.len() as u64;
    let reclaim = Reclaim::new(map, control, plan(1, Clearing::Clear), &clock).unwrap();
    let cpu = Cpu {
        tdh: &tdh,
        pool: &host.pool,
    };
    while reclaim.work(cpu, 0, &clock) != Step::Done {}
    let calls = calls.into_inner().unwrap();
    assert_eq!(calls.len() as u64, owned + 2);
    let (children, last) = calls.split_at(owned as usize);
    assert!(
        children
            .iter()
            .all(|(leaf, hpa)| *leaf == Leaf::PhymemPageReclaim.rax() && *hpa != tdr.0)
    );
    let keyed = tdr.0 | u64::from(GLOBAL_HKID) << 46;
    assert_eq!(
        last,
        [
            (Leaf::PhymemPageReclaim.rax(), tdr.0),
            (Leaf::PhymemPageWbinvd.rax(), keyed),
        ]
    );
    host.assert_spotless();
}

/// The host's frames, with checks of each frame that is freed.
struct Watched<'h> {
    host: &'h Host,
    cleared: Mutex<BTreeSet<u64>>,
}

impl Pool for Watched<'_> {
    fn take(&self, size: PageSize) -> Option<Page<Clean>> {
        self.host.pool.take(size)
    }

    fn take_at(&self, hpa: Hpa, size: PageSize) -> Option<Page<Clean>> {
        self.host.pool.take_at(hpa, size)
    }

    fn free_bytes(&self) -> u64 {
        self.host.pool.free_bytes()
    }

    fn give(&self, pages: impl Iterator<Item = Page<Clean>>) {
        let memory = self.host.server.machine().memory();
        let cleared = self.cleared.lock().unwrap();
        self.host.pool.give(pages.inspect(|page| {
            for pa in (page.hpa().0..page.hpa().0 + page.size().bytes()).step_by(PAGE_4K as usize) {
                assert!(cleared.contains(&pa), "{pa:#x} was not cleared");
                assert_eq!(memory.word(pa), 0);
                // The module reports that the host owns it.
                let tdh = self.host.on(3);
                let owner = tdh.phymem_page_rdmd(Hpa(pa)).unwrap().page_type;
                assert_eq!(owner, Some(seam::abi::PageType::Nda));
            }
        }));
    }

    fn clear(&self, page: Page<Dirty>) -> Page<Clean> {
        let range = page.hpa().0..page.hpa().0 + page.size().bytes();
        self.cleared
            .lock()
            .unwrap()
            .extend(range.step_by(PAGE_4K as usize));
        self.host.pool.clear(page)
    }

    fn keep(&self, page: Page<Dirty>) -> Result<(), Page<Dirty>> {
        self.host.pool.keep(page)
    }

    fn quarantine<S: State>(&self, page: Page<S>) {
        self.host.pool.quarantine(page);
    }

    fn split(&self, hpa: Hpa, size: PageSize) {
        self.host.pool.split(hpa, size);
    }

    fn merge(&self, hpa: Hpa, size: PageSize) {
        self.host.pool.merge(hpa, size);
    }
}

#[test]
fn rule_6_a_page_is_the_allocators_when_it_was_cleared_and_not_earlier() {
    let host = Host::new("patterns");
    let td = Td::runnable(&host, 33, 1);
    host.with(0, |cpu| {
        td.map
            .populate(cpu, PAGE_2M - 4 * PAGE_4K..4 * PAGE_2M)
            .unwrap()
    });
    let pool = Watched {
        host: &host,
        cleared: Mutex::default(),
    };
    let tdh = host.on(0);
    let cpu = Cpu {
        tdh: &tdh,
        pool: &pool,
    };
    // Some of it while the TD has its key, the rest once it has none.
    td.map
        .remove(cpu, PAGE_2M..2 * PAGE_2M + PAGE_4K, &NoneRuns)
        .unwrap();
    td.release();
    let clock = Now::new();
    let (map, control) = td.into_parts();
    let reclaim = Reclaim::new(map, control, plan(1, Clearing::Clear), &clock).unwrap();
    while reclaim.work(cpu, 0, &clock) != Step::Done {}
    host.assert_spotless();
    let module = host.server.module();
    assert!(module.check_handed_out(host.server.machine(), 0, BASE..BASE + host.size));
}

#[test]
fn rule_10_after_terminate_what_frees_works_and_what_uses_fails() {
    let host = Host::new("patterns");
    let td = Td::runnable(&host, 33, 1);
    host.with(0, |cpu| td.map.populate(cpu, 0..4 * PAGE_2M).unwrap());
    td.release();
    assert_unused(&td);
    host.with(0, |cpu| {
        let before = calls(&host);
        assert_eq!(
            td.map.remove(cpu, PAGE_2M..2 * PAGE_2M, &NoneRuns),
            Ok(Outcome::LeftToReclaim)
        );
        td.map.run_queued(cpu, &NoneRuns, &|| true).unwrap();
        assert_eq!(calls(&host), before);
    });
    let clock = Now::new();
    let (map, control) = td.into_parts();
    let reclaim = Reclaim::new(map, control, plan(1, Clearing::Clear), &clock).unwrap();
    host.with(0, |cpu| {
        // Also during the reclaim and after it.
        reclaim.work(cpu, 0, &clock);
        let left = reclaim.map().remove(cpu, 0..PAGE_1G, &NoneRuns);
        assert_eq!(left, Ok(Outcome::LeftToReclaim));
        assert_eq!(
            reclaim.map().map(cpu, Gpa(PAGE_1G), PageSize::Size4K),
            Err(Error::Terminated)
        );
        assert_eq!(work_until(&reclaim, cpu, &clock), Step::Done);
        let left = reclaim.map().remove(cpu, 0..PAGE_1G, &NoneRuns);
        assert_eq!(left, Ok(Outcome::LeftToReclaim));
    });
    host.assert_spotless();
}

#[test]
fn rule_11_a_frame_is_handed_out_again_only_when_the_key_is_gone_and_the_module_gave_it() {
    let host = Host::new("patterns");
    let td = Td::runnable(&host, 33, 1);
    host.with(0, |cpu| td.map.populate(cpu, 0..4 * PAGE_2M).unwrap());
    let out = host.out();
    let clock = Now::new();
    // First the TD has its key, then it is releasing it.
    for closed in [false, true] {
        if closed {
            td.map.close(never_wait).unwrap();
        }
        assert!(Reclaim::new(&td.map, Vec::new(), plan(1, Clearing::Clear), &clock).is_err());
        assert_eq!(host.out(), out);
    }
    td.release();
    let (map, control) = td.into_parts();
    let reclaim = Reclaim::new(map, control, plan(1, Clearing::Clear), &clock).unwrap();
    // The module releases nothing.
    let calls = AtomicU64::new(0);
    let busy = (Leaf::PhymemPageReclaim, Status::OPERAND_BUSY);
    host.strangely(busy, 1..u64::MAX, &calls, |cpu| {
        while reclaim.work(cpu, 0, &clock) == Step::More {}
    });
    assert_eq!(host.out(), out);
    assert!(reclaim.retry());
    // One page is never released: neither it nor the TDR is allocated again.
    let strange = (Leaf::PhymemPageReclaim, Status::LIFECYCLE_STATE_INCORRECT);
    let calls = AtomicU64::new(0);
    host.strangely(strange, 2..3, &calls, |cpu| {
        while reclaim.work(cpu, 0, &clock) != Step::Done {}
    });
    let refused = reclaim.quarantined();
    assert_eq!(
        host.out(),
        (0, refused.iter().map(|page| page.size.pages()).sum())
    );
    let mut ledger = host.pool.ledger().lock();
    for order in (0..=18).rev() {
        while let Ok(frame) = ledger.alloc(order) {
            for page in &refused {
                let frames = frame.pa..frame.pa + frame.bytes();
                assert!(!frames.contains(&page.hpa.0), "{page}");
            }
        }
    }
}
