//! A TD as a host would hold it, and its life through the typed calls.

use seam::abi::metadata::sys;
use seam::abi::{PAGE_1G, PAGE_2M, PAGE_4K, PageSize, TdParams, Xfam};
use seam::address::{Gpa, Hpa, Level};
use seam::hkid::Hkid;
use seam::page::{Cached, Clear, Dirty, Donated, Page};
use seam::tdh::resume::{CacheWbRound, Step};
use seam::tdh::{KeyConfig, Keyed, Keyless, Tdr, Tdvpr};
use zerocopy::{FromZeros, IntoBytes};

use super::{GLOBAL_HKID, LEADERS, Rig, persist, persist_in};

impl Clear for Rig {
    fn clear(&self, hpa: Hpa, size: PageSize) {
        for offset in (0..size.bytes()).step_by(PAGE_4K as usize) {
            self.machine.memory().fill(hpa.0 + offset, 0);
        }
    }
}

pub struct Vcpu {
    pub tdvpr: Tdvpr,
    pub pages: Vec<Page<Donated>>,
    /// CPU that the vCPU is associated with.
    pub lp: u32,
}

/// A TD with its key.
pub struct Td<'r> {
    pub rig: &'r Rig,
    pub tdr: Tdr<Keyed>,
    pub pages: Vec<Page<Donated>>,
    pub vcpus: Vec<Vcpu>,
}

impl<'r> Td<'r> {
    /// Creates a TD up to TDH.MNG.INIT: TDR, keys, TDCS.
    pub fn create(rig: &'r Rig, hkid: Hkid) -> Self {
        let tdh = rig.on(0);
        let given = (rig.frames.take_4k(), hkid);
        let tdr = persist(given, |(page, hkid)| tdh.mng_create(page, hkid));
        for lp in LEADERS {
            let config = persist_in(|| rig.on(lp).mng_key_config(&tdr));
            assert_eq!(config, KeyConfig::Configured);
        }
        let size = persist_in(|| tdh.sys_rd(sys::TDCS_BASE_SIZE.id));
        let pages = (0..size / PAGE_4K)
            .map(|_| persist(rig.frames.take_4k(), |page| tdh.mng_addcx(&tdr, page)))
            .collect();
        let mut params = TdParams::new_zeroed();
        params.xfam = Xfam::X87 | Xfam::SSE;
        params.max_vcpus = 2;
        params.eptp_controls = 0x1e;
        params.tsc_frequency = 40;
        let params = rig.buffer(params.as_bytes());
        persist_in(|| tdh.mng_init(&tdr, params));
        Self {
            rig,
            tdr,
            pages,
            vcpus: Vec::new(),
        }
    }

    /// Adds a vCPU that is initialised on `lp`.
    pub fn add_vcpu(&mut self, lp: u32) {
        let (rig, tdh) = (self.rig, self.rig.on(lp));
        let tdvpr = persist(rig.frames.take_4k(), |page| tdh.vp_create(&self.tdr, page));
        let size = persist_in(|| tdh.sys_rd(sys::TDVPS_BASE_SIZE.id));
        let pages = (1..size / PAGE_4K)
            .map(|_| persist(rig.frames.take_4k(), |page| tdh.vp_addcx(&tdvpr, page)))
            .collect();
        persist_in(|| tdh.vp_init(&tdvpr, 0x1234, None));
        self.vcpus.push(Vcpu { tdvpr, pages, lp });
    }

    /// Adds the S-EPT page under the entry of `level` at `gpa`.
    pub fn add_sept(&mut self, gpa: u64, level: Level) {
        let page = persist(self.rig.frames.take_4k(), |page| {
            self.rig
                .on(0)
                .mem_sept_add(&self.tdr, Gpa(gpa), level, page)
        });
        self.pages.push(page);
    }

    /// Adds a measured page at `gpa`.
    pub fn add_page(&mut self, gpa: u64, content: &[u8]) {
        let tdh = self.rig.on(0);
        let source = self.rig.buffer(content);
        let page = persist(self.rig.frames.take_4k(), |page| {
            tdh.mem_page_add(&self.tdr, Gpa(gpa), page, source)
        });
        for chunk in (gpa..gpa + PAGE_4K).step_by(256) {
            persist_in(|| tdh.mr_extend(&self.tdr, Gpa(chunk)));
        }
        self.pages.push(page);
    }

    /// Maps a pending page at `gpa`.
    pub fn aug(&self, gpa: u64, size: PageSize) -> Page<Donated> {
        persist(self.rig.frames.take(size), |page| {
            self.rig.on(3).mem_page_aug(&self.tdr, Gpa(gpa), page)
        })
    }

    /// Blocks and tracks a range. No vCPU runs, so no CPU uses it afterwards.
    pub fn block_and_track(&self, gpa: u64, level: Level) {
        let tdh = self.rig.on(0);
        persist_in(|| tdh.mem_range_block(&self.tdr, Gpa(gpa), level));
        persist_in(|| tdh.mem_track(&self.tdr));
    }

