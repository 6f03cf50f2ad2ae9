//! A model of how Linux ends a TD: one CPU, 4 KiB at a time, with the SEAMCALLs that KVM makes for each page.
//!
//! *Before* KVM knew how to give the HKID back first, it blocked, tracked, kicked every vCPU, removed and wrote back each
//! page on its own while the TD had its key. *After*, it releases the HKID and reclaims each page with one call. Either way
//! it clears the page and does its own books. The order of calls is KVM's (arch/x86/kvm/vmx/tdx.c: tdx_track,
//! tdx_sept_remove_private_spte, tdx_mmu_release_hkid, tdx_vm_destroy); the emulated module executes each of them and
//! would say if one were wrong.
//!
//! The TD is built with bare calls at fixed addresses, past the frame allocator: none of our code has a part in this.

use std::ops::Range;

use seam::abi::metadata::{Field, sys};
use seam::abi::{Gprs, Leaf, Operand, PAGE_1G, PAGE_2M, PAGE_4K, Status};
use seam::address::Hpa;
use zerocopy::IntoBytes;

use crate::cost::{Costs, Item};
use crate::error::Error;
use crate::machine::{Kind, Machine};
use crate::ours::Ended;
use crate::site::{BASE, Site, parameters};

/// When KVM gives the HKID back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// After all private pages.
    Before,
    /// First.
    After,
}

/// A TD that KVM ends.
struct Td<'s> {
    site: &'s Site,
    machine: &'s Machine,
    cpus: u32,
    bytes: u64,
    tdr: u64,
    vcpus: Vec<u64>,
    /// TDCX and the vCPUs' other pages.
    control: Vec<u64>,
    sept: Range<u64>,
    hkid: u16,
    calls: u64,
}

/// Ends a TD of so many bytes, a multiple of 2 MiB, that has a vCPU on each CPU.
///
/// # Errors
/// The call that the module refused.
pub fn end(site: &Site, order: Order, bytes: u64, cpus: u32, costs: Costs) -> Result<Ended, Error> {
    let machine = site.machine();
    machine.reset(site.topology(cpus), costs);
    let mut td = Td::build(site, bytes, cpus)?;
    td.calls = 0;
    machine.begin();
    let mut memory = 0;
    if order == Order::Before {
        for gpa in (0..bytes).step_by(PAGE_4K as usize) {
            td.remove(gpa)?;
        }
        memory = machine.now();
    }
    let write_back = td.release()?;
    let hkid_free = machine.now();
    if order == Order::After {
        for gpa in (0..bytes).step_by(PAGE_4K as usize) {
            td.reclaim(BASE + gpa)?;
        }
    }
    for page in td.sept.clone().step_by(PAGE_4K as usize) {
        td.reclaim(page)?;
    }
    memory += machine.now() - hkid_free;
    td.destroy()?;
    machine.settle();
    let ended = Ended {
        seconds: machine.now() as f64 / PS,
        hkid_free_seconds: hkid_free as f64 / PS,
        memory_seconds: memory as f64 / PS,
        write_back_seconds: write_back as f64 / PS,
        calls: td.calls,
        usage: machine.usage(),
    };
    machine.end();
    Ok(ended)
}

const PS: f64 = 1e12;

