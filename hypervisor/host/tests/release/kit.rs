//! Initialised TDs with vCPUs, created through the coordinator.

use std::sync::Mutex;

use host::platform::Platform;
use host::tdx::hkids::Count;
use host::tdx::release::{Coordinator, Ending, NotReleased, Release, Released, Vcpus};
use mm::private::{Levels, Pool, PrivateMap, Settings};
use seam::abi::metadata::sys;
use seam::abi::{PAGE_1G, PAGE_4K, PageSize, TdParams, Xfam};
use seam::error::Error;
use seam::page::Donated;
use seam::tdh::Tdvpr;
use zerocopy::{FromZeros, IntoBytes};

use super::rig::{Rig, Setup};

/// A server with its module ready, and its coordinator.
pub struct Host {
    pub rig: Rig,
    pub coordinator: Coordinator,
}

impl Host {
    /// Creates the default server, with the failures that `hooks` describes.
    pub fn new(hooks: &str) -> Self {
        Self::of(&Setup::failing(hooks))
    }

    pub fn of(setup: &Setup) -> Self {
        Self {
            rig: Rig::ready_with(setup),
            coordinator: setup.coordinator(),
        }
    }

    /// Returns the number of HKIDs that TDs have, and of those in quarantine.
    pub fn hkids(&self) -> (usize, usize) {
        let Count {
            used, quarantined, ..
        } = self.coordinator.hkids().count();
        (used - 1, quarantined)
    }

    pub fn release(&self, tds: &[&Td]) -> Vec<Result<Released, NotReleased>> {
        let endings: Vec<_> = tds.iter().map(|td| td.ending()).collect();
        self.coordinator.release(&self.rig, &endings)
    }

    /// Releases one TD.
    pub fn end(&self, td: &Td) -> Result<Released, NotReleased> {
        self.release(&[td]).remove(0)
    }

    /// Checks that everything was given back.
    pub fn assert_spotless(&self) {
        self.rig.assert_spotless();
        assert_eq!(self.hkids(), (0, 0));
    }
}

/// A TD.
pub struct Td {
    rig: Rig,
    pub map: PrivateMap,
    pub release: Release,
    pub hkid: u16,
    control: Vec<seam::page::Page<Donated>>,
    vcpus: Mutex<Vec<Vcpu>>,
}

struct Vcpu {
    tdvpr: Tdvpr,
    cpu: Option<u32>,
}

impl Td {
    /// Creates a TD with a vCPU on each of `cpus`, finalised if there are any.
    pub fn new(host: &Host, cpus: &[u32]) -> Self {
        let rig = &host.rig;
        let frame = || rig.pool().take(PageSize::Size4K).unwrap();
        let tdr = host.coordinator.create(rig, frame()).unwrap();
        for leader in [0, 2] {
            rig.on_each(&[leader], &|_| {
                rig.tdh().mng_key_config(&tdr).unwrap();
            })
            .unwrap();
        }
        let tdh = rig.tdh();
        let pages = |field: seam::abi::metadata::Field| tdh.sys_rd(field.id).unwrap() / PAGE_4K;
        let mut control: Vec<_> = (0..pages(sys::TDCS_BASE_SIZE))
            .map(|_| tdh.mng_addcx(&tdr, frame()).unwrap())
            .collect();
        let mut params = TdParams::new_zeroed();
        params.xfam = Xfam::X87 | Xfam::SSE;
        params.max_vcpus = 4;
        params.eptp_controls = 0x1e;
        params.tsc_frequency = 40;
        let buffer = frame();
        rig.write(buffer.hpa(), params.as_bytes());
        tdh.mng_init(&tdr, buffer.hpa()).unwrap();
        rig.pool().give(std::iter::once(buffer));
        let mut vcpus = Vec::new();
        for &cpu in cpus {
            let tdvpr = tdh.vp_create(&tdr, frame()).unwrap();
            for _ in 1..pages(sys::TDVPS_BASE_SIZE) {
                control.push(tdh.vp_addcx(&tdvpr, frame()).unwrap());
            }
            let init = |_| rig.tdh().vp_init(&tdvpr, 0, None).unwrap();
            rig.on_each(&[cpu], &init).unwrap();
            vcpus.push(Vcpu {
                tdvpr,
                cpu: Some(cpu),
            });
        }
        let hkid = tdr.hkid();
        let settings = Settings {
            limit: 4 * PAGE_1G,
            levels: Levels::Four,
            keyid: rig.keyid_position(),
            sept_limit: u64::MAX,
        };
        let map = PrivateMap::new(tdr, settings).unwrap();
        if !cpus.is_empty() {
            map.finalize(&tdh).unwrap();
        }
        Self {
            rig: rig.clone(),
            map,
            release: Release::new(hkid),
            hkid,
            control,
            vcpus: Mutex::new(vcpus),
        }
    }

    pub fn ending(&self) -> Ending<'_> {
        Ending {
            map: &self.map,
            vcpus: self,
            release: &self.release,
        }
    }

    /// Associates each vCPU with a CPU again, as entering it does.
    pub fn associate(&self, cpu: u32) {
        for vcpu in &mut *self.vcpus.lock().unwrap() {
            if vcpu.cpu.is_none() {
                let tdvpr = &vcpu.tdvpr;
                let enter = |_| {
                    let mut regs = seam::abi::Gprs::default();
                    let flags = seam::tdh::EnterFlags::default();
                    let status = self.rig.tdh().vp_enter(tdvpr, flags, &mut regs).unwrap();
                    assert!(!status.is_error(), "{status:?}");
                };
                self.rig.on_each(&[cpu], &enter).unwrap();
                vcpu.cpu = Some(cpu);
            }
        }
    }

    /// Gives back the control pages of a TD without a key, the root page last.
    pub fn bury(self) {
        let tdr = self.map.take_root().unwrap();
        let (rig, tdh) = (&self.rig, self.rig.tdh());
        let vcpus = self.vcpus.into_inner().unwrap();
        let tdvprs = vcpus.into_iter().map(|vcpu| vcpu.tdvpr.into_page());
        for page in self.control.into_iter().chain(tdvprs) {
            let page = tdh.phymem_page_reclaim(&tdr, page).unwrap();
            rig.pool().give(std::iter::once(rig.pool().clear(page)));
        }
        let page = tdh
            .phymem_page_reclaim_tdr(tdr, super::rig::GLOBAL_HKID)
            .unwrap();
        let page = tdh.phymem_page_wbinvd(page, rig.keyid_position()).unwrap();
        rig.pool().give(std::iter::once(rig.pool().clear(page)));
    }
}

impl Vcpus for Td {
    fn cpus(&self) -> Vec<u32> {
        let vcpus = self.vcpus.lock().unwrap();
        vcpus.iter().filter_map(|vcpu| vcpu.cpu).collect()
    }

    fn flush_here(&self) -> Result<(), Error> {
        let here = Some(self.rig.this_cpu());
        let mut vcpus = self.vcpus.lock().unwrap();
        for vcpu in vcpus.iter_mut().filter(|vcpu| vcpu.cpu == here) {
            self.rig.tdh().vp_flush(&vcpu.tdvpr)?;
            vcpu.cpu = None;
        }
        Ok(())
    }
}
