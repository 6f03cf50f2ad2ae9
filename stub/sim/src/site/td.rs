//! A TD whose memory is to be taken back: built by the production code, with a vCPU on every CPU.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hypervisor::platform::Platform;
use hypervisor::tdx::release::{Ending, Release, Released, Vcpus};
use mm::private::{Clearing, Levels, NoneRuns, Plan, Pool, PrivateMap, Settings};
use seam::abi::metadata::{Field, sys};
use seam::abi::{PAGE_1G, PAGE_2M, PAGE_4K, PageSize, TdParams};
use seam::address::Gpa;
use seam::page::{Clean, Donated, Page};
use seam::tdh::{EnterFlags, Tdvpr};
use stub_module::host::{Exit, Guest, HostMachine};
use stub_module::vcpu::{Field as VcpuField, Gpr, Vcpu as InGuest};
use zerocopy::{FromZeros, IntoBytes};

use super::session::{Reclaimer, Session};
use crate::error::{Error, failed};

/// How large the pages are that a TD's memory is mapped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Large,
    /// 1 GiB.
    Huge,
}

/// A TD.
pub struct Td<'a, 's> {
    session: &'a Session<'s>,
    map: PrivateMap,
    release: Release,
    control: Vec<Page<Donated>>,
    vcpus: Mutex<Vec<Vcpu>>,
}

struct Vcpu {
    tdvpr: Tdvpr,
    /// The CPU that it is associated with.
    cpu: Option<u32>,
}

impl<'a, 's> Td<'a, 's> {
    /// One that is finalised and has so many bytes, a multiple of 2 MiB, or of 1 GiB for pages of that size.
    ///
    /// # Errors
    /// What was refused.
    pub fn new(session: &'a Session<'s>, bytes: u64, leaves: Leaves) -> Result<Self, Error> {
        let td = Self::without_memory(session)?;
        match leaves {
            Leaves::Small => {
                td.populate(0..bytes)?;
                td.split(bytes)?;
                td.finalize()?;
            }
            Leaves::Large => {
                td.populate(0..bytes)?;
                td.finalize()?;
            }
            Leaves::Huge => {
                let held = Held::take(session, bytes)?;
                let populated = td.populate(0..bytes);
                held.give(session);
                populated?;
                td.finalize()?;
                td.join(bytes)?;
            }
        }
        Ok(td)
    }

    /// One that is initialised, with its vCPUs.
    fn without_memory(session: &'a Session<'s>) -> Result<Self, Error> {
        let tdr = session
            .coordinator()
            .create(session, frame(session)?)
            .map_err(|(error, _)| Error::new("TDH.MNG.CREATE", error))?;
        let cpus = session.cpus();
        let mut leaders: Vec<u32> = Vec::new();
        let mut packages = Vec::new();
        for place in cpus {
            if !packages.contains(&place.package) {
                packages.push(place.package);
                leaders.push(place.cpu);
            }
        }
        on_one_by_one(session, &leaders, |_| {
            session.tdh().mng_key_config(&tdr).map(drop)
        })?;
        let tdh = session.tdh();
        let pages = |field: Field| {
            let bytes = tdh.sys_rd(field.id).map_err(failed("TDH.SYS.RD"))?;
            Ok::<u64, Error>(bytes / PAGE_4K)
        };
        let mut control = Vec::new();
        for _ in 0..pages(sys::TDCS_BASE_SIZE)? {
            let page = tdh.mng_addcx(&tdr, frame(session)?);
            control.push(page.map_err(|refused| Error::new("TDH.MNG.ADDCX", refused.error))?);
        }
        let buffer = frame(session)?;
        let params = parameters(cpus.len() as u16);
        session.write(buffer.hpa(), params.as_bytes());
        tdh.mng_init(&tdr, buffer.hpa())
            .map_err(failed("TDH.MNG.INIT"))?;
        session.pool().give(std::iter::once(buffer));
        let mut vcpus = Vec::new();
        for place in cpus {
            let tdvpr = tdh.vp_create(&tdr, frame(session)?);
            let tdvpr = tdvpr.map_err(|refused| Error::new("TDH.VP.CREATE", refused.error))?;
            for _ in 1..pages(sys::TDVPS_BASE_SIZE)? {
                let page = tdh.vp_addcx(&tdvpr, frame(session)?);
                control.push(page.map_err(|refused| Error::new("TDH.VP.ADDCX", refused.error))?);
            }
            on_one_by_one(session, &[place.cpu], |_| {
                session.tdh().vp_init(&tdvpr, 0, None)
            })?;
            let cpu = Some(place.cpu);
            vcpus.push(Vcpu { tdvpr, cpu });
        }
        let hkid = tdr.hkid();
        let settings = Settings {
            limit: session.site().room(),
            levels: Levels::Four,
            keyid: session.site().keyid_position()?,
        };
        let map = PrivateMap::new(tdr, settings)
            .map_err(|(error, _)| Error::new("the private map", error))?;
        Ok(Self {
            session,
            map,
            release: Release::new(hkid),
            control,
            vcpus: Mutex::new(vcpus),
        })
    }

