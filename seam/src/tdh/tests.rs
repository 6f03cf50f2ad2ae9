//! Counting, retries and ownership, with a scripted module.

#![expect(
    clippy::disallowed_methods,
    reason = "the test plays the allocator and the pool"
)]

extern crate std;

use core::cell::{Cell, RefCell};
use core::ops::ControlFlow;
use std::vec::Vec;

use super::resume::{CacheWbRound, PageWriteBack, Step, TdmrInit};
use super::*;
use crate::abi::{Operand, PageSize};
use crate::address::{Gpa, Hpa, KeyIdPosition};
use crate::error::Cause;
use crate::hkid::Hkid;
use crate::page::{Clean, Donated, Page};

/// Answers each call with the next status (the last one repeats), leaves the operands unchanged, and records the calls.
struct Script {
    statuses: RefCell<Vec<Status>>,
    calls: RefCell<Vec<Gprs>>,
    rdx: Cell<Option<u64>>,
}

impl Script {
    fn new(statuses: &[Status]) -> Self {
        Self {
            statuses: RefCell::new(statuses.iter().rev().copied().collect()),
            calls: RefCell::default(),
            rdx: Cell::new(None),
        }
    }
}

impl SeamCall for Script {
    fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault> {
        self.calls.borrow_mut().push(*regs);
        let mut statuses = self.statuses.borrow_mut();
        let status = if statuses.len() > 1 {
            statuses.pop()
        } else {
            statuses.last().copied()
        };
        regs.rax = status.ok_or(Fault::NotLoaded)?.0;
        if let Some(rdx) = self.rdx.get() {
            regs.rdx = rdx;
        }
        Ok(())
    }

    // No host keeps a record of it.
    fn note_shutdown(&self) {}
}

/// Records the pauses and continues at once.
#[derive(Default)]
struct Pauses(RefCell<Vec<Pause>>);

impl Wait for Pauses {
    fn wait(&self, pause: Pause) -> ControlFlow<()> {
        self.0.borrow_mut().push(pause);
        ControlFlow::Continue(())
    }
}

fn page(hpa: u64) -> Page<Clean> {
    Page::mint(Hpa(hpa), PageSize::Size4K).unwrap()
}

fn td() -> Tdr<Keyed> {
    Tdr {
        page: page(0x1000).turn(Donated),
        phase: Keyed {
            hkid: Hkid::mint(40),
        },
    }
}

#[test]
fn a_busy_call_is_repeated_with_the_same_operands() {
    let busy = Status::OPERAND_BUSY.with(Operand::RCX);
    let (script, counters) = (Script::new(&[busy, busy, Status::SUCCESS]), Counters::new());
    let pauses = Pauses::default();
    let tdh = Tdh::new(&script, &pauses, &counters);
    let mapped = tdh.mem_page_aug(&td(), Gpa(0x5000), page(0x2000)).unwrap();
    assert_eq!(mapped.hpa(), Hpa(0x2000));
    let calls = script.calls.borrow();
    assert_eq!(calls.len(), 3);
    assert!(calls.iter().all(|regs| *regs == calls[0]));
    assert_eq!(
        (calls[0].rcx, calls[0].rdx, calls[0].r8),
        (0x5000, 0x1000, 0x2000)
    );
    let waited: Vec<_> = pauses.0.borrow().iter().map(|p| (p.tries, p.us)).collect();
    assert_eq!(waited, [(1, 1), (2, 2)]);
    let aug = counters.leaf(Leaf::MemPageAug);
    assert_eq!((aug.calls, aug.busy, aug.illegal), (3, 2, 0));
    assert_eq!(counters.retry(Reason::Busy).retries, 2);
}

#[test]
fn a_module_that_stays_busy_is_given_up_and_the_page_comes_back() {
    for reason in Reason::ALL {
        let status = match reason {
            Reason::Busy => Status::OPERAND_BUSY.with(Operand::R8),
            Reason::SysBusy => Status::SYS_BUSY,
            Reason::Interrupted => Status::INTERRUPTED_RESTARTABLE,
            Reason::NoEntropy => Status::RND_NO_ENTROPY,
            Reason::KeyGeneration => Status::KEY_GENERATION_FAILED,
            Reason::EpochBusy => Status::PREVIOUS_TLB_EPOCH_BUSY,
        };
        let (script, counters) = (Script::new(&[status]), Counters::new());
        let tdh = Tdh::new(&script, Pauses::default(), &counters);
        let rejected = tdh
            .mem_page_aug(&td(), Gpa(0), page(0x2000))
            .expect_err("it never is");
        assert_eq!(rejected.error.tries(), reason.max_tries());
        assert_eq!(rejected.error.status(), Some(status));
        assert_eq!(rejected.given.hpa(), Hpa(0x2000));
        assert_eq!(counters.retry(reason).given_up, 1);
        assert_eq!(counters.total().illegal, 0);
    }
}