impl<'s> Td<'s> {
    fn build(site: &'s Site, bytes: u64, cpus: u32) -> Result<Self, Error> {
        // Private pages from the beginning of memory on, everything else behind them.
        let mut next = BASE + bytes;
        let mut page = move || {
            next += PAGE_4K;
            next - PAGE_4K
        };
        let hkid = site.global_hkid() + 1;
        let mut td = Self {
            site,
            machine: site.machine(),
            cpus,
            bytes,
            tdr: page(),
            vcpus: Vec::new(),
            control: Vec::new(),
            sept: 0..0,
            hkid,
            calls: 0,
        };
        let tdr = td.tdr;
        td.call(
            Leaf::MngCreate,
            [(Operand::RCX, tdr), (Operand::RDX, hkid.into())],
        )?;
        for leader in td.leaders() {
            td.on(leader, Leaf::MngKeyConfig, [(Operand::RCX, tdr)])?;
        }
        for _ in 0..td.pages(sys::TDCS_BASE_SIZE)? {
            let tdcx = page();
            td.call(Leaf::MngAddcx, [(Operand::RCX, tdcx), (Operand::RDX, tdr)])?;
            td.control.push(tdcx);
        }
        let params = parameters(cpus as u16);
        let memory = site.server().machine().memory();
        memory.write(BUFFER, params.as_bytes());
        td.call(Leaf::MngInit, [(Operand::RCX, tdr), (Operand::RDX, BUFFER)])?;
        for cpu in 0..cpus {
            let tdvpr = page();
            td.call(Leaf::VpCreate, [(Operand::RCX, tdvpr), (Operand::RDX, tdr)])?;
            for _ in 1..td.pages(sys::TDVPS_BASE_SIZE)? {
                let tdcx = page();
                td.call(Leaf::VpAddcx, [(Operand::RCX, tdcx), (Operand::RDX, tdvpr)])?;
                td.control.push(tdcx);
            }
            td.on(
                cpu,
                Leaf::VpInit,
                [(Operand::RCX, tdvpr), (Operand::RDX, 0)],
            )?;
            td.vcpus.push(tdvpr);
        }
        td.map(page)?;
        td.call(Leaf::MrFinalize, [(Operand::RCX, tdr)])?;
        Ok(td)
    }

    /// Gives the TD its memory: 2 MiB at a time, each split at once.
    fn map(&mut self, mut page: impl FnMut() -> u64) -> Result<(), Error> {
        let mut first = None;
        let mut last = 0;
        let mut sept = || {
            last = page();
            first.get_or_insert(last);
            last
        };
        let tdr = self.tdr;
        let table = |gpa_and_level, page| {
            [
                (Operand::RCX, gpa_and_level),
                (Operand::RDX, tdr),
                (Operand::R8, page),
            ]
        };
        /// Levels of the entries that point to a table of 512 GiB, and to one of 1 GiB.
        const PML4E: u64 = 3;
        const PDPTE: u64 = 2;
        const PDE: u64 = 1;
        for gpa in (0..self.bytes).step_by(PAGE_2M as usize) {
            if gpa.is_multiple_of(512 * PAGE_1G) {
                self.call(Leaf::MemSeptAdd, table(gpa | PML4E, sept()))?;
            }
            if gpa.is_multiple_of(PAGE_1G) {
                self.call(Leaf::MemSeptAdd, table(gpa | PDPTE, sept()))?;
            }
            self.call(Leaf::MemPageAug, table(gpa | PDE, BASE + gpa))?;
            self.call(Leaf::MemPageDemote, table(gpa | PDE, sept()))?;
        }
        self.sept = first.unwrap_or(last)..last + PAGE_4K;
        Ok(())
    }

    /// What KVM does for a page of a TD that has its key.
    fn remove(&mut self, gpa: u64) -> Result<(), Error> {
        let (tdr, hpa) = (self.tdr, BASE + gpa);
        let at = [(Operand::RCX, gpa), (Operand::RDX, tdr)];
        self.call(Leaf::MemRangeBlock, at)?;
        self.call(Leaf::MemTrack, [(Operand::RCX, tdr)])?;
        self.machine.interrupt(0..self.cpus);
        self.call(Leaf::MemPageRemove, at)?;
        self.write_back(hpa, self.hkid)?;
        self.clear(hpa);
        Ok(())
    }

    /// The same for a page of one that has none, whatever page it is.
    fn reclaim(&mut self, hpa: u64) -> Result<(), Error> {
        self.call(Leaf::PhymemPageReclaim, [(Operand::RCX, hpa)])?;
        self.clear(hpa);
        Ok(())
    }

    fn clear(&self, hpa: u64) {
        self.machine.clear(hpa, PAGE_4K);
        if let Some(cpu) = self.site.server().processor(0) {
            // The module counts what it objects to.
            _ = cpu.clear(hpa);
        }
        self.machine.pay(Kind::Books, Item::LinuxPage);
        self.machine.settle();
    }

    fn write_back(&mut self, hpa: u64, hkid: u16) -> Result<(), Error> {
        let with_key = self.site.keyid_position()?.keyed(Hpa(hpa), hkid);
        self.call(Leaf::PhymemPageWbinvd, [(Operand::RCX, with_key)])
    }

