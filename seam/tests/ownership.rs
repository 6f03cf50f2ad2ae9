//! Page ownership: the host's tokens agree with the module's PAMT after any sequence of calls.
//!
//! Random calls, most of them refused, are made on one TD. After each call, every page that the host holds as donated
//! belongs to the TD in the PAMT, with the same size, and the allocator's ledger counts as many frames as there are
//! tokens. In the end everything is reclaimed.

#![expect(
    clippy::disallowed_methods,
    reason = "the test plays the allocator and the pool"
)]

mod rig;

use proptest::prelude::*;
use rig::{GLOBAL_HKID, LEADERS, Rig, Td};
use seam::abi::{PAGE_2M, PAGE_4K, PageSize, PageType};
use seam::address::{Gpa, Hpa, Level};
use seam::error::Rejected;
use seam::hkid::Hkid;
use seam::page::{Dirty, Donated, Page, Run};
use seam::retry::Never;
use seam::tdh::resume::{CacheWbRound, Step};
use seam::tdh::{Keyed, Keyless, Releasing, Tdh, Tdr, Tdvpr};

const GPAS: [u64; 5] = [0, PAGE_4K, PAGE_2M, PAGE_2M + PAGE_4K, 2 * PAGE_2M];

/// A call that the host may try. Numbers select among the existing objects.
#[derive(Clone, Copy, Debug)]
enum Action {
    SeptAdd(usize, Level),
    SeptRemove(usize),
    PageAdd(usize),
    PageAug(usize, PageSize),
    Block(usize, Level),
    Unblock(usize, Level),
    Track,
    Remove(usize),
    Relocate(usize),
    Demote(usize),
    Promote(usize),
    AddVcpu(u32),
    Finalize,
    Flush(usize, u32),
    VpFlushDone,
    CacheWb(u32),
    KeyFreeId,
    Reclaim(usize),
    ReclaimRoot,
}

fn action() -> impl Strategy<Value = Action> {
    use Action as A;
    let gpa = 0..GPAS.len();
    let level = prop::sample::select(vec![Level::Pt, Level::Pd, Level::Pdpt, Level::Pml4]);
    let size = prop::sample::select(PageSize::ALL.to_vec());
    prop_oneof![
        4 => (gpa.clone(), level.clone()).prop_map(|(gpa, level)| A::SeptAdd(gpa, level)),
        1 => any::<usize>().prop_map(A::SeptRemove),
        2 => gpa.clone().prop_map(A::PageAdd),
        8 => (gpa.clone(), size).prop_map(|(gpa, size)| A::PageAug(gpa, size)),
        6 => (gpa.clone(), level.clone()).prop_map(|(gpa, level)| A::Block(gpa, level)),
        2 => (gpa.clone(), level).prop_map(|(gpa, level)| A::Unblock(gpa, level)),
        4 => Just(A::Track),
        4 => any::<usize>().prop_map(A::Remove),
        2 => any::<usize>().prop_map(A::Relocate),
        4 => any::<usize>().prop_map(A::Demote),
        4 => gpa.prop_map(A::Promote),
        1 => (0u32..4).prop_map(A::AddVcpu),
        1 => Just(A::Finalize),
        1 => (any::<usize>(), 0u32..4).prop_map(|(vcpu, lp)| A::Flush(vcpu, lp)),
        1 => Just(A::VpFlushDone),
        1 => (0u32..4).prop_map(A::CacheWb),
        1 => Just(A::KeyFreeId),
        2 => any::<usize>().prop_map(A::Reclaim),
        1 => Just(A::ReclaimRoot),
    ]
}

enum Root {
    Keyed(Tdr<Keyed>),
    Releasing(Tdr<Releasing>),
    Keyless(Tdr<Keyless>),
    Gone,
}

struct Host<'r> {
    rig: &'r Rig,
    root: Root,
    /// Private pages, with the guest address at which each is mapped.
    leafs: Vec<(u64, Page<Donated>)>,
    tables: Vec<(u64, Level, Page<Donated>)>,
    control: Vec<Page<Donated>>,
    vcpus: Vec<Tdvpr>,
    hkid: Option<Hkid>,
}