#[test]
fn a_refusal_is_illegal_and_not_repeated() {
    let refusal = Status::HKID_NOT_FREE;
    let (script, counters) = (Script::new(&[refusal]), Counters::new());
    let tdh = Tdh::new(&script, Pauses::default(), &counters);
    let (error, (page, hkid)) = tdh
        .mng_create(page(0x1000), Hkid::mint(33))
        .expect_err("refused")
        .into_parts();
    assert!(error.is(refusal));
    assert_eq!((page.surrender().0, hkid.surrender()), (Hpa(0x1000), 33));
    assert_eq!(counters.leaf(Leaf::MngCreate).illegal, 1);
    assert_eq!(script.calls.borrow().len(), 1);
}

#[test]
fn who_has_better_things_to_do_tries_once() {
    let busy = Status::OPERAND_BUSY.with(Operand::SEPT_TREE);
    let (script, counters) = (Script::new(&[busy]), Counters::new());
    let tdh = Tdh::new(&script, Pauses::default(), &counters);
    let error = tdh.once().mem_track(&td()).unwrap_err();
    assert_eq!((error.tries(), error.is(Status::OPERAND_BUSY)), (1, true));
    assert_eq!(counters.retry(Reason::Busy), Default::default());
}

#[test]
fn without_a_module_there_is_a_fault_and_nothing_is_counted_as_a_call() {
    let (script, counters) = (Script::new(&[]), Counters::new());
    let tdh = Tdh::new(&script, Never, &counters);
    let error = tdh.sys_init().unwrap_err();
    assert_eq!(error.cause(), Cause::Fault(Fault::NotLoaded));
    assert_eq!((counters.total().calls, counters.faults()), (0, 1));
}

#[test]
fn a_large_page_is_no_control_page() {
    let (script, counters) = (Script::new(&[Status::SUCCESS]), Counters::new());
    let tdh = Tdh::new(&script, Never, &counters);
    let large = Page::mint(Hpa(0x20_0000), PageSize::Size2M).unwrap();
    let rejected = tdh.mng_addcx(&td(), large).expect_err("too large");
    assert_eq!(rejected.given.size(), PageSize::Size2M);
    assert!(script.calls.borrow().is_empty());
}

#[test]
fn a_page_that_the_module_takes_from_elsewhere_stays_donated() {
    // The script leaves RCX unchanged, so the returned address is the GPA, which is another page.
    let (script, counters) = (Script::new(&[Status::SUCCESS]), Counters::new());
    let tdh = Tdh::new(&script, Never, &counters);
    let rejected = tdh
        .mem_page_remove(&td(), Gpa(0x7000), page(0x2000).turn(Donated))
        .expect_err("not that page");
    let cause = Cause::WrongPage {
        expected: Hpa(0x2000),
        told: Hpa(0x7000),
    };
    assert_eq!(rejected.error.cause(), cause);
    let given: Page<Donated> = rejected.given;
    assert_eq!(given.hpa(), Hpa(0x2000));
}

#[test]
fn a_removed_page_is_written_back_under_the_tds_key_and_a_root_page_under_the_modules() {
    let (script, counters) = (Script::new(&[Status::SUCCESS]), Counters::new());
    let tdh = Tdh::new(&script, Never, &counters);
    let position = KeyIdPosition::new(52, 6).unwrap();
    // The page is mapped at its own address, so the RCX that the script leaves is the page.
    let removed = tdh
        .mem_page_remove(&td(), Gpa(0x2000), page(0x2000).turn(Donated))
        .unwrap();
    let removed = tdh.phymem_page_wbinvd(removed, position).unwrap();
    let root = Tdr {
        page: page(0x1000).turn(Donated),
        phase: Keyless::NEW,
    };
    let root = tdh.phymem_page_reclaim_tdr(root, 32).unwrap();
    let root = tdh.phymem_page_wbinvd(root, position).unwrap();
    assert_eq!((removed.hpa(), root.hpa()), (Hpa(0x2000), Hpa(0x1000)));
    let written: Vec<_> = script
        .calls
        .borrow()
        .iter()
        .filter(|regs| regs.rax == Leaf::PhymemPageWbinvd.rax())
        .map(|regs| regs.rcx)
        .collect();
    assert_eq!(written, [40 << 46 | 0x2000, 32 << 46 | 0x1000]);
}

#[test]
fn promotion_takes_512_pages_and_gives_them_back_when_refused() {
    let status = Status::EPT_INVALID_PROMOTE_CONDITIONS;
    let (script, counters) = (Script::new(&[status]), Counters::new());
    let tdh = Tdh::new(&script, Never, &counters);
    let large = Page::mint(Hpa(0x20_0000), PageSize::Size2M).unwrap();
    let mut pages = large.turn(Donated).split().unwrap();
    let first = pages.next().unwrap();
    let short = tdh
        .mem_page_promote(&td(), Gpa(0), pages, page(0x3000).turn(Donated))
        .expect_err("one is missing");
    assert!(script.calls.borrow().is_empty());
    let (rest, sept) = short.given;
    let mut pages = crate::page::Run::from(first);
    for page in rest {
        pages.push(page).unwrap();
    }
    let refused = tdh
        .mem_page_promote(&td(), Gpa(0), pages, sept)
        .expect_err("refused by the module");
    assert_eq!(refused.given.0.len(), 512);
    assert_eq!(script.calls.borrow()[0].rcx, 1, "the merged page's level");
}