    /// Gives the HKID back: one vCPU after the other, then all packages at once. Picoseconds for the latter.
    fn release(&mut self) -> Result<u64, Error> {
        for (cpu, tdvpr) in (0..).zip(self.vcpus.clone()) {
            self.on(cpu, Leaf::VpFlush, [(Operand::RCX, tdvpr)])?;
        }
        let tdr = self.tdr;
        self.call(Leaf::MngVpflushdone, [(Operand::RCX, tdr)])?;
        let begun = self.machine.now();
        let leaders = self.leaders();
        let asked = std::sync::Mutex::new(Ok(()));
        self.machine.on_each(&leaders, &|_| {
            let done = self.ask(Leaf::PhymemCacheWb, [(Operand::RCX, 0)]);
            if let (Err(error), Ok(mut asked)) = (done, asked.lock()) {
                *asked = Err(error);
            }
        });
        self.calls += leaders.len() as u64;
        asked
            .into_inner()
            .map_err(|_| Error::new("TDH.PHYMEM.CACHE.WB", "a CPU panicked"))??;
        let took = self.machine.now() - begun;
        self.call(Leaf::MngKeyFreeid, [(Operand::RCX, tdr)])?;
        Ok(took)
    }

    /// Takes the pages that every TD has.
    fn destroy(&mut self) -> Result<(), Error> {
        let control = std::mem::take(&mut self.control);
        let vcpus = std::mem::take(&mut self.vcpus);
        for page in control.into_iter().chain(vcpus) {
            self.reclaim(page)?;
        }
        let tdr = self.tdr;
        self.call(Leaf::PhymemPageReclaim, [(Operand::RCX, tdr)])?;
        self.write_back(tdr, self.site.global_hkid())?;
        self.clear(tdr);
        Ok(())
    }

    /// One CPU of each package.
    fn leaders(&self) -> Vec<u32> {
        let topology = self.site.topology(self.cpus);
        let mut leaders: Vec<u32> = (0..self.cpus).collect();
        leaders.dedup_by_key(|cpu| topology.package(*cpu));
        leaders
    }

    fn pages(&mut self, field: Field) -> Result<u64, Error> {
        let regs = self.regs(Leaf::SysRd, [(Operand::RDX, field.id.0)])?;
        Ok(regs.r8 / PAGE_4K)
    }

    /// A call on another CPU.
    fn on<const N: usize>(
        &mut self,
        cpu: u32,
        leaf: Leaf,
        operands: [(Operand, u64); N],
    ) -> Result<(), Error> {
        let result = std::sync::Mutex::new(Ok(()));
        self.machine.on_each(&[cpu], &|_| {
            if let Ok(mut result) = result.lock() {
                *result = self.ask(leaf, operands);
            }
        });
        self.calls += 1;
        result
            .into_inner()
            .map_err(|_| Error::new(leaf.name(), "a CPU panicked"))?
    }

    fn call<const N: usize>(
        &mut self,
        leaf: Leaf,
        operands: [(Operand, u64); N],
    ) -> Result<(), Error> {
        self.calls += 1;
        self.ask(leaf, operands)
    }

    fn ask<const N: usize>(&self, leaf: Leaf, operands: [(Operand, u64); N]) -> Result<(), Error> {
        self.regs(leaf, operands).map(drop)
    }

    /// Calls a leaf on the CPU that runs.
    fn regs<const N: usize>(
        &self,
        leaf: Leaf,
        operands: [(Operand, u64); N],
    ) -> Result<Gprs, Error> {
        let cpu = self.site.server().processor(self.machine.lp());
        let cpu = cpu.ok_or_else(|| Error::new(leaf.name(), "there is no such CPU"))?;
        let rcx = operands
            .iter()
            .find_map(|(operand, value)| (*operand == Operand::RCX).then_some(*value));
        let asked = Gprs {
            rcx: rcx.unwrap_or(0),
            ..Gprs::default()
        };
        let answered = cpu
            .leaf(leaf, operands)
            .map_err(|status: Status| Error::new(leaf.name(), format!("{status:?}")))?;
        self.machine.call(leaf, &asked, &answered);
        Ok(answered)
    }
}

/// Where the host has what TDH.MNG.INIT reads.
const BUFFER: u64 = 1 << 20;
