//! Tests of the module's bring-up: whatever fails on the way, nothing is lost and the reason is reported.

mod rig;

use std::cell::Cell;
use std::ops::RangeInclusive;

use host::platform::Platform;
use host::tdx::bring_up::{BringUp, MachineInfo, Ready, bring_up};
use host::tdx::report::{Report, TdxState};
use mm::frames::{Frames, words_for};
use mm::private::{Ledger, Pool};
use rig::{BASE, Event, GLOBAL_HKID, Rig, Setup};
use seam::abi::{Leaf, Operand, PAGE_1G, PAGE_4K, PageSize, Status};
use seam::call::Fault;
use seam::platform::KeyIds;
use stub_module::SysState;

const ALWAYS: RangeInclusive<u64> = 1..=u64::MAX;
const PLAIN: MachineInfo<'_> = machine(&[]);

const fn machine(memory_nodes: &[(u64, u64, u32)]) -> MachineInfo<'_> {
    MachineInfo {
        key_ids: KeyIds {
            shared: 31,
            private: 32,
            max_pa: 52,
            bits: 6,
        },
        memory_nodes,
    }
}

fn up(rig: &Rig) -> (Report, Option<Ready>) {
    bring_up(rig, rig.pool().ledger(), &PLAIN)
}

fn server(setup: Setup) -> Rig {
    Rig::new(&setup)
}

/// Returns the bytes that the module keeps after it was given its memory.
fn pamt_of_default() -> u64 {
    // One GiB in 4 KiB, 2 MiB and 1 GiB pages, 16 bytes for each, in whole pages.
    (PAGE_1G / PAGE_4K + PAGE_1G / (2 << 20)) * 16 + PAGE_4K
}

#[test]
fn the_module_is_ready_and_the_counters_show_the_calls() {
    let rig = server(Setup::default());
    let (tdx, ready) = up(&rig);
    let ready = ready.unwrap();
    assert_eq!((tdx.state, &tdx.reasons), (TdxState::Ready, &vec![]));
    assert_eq!(rig.server().module().state(), SysState::Ready);
    let memory = tdx.memory.unwrap();
    assert_eq!(memory.pamt_bytes(), pamt_of_default());
    assert_eq!(memory.private.bytes(), PAGE_1G - memory.pamt_bytes());
    assert_eq!(rig.out(), (memory.pamt_bytes(), 0));
    assert_eq!(rig.write_backs(), [1; 4]);
    assert_eq!(rig.calls_by_cpu(Leaf::SysLpInit), [1; 4]);
    assert_eq!(rig.calls_by_cpu(Leaf::SysKeyConfig), [1, 0, 1, 0]);
    assert_eq!(ready.global_hkid, GLOBAL_HKID);
    assert_eq!(ready.coordinator.hkids().count().used, 1);
    let steps: Vec<&str> = tdx.steps.iter().map(|step| step.name).collect();
    let expected = [
        "TDH.SYS.INIT",
        "TDH.SYS.LP.INIT",
        "TDH.SYS.RD",
        "TDH.SYS.CONFIG",
        "write back all caches",
        "TDH.SYS.KEY.CONFIG",
        "TDH.SYS.TDMR.INIT",
    ];
    assert_eq!(steps, expected);
    rig.audit();
    assert_eq!(rig.illegal(), 0);
}