impl<'r> Host<'r> {
    /// Creates a TD with its upper tables, so that some calls succeed.
    fn new(rig: &'r Rig) -> Self {
        let mut td = Td::create(rig, Hkid::mint(33));
        td.add_sept(0, Level::Pml4);
        td.add_sept(0, Level::Pdpt);
        Self {
            rig,
            root: Root::Keyed(td.tdr),
            leafs: Vec::new(),
            tables: Vec::new(),
            control: td.pages,
            vcpus: Vec::new(),
            hkid: None,
        }
    }

    fn act(&mut self, action: Action) {
        let calls = self.rig.on(0);
        let tdh = calls.once();
        self.root = match core::mem::replace(&mut self.root, Root::Gone) {
            Root::Keyed(tdr) => self.act_keyed(&tdh, tdr, action),
            Root::Releasing(tdr) => match action {
                Action::CacheWb(lp) => {
                    let mut round = CacheWbRound::new();
                    while round.step(&self.rig.on(lp)) == Ok(Step::More) {}
                    Root::Releasing(tdr)
                }
                Action::KeyFreeId => match tdh.mng_key_freeid(tdr) {
                    Ok((tdr, hkid)) => {
                        self.hkid = Some(hkid);
                        Root::Keyless(tdr)
                    }
                    Err(rejected) => Root::Releasing(rejected.given),
                },
                _ => Root::Releasing(tdr),
            },
            Root::Keyless(tdr) => match action {
                Action::Reclaim(index) => {
                    self.reclaim_one(&tdr, index);
                    Root::Keyless(tdr)
                }
                Action::ReclaimRoot => match tdh.phymem_page_reclaim_tdr(tdr, GLOBAL_HKID) {
                    Ok(page) => {
                        self.rig.put_away(page);
                        Root::Gone
                    }
                    Err(rejected) => Root::Keyless(rejected.given),
                },
                _ => Root::Keyless(tdr),
            },
            Root::Gone => Root::Gone,
        };
    }

    fn act_keyed<C: seam::call::SeamCall>(
        &mut self,
        tdh: &Tdh<'_, C, Never>,
        tdr: Tdr<Keyed>,
        action: Action,
    ) -> Root {
        let (rig, frames) = (self.rig, &self.rig.frames);
        match action {
            Action::SeptAdd(gpa, level) => {
                let gpa = GPAS[gpa] & !(seam::abi::level_bytes(level as u8) - 1);
                match tdh.mem_sept_add(&tdr, Gpa(gpa), level, frames.take_4k()) {
                    Ok(page) => self.tables.push((gpa, level, page)),
                    Err(rejected) => frames.give(rejected.given),
                }
            }
            Action::SeptRemove(index) => {
                if let Some((gpa, level, page)) = pick(&mut self.tables, index) {
                    match tdh.mem_sept_remove(&tdr, Gpa(gpa), level, page) {
                        Ok(page) => rig.put_away(page),
                        Err(rejected) => self.tables.push((gpa, level, rejected.given)),
                    }
                }
            }
            Action::PageAdd(gpa) => {
                let source = rig.buffer(b"content");
                match tdh.mem_page_add(&tdr, Gpa(GPAS[gpa]), frames.take_4k(), source) {
                    Ok(page) => self.leafs.push((GPAS[gpa], page)),
                    Err(rejected) => frames.give(rejected.given),
                }
            }
            Action::PageAug(_, PageSize::Size1G) => {}
            Action::PageAug(gpa, size) => {
                match tdh.mem_page_aug(&tdr, Gpa(GPAS[gpa]), frames.take(size)) {
                    Ok(page) => self.leafs.push((GPAS[gpa], page)),
                    Err(rejected) => frames.give(rejected.given),
                }
            }
            Action::Block(gpa, level) => _ = tdh.mem_range_block(&tdr, Gpa(GPAS[gpa]), level),
            Action::Unblock(gpa, level) => _ = tdh.mem_range_unblock(&tdr, Gpa(GPAS[gpa]), level),
            Action::Track => _ = tdh.mem_track(&tdr),
            Action::Remove(index) => {
                if let Some((gpa, page)) = pick(&mut self.leafs, index) {
                    match tdh.mem_page_remove(&tdr, Gpa(gpa), page) {
                        Ok(page) => rig.put_away(page),
                        Err(rejected) => self.leafs.push((gpa, rejected.given)),
                    }
                }
            }
            Action::Relocate(index) => {
                if let Some((gpa, page)) = pick(&mut self.leafs, index) {
                    let page = match tdh.mem_page_relocate(&tdr, Gpa(gpa), page, frames.take_4k()) {
                        Ok(relocated) => {
                            rig.put_away(relocated.old);
                            relocated.new
                        }
                        Err(Rejected { given, .. }) => {
                            frames.give(given.1);
                            given.0
                        }
                    };
                    self.leafs.push((gpa, page));
                }
            }
            Action::Demote(index) => {
                if let Some((gpa, page)) = pick(&mut self.leafs, index) {
                    match tdh.mem_page_demote(&tdr, Gpa(gpa), page, frames.take_4k()) {
                        Ok(demoted) => {
                            let step = demoted.pages.size().bytes() as usize;
                            self.leafs.extend((gpa..).step_by(step).zip(demoted.pages));
                            self.tables.push((gpa, Level::Pd, demoted.sept));
                        }
                        Err(Rejected { given, .. }) => {
                            frames.give(given.1);
                            self.leafs.push((gpa, given.0));
                        }
                    }
                }
            }
            Action::Promote(gpa) => self.promote(tdh, &tdr, GPAS[gpa] & !(PAGE_2M - 1)),
            Action::AddVcpu(lp) => {
                // Without its pages the vCPU can't be initialised, which is one more way to be refused.
                match rig.on(lp).once().vp_create(&tdr, frames.take_4k()) {
                    Ok(tdvpr) => self.vcpus.push(tdvpr),
                    Err(rejected) => frames.give(rejected.given),
                }
            }
            Action::Finalize => _ = tdh.mr_finalize(&tdr),
            Action::Flush(index, lp) => {
                if let Some(tdvpr) = pick(&mut self.vcpus, index) {
                    _ = rig.on(lp).vp_flush(&tdvpr);
                    self.vcpus.push(tdvpr);
                }
            }
            Action::VpFlushDone => {
                return match tdh.mng_vpflushdone(tdr) {
                    Ok(tdr) => Root::Releasing(tdr),
                    Err(rejected) => Root::Keyed(rejected.given),
                };
            }
            // These calls do not exist for a TD with its key: they would not compile.
            Action::CacheWb(_) | Action::KeyFreeId | Action::Reclaim(_) | Action::ReclaimRoot => {}
        }
        Root::Keyed(tdr)
    }