    fn populate(&self, range: std::ops::Range<u64>) -> Result<(), Error> {
        self.session
            .with(|cpu| self.map.populate(cpu, range))
            .map(drop)
            .map_err(failed("giving memory"))
    }

    fn finalize(&self) -> Result<(), Error> {
        let tdh = self.session.tdh();
        self.map.finalize(&tdh).map_err(failed("TDH.MR.FINALIZE"))
    }

    /// Makes 4 KiB pages of all pages.
    fn split(&self, bytes: u64) -> Result<(), Error> {
        for gpa in (0..bytes).step_by(PAGE_2M as usize) {
            self.session
                .with(|cpu| self.map.demote(cpu, Gpa(gpa), PageSize::Size2M, &NoneRuns))
                .map_err(failed("TDH.MEM.PAGE.DEMOTE"))?;
        }
        Ok(())
    }

    /// Makes 1 GiB pages of all pages, which the guest has to accept first.
    fn join(&self, bytes: u64) -> Result<(), Error> {
        let machine = self.session.site().server().machine();
        let lp = self.session.machine().lp();
        let script = Accept {
            next: 0,
            end: bytes,
        };
        machine.set_guest(lp, Some(Box::new(script)));
        let mut regs = seam::abi::Gprs::default();
        let entered = {
            let tdh = self.session.tdh();
            let vcpus = self.vcpus();
            let first = vcpus
                .first()
                .ok_or_else(|| Error::new("the guest", "no vCPU"))?;
            tdh.vp_enter(&first.tdvpr, EnterFlags::default(), &mut regs)
        };
        machine.set_guest(lp, None);
        entered.map_err(failed("TDH.VP.ENTER"))?;
        for gpa in (0..bytes).step_by(PAGE_1G as usize) {
            self.session
                .with(|cpu| self.map.promote(cpu, Gpa(gpa), PageSize::Size1G, &NoneRuns))
                .map_err(failed("TDH.MEM.PAGE.PROMOTE"))?;
        }
        Ok(())
    }

    /// Its memory.
    pub const fn map(&self) -> &PrivateMap {
        &self.map
    }

    /// Gives its HKID back.
    ///
    /// # Errors
    /// What was in the way.
    pub fn release(&self) -> Result<Released, Error> {
        let ending = Ending {
            map: &self.map,
            vcpus: self,
            release: &self.release,
        };
        let mut results = self.session.coordinator().release(self.session, &[ending]);
        match results.pop() {
            Some(result) => result.map_err(failed("the release of the HKID")),
            None => Err(Error::new("the release of the HKID", "no answer")),
        }
    }

    /// Begins to reclaim all that it has left. It has no HKID any more.
    ///
    /// # Errors
    /// What was in the way.
    pub fn reclaim(&mut self) -> Result<Reclaimer<'_>, Error> {
        let mut control = std::mem::take(&mut self.control);
        let vcpus = std::mem::take(&mut *self.vcpus());
        control.extend(vcpus.into_iter().map(|vcpu| vcpu.tdvpr.into_page()));
        let plan = Plan {
            cpus: self.session.cpus().len() as u32,
            clearing: Clearing::Clear,
            global_hkid: self.session.site().global_hkid(),
        };
        Reclaimer::new(&self.map, control, plan, self.session)
            .map_err(|(error, ..)| Error::new("reclaim", error))
    }

    fn vcpus(&self) -> MutexGuard<'_, Vec<Vcpu>> {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vcpus for Td<'_, '_> {
    fn cpus(&self) -> Vec<u32> {
        self.vcpus().iter().filter_map(|vcpu| vcpu.cpu).collect()
    }

    fn flush_here(&self) -> Result<(), seam::error::Error> {
        let here = Some(self.session.this_cpu());
        for vcpu in self.vcpus().iter_mut().filter(|vcpu| vcpu.cpu == here) {
            self.session.tdh().vp_flush(&vcpu.tdvpr)?;
            vcpu.cpu = None;
        }
        Ok(())
    }
}