#[test]
fn every_page_that_a_td_can_get_is_one_that_the_module_takes() {
    let rig = server(Setup {
        // The second range is in no CMR. The third is in one that has room for its PAMT.
        more_memory: [
            (16 * PAGE_1G, 16 * PAGE_1G + (1 << 20)),
            (32 * PAGE_1G, 32 * PAGE_1G + (24 << 20)),
        ]
        .into(),
        more_cmrs: [(32 * PAGE_1G, 33 * PAGE_1G)].into(),
        ..Setup::default()
    });
    let (tdx, ready) = up(&rig);
    let ready = ready.unwrap();
    let memory = tdx.memory.unwrap();
    assert_eq!(memory.tdmrs.len(), 2);
    assert_eq!(memory.left_out.len(), 1);
    assert_eq!(memory.left_out[0].span.start, 16 * PAGE_1G);
    assert!(memory.left_out[0].why.to_string().contains("CMR"));
    let mut pages = Vec::new();
    for size in [PageSize::Size2M, PageSize::Size4K] {
        while let Some(page) = rig.pool().take(size) {
            rig.tdh().phymem_page_rdmd(page.hpa()).unwrap();
            pages.push(page);
        }
    }
    let bytes: u64 = pages.iter().map(|page| page.size().bytes()).sum();
    assert_eq!(bytes, memory.private.bytes());
    let root = pages.pop().unwrap();
    let tdr = ready.coordinator.create(&rig, root).unwrap();
    assert_eq!(tdr.hkid(), GLOBAL_HKID + 1);
    // The remaining memory is for the host only.
    let ledger = rig.pool().ledger();
    let left = ledger.lock().alloc_for_host(0).unwrap();
    assert!((16 * PAGE_1G..17 * PAGE_1G).contains(&left.pa), "{left:?}");
    rig.pool().give(pages.into_iter());
    rig.pool().quarantine(tdr_page(&rig, tdr));
}

/// Tears down a TD that the test does not need any more.
fn tdr_page(
    rig: &Rig,
    tdr: seam::tdh::Tdr<seam::tdh::Keyed>,
) -> seam::page::Page<seam::page::Cached> {
    let tdh = rig.tdh();
    let tdr = tdh.mng_vpflushdone(tdr).unwrap();
    for cpu in [0, 2] {
        let write_back = |_| {
            let start = seam::tdh::CacheWbStart::New;
            rig.tdh().phymem_cache_wb(start).unwrap();
        };
        rig.on_each(&[cpu], &write_back).unwrap();
    }
    let (tdr, hkid) = tdh.mng_key_freeid(tdr).unwrap();
    hkid.surrender();
    tdh.phymem_page_reclaim_tdr(tdr, GLOBAL_HKID).unwrap()
}

#[test]
fn several_tdmrs_are_initialised_by_several_cpus() {
    let places = [16, 32, 48].map(|gib| (gib * PAGE_1G, (gib + 2) * PAGE_1G));
    let rig = server(Setup {
        more_memory: places.into(),
        more_cmrs: places.into(),
        ..Setup::default()
    });
    let nodes = [(0, 20 * PAGE_1G, 0), (20 * PAGE_1G, 100 * PAGE_1G, 1)];
    let (tdx, _) = bring_up(&rig, rig.pool().ledger(), &machine(&nodes));
    assert_eq!(tdx.state, TdxState::Ready);
    let memory = tdx.memory.unwrap();
    let of_nodes: Vec<_> = memory.tdmrs.iter().map(|tdmr| tdmr.node).collect();
    assert_eq!(of_nodes, [Some(0), Some(0), Some(1), Some(1)]);
    let calls = rig.calls_by_cpu(Leaf::SysTdmrInit);
    assert!(calls.iter().all(|calls| *calls >= 256), "{calls:?}");
    assert_eq!(rig.out(), (memory.pamt_bytes(), 0));
}

/// The leafs of the bring-up, and whether they follow the point at which the module has its memory.
const LEAFS: [(Leaf, bool); 6] = [
    (Leaf::SysInit, false),
    (Leaf::SysLpInit, false),
    (Leaf::SysRd, false),
    (Leaf::SysConfig, false),
    (Leaf::SysKeyConfig, true),
    (Leaf::SysTdmrInit, true),
];

/// Returns the busy status of a leaf.
fn busy(leaf: Leaf) -> Status {
    match leaf {
        Leaf::SysTdmrInit => Status::OPERAND_BUSY.with(Operand::RCX),
        _ => Status::SYS_BUSY,
    }
}

#[test]
fn a_busy_call_is_tried_again() {
    for (leaf, _) in LEAFS {
        for status in [busy(leaf), Status::RND_NO_ENTROPY] {
            let rig = server(Setup::default());
            rig.refuse(leaf, 1..=1, status);
            assert_eq!(up(&rig).0.state, TdxState::Ready, "{leaf:?}");
            assert_eq!(rig.pauses(), 1, "{leaf:?}");
            assert_eq!((rig.out().0, rig.illegal()), (pamt_of_default(), 0));
            rig.audit();
        }
    }
}