    /// Tries to join the 512 pages from `gpa` on, if there are 512 and they are adjacent.
    fn promote<C: seam::call::SeamCall>(
        &mut self,
        tdh: &Tdh<'_, C, Never>,
        tdr: &Tdr<Keyed>,
        gpa: u64,
    ) {
        let table = |(at, level, _): &(u64, Level, _)| (*at, *level) == (gpa, Level::Pd);
        let Some(index) = self.tables.iter().position(table) else {
            return;
        };
        self.leafs.sort_by_key(|(at, _)| *at);
        let range = gpa..gpa + PAGE_2M;
        let mut parts: Vec<_> = self
            .leafs
            .extract_if(.., |(at, _)| range.contains(at))
            .collect();
        let mut run: Option<Run<Donated>> = None;
        // The addresses of its pages.
        let mut mapped = Vec::new();
        while !parts.is_empty() {
            let (at, page) = parts.remove(0);
            let refused = match &mut run {
                None => {
                    run = Some(page.into());
                    None
                }
                Some(run) => run.push(page).err(),
            };
            match refused {
                None => mapped.push(at),
                Some(page) => {
                    self.leafs.push((at, page));
                    self.leafs.append(&mut parts);
                }
            }
        }
        let Some(run) = run else { return };
        let sept = self.tables.swap_remove(index).2;
        match tdh.mem_page_promote(tdr, Gpa(gpa), run, sept) {
            Ok(promoted) => {
                self.leafs.push((gpa, promoted.page));
                self.rig.put_away(promoted.sept);
            }
            Err(Rejected { given, .. }) => {
                self.tables.push((gpa, Level::Pd, given.1));
                self.leafs.extend(mapped.into_iter().zip(given.0));
            }
        }
    }

    fn reclaim_one(&mut self, tdr: &Tdr<Keyless>, index: usize) {
        let page = pick(&mut self.leafs, index)
            .map(|(_, page)| page)
            .or_else(|| pick(&mut self.tables, index).map(|(_, _, page)| page))
            .or_else(|| pick(&mut self.vcpus, index).map(Tdvpr::into_page))
            .or_else(|| pick(&mut self.control, index));
        if let Some(page) = page {
            let page: Page<Dirty> = self.rig.on(1).phymem_page_reclaim(tdr, page).unwrap();
            self.rig.frames.give(page.clear(self.rig));
        }
    }