    /// Builds a runnable TD: 4 KiB at 0, 2 MiB at 2 MiB.
    pub fn build(rig: &'r Rig, hkid: Hkid) -> Self {
        let mut td = Self::create(rig, hkid);
        for level in [Level::Pml4, Level::Pdpt, Level::Pd] {
            td.add_sept(0, level);
        }
        td.add_page(0, b"the first instruction");
        td.add_vcpu(1);
        td.add_vcpu(2);
        persist_in(|| rig.on(0).mr_finalize(&td.tdr));
        let page = td.aug(PAGE_2M, PageSize::Size2M);
        td.pages.push(page);
        td
    }

    /// Changes and removes pages of a running TD in every possible way.
    pub fn reshape(&mut self) {
        let (rig, tdh) = (self.rig, self.rig.on(0));
        // Maps a page, moves it, and removes it.
        let page = self.aug(PAGE_4K, PageSize::Size4K);
        self.block_and_track(PAGE_4K, Level::Pt);
        persist_in(|| tdh.mem_range_unblock(&self.tdr, Gpa(PAGE_4K), Level::Pt));
        self.block_and_track(PAGE_4K, Level::Pt);
        let given = (page, rig.frames.take_4k());
        let moved = persist(given, |(old, new)| {
            tdh.mem_page_relocate(&self.tdr, Gpa(PAGE_4K), old, new)
        });
        rig.put_away(moved.old);
        self.block_and_track(PAGE_4K, Level::Pt);
        rig.put_away(persist(moved.new, |page| {
            tdh.mem_page_remove(&self.tdr, Gpa(PAGE_4K), page)
        }));

        // Splits a large page and joins it again.
        let gpa = 2 * PAGE_2M;
        let large = self.aug(gpa, PageSize::Size2M);
        self.block_and_track(gpa, Level::Pd);
        let given = (large, rig.frames.take_4k());
        let demoted = persist(given, |(page, sept)| {
            tdh.mem_page_demote(&self.tdr, Gpa(gpa), page, sept)
        });
        self.block_and_track(gpa, Level::Pd);
        let given = (demoted.pages, demoted.sept);
        let promoted = persist(given, |(pages, sept)| {
            tdh.mem_page_promote(&self.tdr, Gpa(gpa), pages, sept)
        });
        rig.put_away(promoted.sept);
        self.block_and_track(gpa, Level::Pd);
        rig.put_away(persist(promoted.page, |page| {
            tdh.mem_page_remove(&self.tdr, Gpa(gpa), page)
        }));

        // Adds and removes a table.
        let gpa = PAGE_1G;
        self.add_sept(gpa, Level::Pdpt);
        self.block_and_track(gpa, Level::Pdpt);
        let table = self.pages.pop().unwrap();
        rig.put_away(persist(table, |page| {
            tdh.mem_sept_remove(&self.tdr, Gpa(gpa), Level::Pdpt, page)
        }));
    }

    /// Terminates the TD: frees the HKID first, and the memory after it.
    pub fn terminate(self) -> Hkid {
        let (dead, hkid) = self.release();
        dead.reclaim();
        hkid
    }

    /// Frees the HKID.
    pub fn release(self) -> (Dead<'r>, Hkid) {
        let Self {
            rig,
            tdr,
            mut pages,
            vcpus,
        } = self;
        for vcpu in vcpus {
            persist_in(|| rig.on(vcpu.lp).vp_flush(&vcpu.tdvpr));
            pages.extend(vcpu.pages);
            pages.push(vcpu.tdvpr.into_page());
        }
        let tdh = rig.on(0);
        let tdr = persist(tdr, |tdr| tdh.mng_vpflushdone(tdr));
        for lp in LEADERS {
            let mut round = CacheWbRound::new();
            while persist_in(|| round.step(&rig.on(lp))) == Step::More {}
        }
        let (tdr, hkid) = persist(tdr, |tdr| tdh.mng_key_freeid(tdr));
        (Dead { rig, tdr, pages }, hkid)
    }
}

/// A TD without a key.
pub struct Dead<'r> {
    rig: &'r Rig,
    pub tdr: Tdr<Keyless>,
    /// All pages except the root.
    pub pages: Vec<Page<Donated>>,
}

impl Dead<'_> {
    /// Reclaims all pages.
    pub fn reclaim(self) {
        let Self { rig, tdr, pages } = self;
        for page in pages {
            let page = persist(page, |page| rig.on(3).phymem_page_reclaim(&tdr, page));
            rig.clear_away(page);
        }
        rig.put_away(persist(tdr, |tdr| {
            rig.on(0).phymem_page_reclaim_tdr(tdr, GLOBAL_HKID)
        }));
    }
}

impl Rig {
    /// Writes back, clears and frees a page that the module returned while its key lives.
    pub fn put_away(&self, page: Page<Cached>) {
        self.clear_away(persist(page, |page| {
            self.on(0).phymem_page_wbinvd(page, self.position)
        }));
    }

    /// Clears and frees a page.
    pub fn clear_away(&self, page: Page<Dirty>) {
        self.frames.give(page.clear(self));
    }
}