#[test]
fn a_transient_lack_of_entropy_is_waited_for() {
    let rig = server(Setup {
        hooks: "no-entropy TDH.SYS.INIT call 1
                no-entropy TDH.SYS.LP.INIT calls 1-3
                no-entropy TDH.SYS.KEY.CONFIG calls 1-2"
            .into(),
        ..Setup::default()
    });
    assert_eq!(up(&rig).0.state, TdxState::Ready);
    assert!(rig.pauses() >= 3, "{}", rig.pauses());
}

/// Checks that the bring-up fails if the calls of `leaf` in `calls` return `status`, that the report says so, and that
/// nothing is lost in the ledger.
fn fails(leaf: Leaf, calls: RangeInclusive<u64>, status: Status, has_memory: bool) {
    let rig = server(Setup::default());
    rig.refuse(leaf, calls, status);
    let (tdx, ready) = up(&rig);
    assert!(ready.is_none());
    assert_eq!(tdx.state, TdxState::Failed);
    let reason = &tdx.reasons[0];
    assert!(reason.contains(leaf.name()), "{reason}");
    assert!(reason.contains(status.name().unwrap()), "{reason}");
    let last = tdx.steps.last().unwrap();
    assert_eq!(
        (last.name, last.error.as_ref()),
        (leaf.name(), Some(reason))
    );
    let pamt = if has_memory { pamt_of_default() } else { 0 };
    assert_eq!(rig.out(), (pamt, 0), "{leaf:?}");
    assert_eq!(tdx.memory.is_some(), has_memory);
    rig.audit();
}

#[test]
fn a_permanently_busy_call_fails() {
    for (leaf, has_memory) in LEAFS {
        fails(leaf, ALWAYS, busy(leaf), has_memory);
    }
}

#[test]
fn a_permanent_lack_of_entropy_fails() {
    for (leaf, has_memory) in LEAFS {
        let status = match leaf {
            Leaf::SysKeyConfig => Status::KEY_GENERATION_FAILED,
            _ => Status::RND_NO_ENTROPY,
        };
        fails(leaf, ALWAYS, status, has_memory);
    }
}

#[test]
fn a_refusal_of_any_call_ends_the_bring_up() {
    for (leaf, has_memory) in LEAFS {
        let first = server(Setup::default());
        up(&first);
        let calls = first.calls(leaf);
        assert!(calls > 0);
        for call in 1..=calls {
            let refused = Status::OPERAND_INVALID.with(Operand::RCX);
            fails(leaf, call..=call, refused, has_memory);
        }
    }
}

#[test]
fn a_machine_without_a_module_has_no_tdx() {
    for fault in [Fault::NotLoaded, Fault::NotEnabled] {
        let rig = server(Setup::default());
        rig.fault(Leaf::SysInit, ALWAYS, fault);
        let (tdx, ready) = up(&rig);
        assert!(ready.is_none());
        assert_eq!(tdx.state, TdxState::Unavailable);
        assert_eq!(rig.out(), (0, 0));
    }
}

#[test]
fn the_hkid_of_a_failed_configuration_is_accounted_for() {
    let rig = server(Setup::default());
    rig.refuse(Leaf::SysConfig, 1..=1, Status::OPERAND_INVALID);
    up(&rig);
    assert_eq!(seam::hkid::lost_hkids(), 0);
}

#[test]
fn without_free_memory_there_are_no_tdmrs() {
    let rig = server(Setup::default());
    let ledger = rig.pool().ledger();
    let all = ledger.lock().alloc(18).unwrap();
    let (tdx, _) = up(&rig);
    assert_eq!(tdx.state, TdxState::Failed);
    assert!(tdx.reasons[0].contains("no TDMRs"), "{:?}", tdx.reasons);
    ledger.lock().free(all).unwrap();
    assert_eq!(rig.out(), (0, 0));
    assert_eq!(rig.calls(Leaf::SysConfig), 0);
}