#[test]
fn an_interrupted_write_back_of_the_caches_is_resumed() {
    let interrupted = Status::INTERRUPTED_RESUMABLE;
    let (script, counters) = (
        Script::new(&[interrupted, interrupted, Status::SUCCESS]),
        Counters::new(),
    );
    let tdh = Tdh::new(&script, Never, &counters);
    let mut round = CacheWbRound::new();
    assert_eq!(round.step(&tdh), Ok(Step::More));
    assert_eq!(round.step(&tdh), Ok(Step::More));
    assert_eq!(round.step(&tdh), Ok(Step::Done));
    let rcx: Vec<_> = script.calls.borrow().iter().map(|regs| regs.rcx).collect();
    assert_eq!(rcx, [0, 1, 1]);
    assert_eq!(round.interruptions(), 2);
    assert_eq!(counters.leaf(Leaf::PhymemCacheWb).interrupted, 2);
}

#[test]
fn a_storm_of_interrupts_ends_the_round_with_an_error() {
    let (script, counters) = (
        Script::new(&[Status::INTERRUPTED_RESUMABLE]),
        Counters::new(),
    );
    let tdh = Tdh::new(&script, Never, &counters);
    let mut round = CacheWbRound::new();
    let error = loop {
        match round.step(&tdh) {
            Ok(step) => assert_eq!(step, Step::More),
            Err(error) => break error,
        }
    };
    assert_eq!(error.cause(), Cause::NoProgress);
}

#[test]
fn a_tdmr_is_initialised_until_the_module_says_its_end() {
    const GIB: u64 = 1 << 30;
    let (script, counters) = (Script::new(&[Status::SUCCESS]), Counters::new());
    let tdh = Tdh::new(&script, Never, &counters);
    let mut init = TdmrInit::new(Hpa(4 * GIB), 2 * GIB);
    for (told, step, done) in [
        (4 * GIB, Step::More, 0),
        (5 * GIB, Step::More, GIB),
        (5 * GIB, Step::More, GIB),
        (6 * GIB, Step::Done, 2 * GIB),
    ] {
        script.rdx.set(Some(told));
        assert_eq!(init.step(&tdh), Ok(step));
        assert_eq!(init.progress(), (done, 2 * GIB));
    }
}

#[test]
fn a_tdmr_that_never_gets_further_is_an_error() {
    let (script, counters) = (Script::new(&[Status::SUCCESS]), Counters::new());
    script.rdx.set(Some(0));
    let tdh = Tdh::new(&script, Never, &counters);
    let mut init = TdmrInit::new(Hpa(0), 1 << 30);
    let error = loop {
        match init.step(&tdh) {
            Ok(step) => assert_eq!(step, Step::More),
            Err(error) => break error,
        }
    };
    assert_eq!(error.cause(), Cause::NoProgress);
}

#[test]
fn a_large_page_is_written_back_4_kib_at_a_time_under_its_key() {
    let (script, counters) = (Script::new(&[Status::SUCCESS]), Counters::new());
    let tdh = Tdh::new(&script, Never, &counters);
    let position = KeyIdPosition::new(52, 6).unwrap();
    let large = Page::mint(Hpa(0x20_0000), PageSize::Size2M).unwrap();
    let mut work = PageWriteBack::new(large.turn(Donated).returned(40));
    while work.step(&tdh, position) == Ok(Step::More) {}
    assert_eq!(work.finish().unwrap().hpa(), Hpa(0x20_0000));
    let calls = script.calls.borrow();
    assert_eq!(calls.len(), 512);
    assert_eq!(calls[511].rcx, 40 << 46 | 0x3f_f000);
}

#[test]
fn entering_passes_the_guests_registers_and_is_never_repeated() {
    let busy = Status::OPERAND_BUSY.with(Operand::TD_EPOCH);
    let (script, counters) = (Script::new(&[busy]), Counters::new());
    let tdh = Tdh::new(&script, Pauses::default(), &counters);
    let vcpu = Tdvpr::new(page(0x9000).turn(Donated));
    let mut regs = Gprs {
        r12: 7,
        ..Gprs::default()
    };
    let flags = EnterFlags {
        host_recoverability_hint: true,
        resume_l1: false,
    };
    let status = tdh.vp_enter(&vcpu, flags, &mut regs).unwrap();
    assert_eq!(status, busy);
    let calls = script.calls.borrow();
    assert_eq!(calls.len(), 1);
    assert_eq!((calls[0].rcx, calls[0].r12), (0x9000 | 1 << 52, 7));
}