/// Does `work` on one CPU after the other.
fn on_one_by_one(
    session: &Session<'_>,
    cpus: &[u32],
    work: impl Fn(u32) -> Result<(), seam::error::Error> + Sync,
) -> Result<(), Error> {
    for cpu in cpus {
        let result = Mutex::new(Ok(()));
        let on_it = |cpu| *result.lock().unwrap_or_else(PoisonError::into_inner) = work(cpu);
        session.on_each(&[*cpu], &on_it).map_err(failed("a CPU"))?;
        result
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .map_err(failed("a CPU"))?;
    }
    Ok(())
}

/// What the TD is made with.
pub fn parameters(vcpus: u16) -> TdParams {
    /// x87 and SSE, without which there is no XFAM.
    const XFAM: u64 = 3;
    /// Four levels, write-back.
    const EPTP_CONTROLS: u64 = 0x1e;
    /// 1 GHz, in units of 25 MHz.
    const TSC_FREQUENCY: u16 = 40;
    let mut params = TdParams::new_zeroed();
    params.xfam = XFAM;
    params.max_vcpus = vcpus;
    params.eptp_controls = EPTP_CONTROLS;
    params.tsc_frequency = TSC_FREQUENCY;
    params
}

fn frame(session: &Session<'_>) -> Result<Page<Clean>, Error> {
    let frame = session.pool().take(PageSize::Size4K);
    frame.ok_or_else(|| Error::new("a frame", "there is none"))
}

/// Frames that are kept out of the way while a TD gets whole gigabytes: all that is broken already, but for enough
/// single ones for the TD's S-EPT.
struct Held(Vec<Page<Clean>>);

impl Held {
    fn take(session: &Session<'_>, bytes: u64) -> Result<Self, Error> {
        let sept = bytes / PAGE_1G + 2;
        let mut singles = Vec::new();
        for _ in 0..2 * sept {
            singles.push(frame(session)?);
        }
        let mut held = Vec::new();
        for (at, page) in singles.into_iter().enumerate() {
            if at % 2 == 0 {
                held.push(page);
            } else {
                session.pool().give(std::iter::once(page));
            }
        }
        let is_broken = || {
            use mm::frames::{ORDER_1G, ORDER_2M};
            use mm::private::Ledger;
            session.pool().ledger().with(|frames| {
                let broken = &frames.counts()[ORDER_2M as usize..ORDER_1G as usize];
                broken.iter().any(|counts| counts.free > 0)
            })
        };
        while is_broken() {
            let large = session.pool().take(PageSize::Size2M);
            held.push(large.ok_or_else(|| Error::new("a frame", "there is none"))?);
        }
        Ok(Self(held))
    }

    fn give(self, session: &Session<'_>) {
        session.pool().give(self.0.into_iter());
    }
}

/// A guest that accepts its memory, 2 MiB at a time, and is then interrupted.
struct Accept {
    next: u64,
    end: u64,
}

impl Guest for Accept {
    fn run(&mut self, machine: &HostMachine, _: u32, vcpu: &InGuest<'_>) {
        /// The exit reason of TDCALL and the instruction's length.
        const TDCALL: u32 = 77;
        const LENGTH: u32 = 4;
        /// TDG.MEM.PAGE.ACCEPT.
        const ACCEPT: u64 = 6;
        /// What makes the guest a 64-bit one: EFER.LMA, and L in the code segment's access rights.
        const LMA: u64 = 1 << 10;
        const L: u64 = 1 << 13;
        if self.next == self.end {
            return Exit::EXTERNAL_INTERRUPT.leave(machine, vcpu);
        }
        vcpu.set_vmcs(VcpuField::EFER, vcpu.vmcs(VcpuField::EFER) | LMA);
        vcpu.set_vmcs(VcpuField::CS_ACCESS, vcpu.vmcs(VcpuField::CS_ACCESS) | L);
        vcpu.set_gpr(Gpr::Rax, ACCEPT);
        vcpu.set_gpr(Gpr::Rcx, self.next | PageSize::Size2M as u64);
        self.next += PAGE_2M;
        let exit = Exit {
            instruction_length: LENGTH,
            ..Exit::of(TDCALL)
        };
        exit.leave(machine, vcpu);
    }
}