#[test]
fn without_memory_for_the_list_of_tdmrs_the_pamt_is_free_again() {
    let rig = server(Setup::default());
    let all = rig.pool().ledger().lock().alloc(18).unwrap();
    // The plan's memory comes from another allocator than the list's.
    let ledger = spin::Mutex::new(frames());
    let (tdx, _) = bring_up(&rig, &ledger, &PLAIN);
    assert!(
        tdx.reasons[0].contains("the list of TDMRs"),
        "{:?}",
        tdx.reasons
    );
    assert_eq!(ledger.lock().counts()[18].free, 1);
    assert_eq!(rig.calls(Leaf::SysConfig), 0);
    rig.pool().ledger().lock().free(all).unwrap();
}

#[test]
fn memory_taken_between_plan_and_pamt_fails_the_bring_up_and_the_rest_is_freed() {
    /// A ledger that loses most of its memory once the plan is made, which takes two looks.
    struct Thief {
        frames: spin::Mutex<Frames>,
        looks: Cell<u32>,
    }
    impl Ledger for Thief {
        fn with<R>(&self, work: impl FnOnce(&mut Frames) -> R) -> R {
            let mut frames = self.frames.lock();
            self.looks.set(self.looks.get() + 1);
            if self.looks.get() == 3 {
                let stolen = (BASE + 16 * PAGE_4K, BASE + PAGE_1G - 16 * PAGE_4K);
                frames.alloc_range(stolen).unwrap();
            }
            work(&mut frames)
        }
    }
    let rig = server(Setup::default());
    let thief = Thief {
        frames: spin::Mutex::new(frames()),
        looks: Cell::new(0),
    };
    let (tdx, _) = bring_up(&rig, &thief, &PLAIN);
    assert!(
        tdx.reasons[0].contains("no memory for the PAMT"),
        "{:?}",
        tdx.reasons
    );
    let free: u64 = thief.frames.free_ranges().iter().map(|r| r.1 - r.0).sum();
    assert_eq!(free, 32 * PAGE_4K);
}

fn frames() -> Frames {
    let span = (BASE, BASE + PAGE_1G);
    let mut frames = Frames::new();
    let words = Box::leak(vec![0; words_for(span)].into_boxed_slice());
    frames.add_zone(span, words).unwrap();
    frames.add(span).unwrap();
    frames
}

/// Checks that the bring-up fails with `reason` because CPUs do not answer after `event`.
fn silence(cpus: &[u32], event: Option<Event>, reason: &str, used: u64) {
    let rig = server(Setup::default());
    for &cpu in cpus {
        match event {
            Some(event) => rig.set_silent_after(cpu, event),
            None => rig.set_silent(cpu, true),
        }
    }
    let (tdx, ready) = up(&rig);
    assert!(ready.is_none());
    assert_eq!(
        (tdx.state, &tdx.reasons[..]),
        (TdxState::Failed, &[reason.into()][..])
    );
    assert_eq!(rig.out(), (used, 0));
}

#[test]
fn a_cpu_that_does_not_answer_is_named() {
    let reason = "TDH.SYS.LP.INIT: no answer from CPU 3";
    silence(&[3], None, reason, 0);
    let after = Some(Event::Call(Leaf::SysLpInit));
    silence(
        &[3],
        after,
        "WBINVD: no answer from CPU 3",
        pamt_of_default(),
    );
    let reason = "TDH.SYS.KEY.CONFIG on package 1: no answer from CPU 2, 3";
    silence(&[2, 3], Some(Event::WriteBack), reason, pamt_of_default());
}

#[test]
fn another_cpu_of_the_package_configures_the_key_for_a_silent_one() {
    let rig = server(Setup::default());
    rig.set_silent_after(2, Event::WriteBack);
    assert_eq!(up(&rig).0.state, TdxState::Ready);
    assert_eq!(rig.calls_by_cpu(Leaf::SysKeyConfig), [1, 0, 0, 1]);
}