    /// Asserts that the tokens, the ledger and the PAMT agree.
    fn check(&self) {
        let owner = match &self.root {
            Root::Keyed(tdr) => tdr.hpa(),
            Root::Releasing(tdr) => tdr.hpa(),
            Root::Keyless(tdr) => tdr.hpa(),
            Root::Gone => return self.rig.frames.assert_all_back(),
        };
        let leafs = self.leafs.iter().map(|(_, page)| (page, PageType::Reg));
        let tables = self.tables.iter().map(|(.., page)| (page, PageType::Ept));
        let mut held = 1;
        for (page, page_type) in leafs.chain(tables) {
            self.check_page(page.hpa(), page.size(), page_type, owner);
            held += page.size().pages();
        }
        for vcpu in &self.vcpus {
            self.check_page(vcpu.hpa(), PageSize::Size4K, PageType::Tdvpr, owner);
            held += 1;
        }
        held += self.control.len() as u64;
        assert_eq!(self.rig.frames.pages_out(), held);
    }

    fn check_page(&self, hpa: Hpa, size: PageSize, page_type: PageType, owner: Hpa) {
        let metadata = self.rig.on(0).phymem_page_rdmd(hpa).unwrap();
        assert_eq!(metadata.page_type, Some(page_type), "{hpa:?}");
        assert_eq!(metadata.size, Some(size), "{hpa:?}");
        assert_eq!(metadata.owner, owner, "{hpa:?}");
    }

    /// Asserts that everything can be reclaimed, whatever came before.
    fn end(mut self) {
        for lp in 0..4 {
            self.act_all_flushed(lp);
        }
        self.act(Action::VpFlushDone);
        for lp in LEADERS {
            self.act(Action::CacheWb(lp));
        }
        self.act(Action::KeyFreeId);
        self.check();
        while self.rig.frames.pages_out() > 1 {
            self.act(Action::Reclaim(0));
        }
        self.act(Action::ReclaimRoot);
        self.check();
        self.rig.frames.assert_all_back();
        assert_eq!(self.hkid.take().map(Hkid::surrender), Some(33));
        assert_eq!(self.rig.module.violations().total(), 0);
    }

    fn act_all_flushed(&mut self, lp: u32) {
        for index in 0..self.vcpus.len() {
            self.act(Action::Flush(index, lp));
        }
    }
}

fn pick<T>(of: &mut Vec<T>, index: usize) -> Option<T> {
    (!of.is_empty()).then(|| of.swap_remove(index % of.len()))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn tokens_agree_with_the_pamt(actions in prop::collection::vec(action(), 1..120)) {
        let rig = Rig::ready("patterns");
        let mut host = Host::new(&rig);
        for action in actions {
            host.act(action);
            host.check();
        }
        host.end();
    }
}

/// A page that can't be joined stays at its address, whichever frame it is in. A random walk has found this one.
#[test]
fn a_page_alone_is_not_joined_and_stays_where_it_is() {
    let rig = Rig::ready("patterns");
    let mut host = Host::new(&rig);
    for action in [
        Action::SeptAdd(0, Level::Pd),
        Action::PageAdd(0),
        Action::Remove(0),
        Action::PageAug(1, PageSize::Size2M),
        Action::SeptAdd(3, Level::Pd),
        Action::PageAug(2, PageSize::Size4K),
        Action::PageAug(0, PageSize::Size4K),
        Action::Remove(14_489_022_792_489_369_998),
        Action::Promote(1),
        Action::PageAug(1, PageSize::Size4K),
        Action::PageAug(2, PageSize::Size4K),
        Action::Remove(12_632_753_395_050_532_608),
    ] {
        host.act(action);
        host.check();
    }
    host.end();
}

/// The random walk reaches a promotion too rarely to rely on it.
#[test]
fn a_page_that_was_split_can_be_joined_with_tables_and_tokens_in_step() {
    let rig = Rig::ready("patterns");
    let mut host = Host::new(&rig);
    for action in [
        Action::PageAug(2, PageSize::Size2M),
        Action::Demote(0),
        Action::Promote(2),
        Action::Demote(0),
        Action::Remove(7),
        Action::Promote(2),
    ] {
        host.act(action);
        host.check();
    }
    assert_eq!((host.leafs.len(), host.tables.len()), (511, 1));
    host.end();
}
