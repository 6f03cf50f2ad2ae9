//! A model of Linux's way: one CPU, 4 KiB at a time. Only the order of its SEAMCALLs is taken from Linux
//! (arch/x86/kvm/vmx/tdx.c). They run on the same emulated module as the hypervisor's.

use anyhow::{Result, anyhow, ensure};
use mm::private::{Error, Kick};
use seam::abi::{Gprs, Leaf, PAGE_2M, PAGE_4K, PAGE_MASK, Status};
use seam::address::{Gpa, Hpa, KeyIdPosition, Level};

use super::cost::Number;
use super::machine::Charge;
use super::td::Td;
use super::world::{KickAll, World};

/// A dead TD with Linux's bookkeeping.
pub struct Linux<'w> {
    world: &'w World,
    tdr: u64,
    hkid: u16,
    /// The page at each 4 KiB of guest-physical addresses.
    pages: Vec<u64>,
}

impl<'w> Linux<'w> {
    /// Collects every page of a TD, which still has its key.
    pub fn new(world: &'w World, td: &Td, bytes: u64) -> Result<Self> {
        let tdh = world.on(0);
        let seen = td.map.keyed(|tdr| {
            let entry = |gpa| Ok::<_, Error>(tdh.mem_sept_rd(tdr, Gpa(gpa), Level::Pt)?.hpa().0);
            let pages = (0..bytes).step_by(PAGE_4K as usize).map(entry);
            Ok((tdr.hpa().0, tdr.hkid(), pages.collect::<Result<_, _>>()?))
        });
        let (tdr, hkid, pages) = seen.map_err(|error| anyhow!("{error}"))?;
        Ok(Self {
            world,
            tdr,
            hkid,
            pages,
        })
    }

    /// Removes page by page with the key: TDH.MEM.RANGE.BLOCK, TDH.MEM.TRACK, a kick of every vCPU,
    /// TDH.MEM.PAGE.REMOVE, TDH.PHYMEM.PAGE.WBINVD, clearing.
    pub fn remove(&self) -> Result<()> {
        let keyid = KeyIdPosition::new(52, 6).ok_or_else(|| anyhow!("52 bits have room for 6"))?;
        let gpas = (0..).step_by(PAGE_4K as usize);
        for (gpa, hpa) in gpas.zip(&self.pages) {
            self.call(Leaf::MemRangeBlock, gpa, self.tdr)?;
            self.call(Leaf::MemTrack, self.tdr, 0)?;
            KickAll(self.world)
                .kick()
                .map_err(|error| anyhow!("{error}"))?;
            self.call(Leaf::MemPageRemove, gpa, self.tdr)?;
            self.call(Leaf::PhymemPageWbinvd, keyid.keyed(Hpa(*hpa), self.hkid), 0)?;
            self.done_with(*hpa);
        }
        Ok(())
    }

    /// Reclaims page by page without a key: TDH.PHYMEM.PAGE.RECLAIM, clearing.
    pub fn reclaim(&self) -> Result<()> {
        for hpa in &self.pages {
            let regs = self.call(Leaf::PhymemPageReclaim, *hpa, 0)?;
            ensure!(regs.rdx & PAGE_MASK == self.tdr, "{hpa:#x} is another TD's");
            self.done_with(*hpa);
        }
        Ok(())
    }

    /// Charges the reclaim of the S-EPT's pages. The calls are counted but not made, because only Linux's bookkeeping
    /// would say where the pages are.
    pub fn reclaim_tables(&self) {
        for hpa in self.pages.iter().step_by((PAGE_2M / PAGE_4K) as usize) {
            self.world.charge(&[Charge::Spend(Number::Seamcall, 1.0)]);
            self.done_with(*hpa);
        }
    }

    /// Charges clearing the page and freeing it in Linux.
    fn done_with(&self, hpa: u64) {
        self.world.charge(&[
            Charge::Clear { units: 1, at: hpa },
            Charge::Spend(Number::LinuxPage, 1.0),
        ]);
    }

    /// Makes a SEAMCALL from raw numbers, because Linux has its own bookkeeping.
    fn call(&self, leaf: Leaf, rcx: u64, rdx: u64) -> Result<Gprs> {
        let mut regs = Gprs {
            rax: leaf.rax(),
            rcx,
            rdx,
            ..Gprs::default()
        };
        let answered = self.world.raw_call(&mut regs);
        answered.map_err(|fault| anyhow!("{}: {fault:?}", leaf.name()))?;
        let status = Status(regs.rax);
        ensure!(
            !status.is_error(),
            "{} of {rcx:#x}: {status:?}",
            leaf.name()
        );
        Ok(regs)
    }
}