#[test]
fn the_tdmr_of_a_cpu_that_falls_silent_is_finished_by_others() {
    let place = (16 * PAGE_1G, 17 * PAGE_1G);
    let rig = server(Setup {
        more_memory: [place].into(),
        more_cmrs: [place].into(),
        ..Setup::default()
    });
    rig.set_silent_after(1, Event::Call(Leaf::SysTdmrInit));
    let (tdx, _) = up(&rig);
    assert_eq!(tdx.state, TdxState::Ready);
    assert_eq!(rig.server().module().state(), SysState::Ready);
    let calls = rig.calls_by_cpu(Leaf::SysTdmrInit);
    assert!(calls[1] > 0 && calls[2] > 0, "{calls:?}");
}

/// Fails a bring-up by the calls of `leaf` in `calls`, and continues it afterwards.
fn fails_and_goes_on(leaf: Leaf, calls: RangeInclusive<u64>, status: Status) {
    let rig = server(Setup::default());
    rig.refuse(leaf, calls, status);
    let mut bring_up = BringUp::new(&PLAIN);
    assert!(bring_up.go_on(&rig, rig.pool().ledger()).is_none());
    assert_eq!(bring_up.report().state, TdxState::Failed);
    assert!(bring_up.can_go_on(), "{leaf:?}");
    // It can fail again.
    assert!(bring_up.go_on(&rig, rig.pool().ledger()).is_none());
    assert_eq!(bring_up.report().reasons.len(), 1);
    rig.refuse_no_more();
    let ready = bring_up.go_on(&rig, rig.pool().ledger()).unwrap();
    let report = bring_up.report();
    assert_eq!((report.state, &report.reasons), (TdxState::Ready, &vec![]));
    assert!(report.us.is_some());
    assert_eq!(report.steps.len(), 7, "{:?}", report.steps);
    assert!(report.steps.iter().all(|step| step.error.is_none()));
    assert_eq!(rig.server().module().state(), SysState::Ready);
    assert_eq!(rig.illegal(), 0, "{leaf:?}: what is done is not done again");
    assert_eq!(rig.calls_by_cpu(Leaf::SysLpInit).len(), 4);
    assert_eq!(rig.out(), (pamt_of_default(), 0));
    assert_eq!(
        (ready.global_hkid, seam::hkid::lost_hkids()),
        (GLOBAL_HKID, 0)
    );
    rig.audit();
}

#[test]
fn a_bring_up_goes_on_from_the_step_that_failed_for_a_passing_reason() {
    for (leaf, _) in LEAFS {
        fails_and_goes_on(leaf, ALWAYS, busy(leaf));
    }
    fails_and_goes_on(Leaf::SysKeyConfig, ALWAYS, Status::KEY_GENERATION_FAILED);
    // The first package has its key, and three CPUs are initialised.
    fails_and_goes_on(Leaf::SysKeyConfig, 2..=u64::MAX, Status::SYS_BUSY);
    fails_and_goes_on(Leaf::SysLpInit, 4..=u64::MAX, Status::SYS_BUSY);
}

#[test]
fn a_bring_up_that_failed_for_good_does_not_go_on() {
    for (leaf, _) in LEAFS {
        let rig = server(Setup::default());
        rig.refuse(leaf, ALWAYS, Status::OPERAND_INVALID);
        let mut bring_up = BringUp::new(&PLAIN);
        assert!(bring_up.go_on(&rig, rig.pool().ledger()).is_none());
        assert!(!bring_up.can_go_on(), "{leaf:?}");
    }
}

#[test]
fn a_cpu_that_answers_again_lets_the_bring_up_go_on() {
    let rig = server(Setup::default());
    rig.set_silent(3, true);
    let mut bring_up = BringUp::new(&PLAIN);
    assert!(bring_up.go_on(&rig, rig.pool().ledger()).is_none());
    assert!(bring_up.can_go_on());
    rig.set_silent(3, false);
    assert!(bring_up.go_on(&rig, rig.pool().ledger()).is_some());
    assert_eq!(rig.calls_by_cpu(Leaf::SysLpInit), [1; 4]);
}
