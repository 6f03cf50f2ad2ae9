//! A simulated server: a host machine and an emulated module, as the host's software sees them.

use core::sync::atomic::{AtomicU64, Ordering};
use std::vec::Vec;

use seam::abi::{Gprs, Leaf, Operand, PAGE_1G, PAGE_4K, PAMT_ENTRY_SIZE, Status};
use seam::call::{Fault, SeamCall};

use super::config::Config;
use super::machine::HostMachine;
use crate::hooks::{Access, Hooks, HostAccess, ViolationKind};
use crate::{Machine, Module};

/// A simulated server.
pub struct Server {
    machine: HostMachine,
    module: Module,
}

/// A TDMR that covers the GiB at its base. Its PAMT follows directly behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TdmrPlan {
    /// First address; a multiple of 1 GiB.
    pub base: u64,
    /// Bytes; a multiple of 1 GiB.
    pub size: u64,
}

impl Server {
    /// Creates a server whose module is loaded and not initialised.
    pub fn new(config: Config) -> Self {
        Self::with_hooks(config, Hooks::default())
    }

    /// Creates a server whose module has test hooks.
    pub fn with_hooks(config: Config, hooks: Hooks) -> Self {
        let machine = HostMachine::new(config);
        let module = Module::with_hooks(&machine.platform(), machine.config().release, hooks);
        Self { machine, module }
    }

    /// Returns the machine.
    pub fn machine(&self) -> &HostMachine {
        &self.machine
    }

    /// Returns the module.
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// Returns a logical processor by number, for the software that runs on it; `None` if there is none.
    pub fn processor(&self, lp: u32) -> Option<Processor<'_>> {
        let lps = self.machine.config().lp_to_package.len();
        ((lp as usize) < lps).then_some(Processor { server: self, lp })
    }

    /// Returns all logical processors, by number.
    pub fn processors(&self) -> impl Iterator<Item = Processor<'_>> {
        let lps = 0..self.machine.config().lp_to_package.len() as u32;
        lps.map(|lp| Processor { server: self, lp })
    }

    /// Brings the module up with one TDMR, by the sequence that every host follows. `hkid` becomes the global HKID. The
    /// operands of TDH.SYS.CONFIG and the PAMT are placed behind the TDMR, where there must be more convertible memory.
    ///
    /// # Errors
    /// The status of the call that failed.
    pub fn bring_up(&self, tdmr: TdmrPlan, hkid: u32) -> Result<(), Status> {
        let [entries_1g, entries_2m, entries_4k] = [PAGE_1G, 2 << 20, PAGE_4K]
            .map(|page| (tdmr.size / page * PAMT_ENTRY_SIZE).next_multiple_of(PAGE_4K));
        let pamt_1g = tdmr.base + tdmr.size;
        let pamt_2m = pamt_1g + entries_1g;
        let pamt_4k = pamt_2m + entries_2m;
        let array = pamt_4k + entries_4k;
        let info = array + 0x1000;
        let memory = self.machine.memory();
        memory.write(array, &info.to_le_bytes());
        for (i, value) in (0..).zip([
            tdmr.base, tdmr.size, pamt_1g, entries_1g, pamt_2m, entries_2m, pamt_4k, entries_4k,
        ]) {
            memory.write(info + 8 * i, &value.to_le_bytes());
        }

        let Some(first) = self.processor(0) else {
            return Err(Status::SYS_LP_INIT_NOT_DONE);
        };
        first.leaf(Leaf::SysInit, [])?;
        for processor in self.processors() {
            processor.leaf(Leaf::SysLpInit, [])?;
        }
        let config = [
            (Operand::RCX, array),
            (Operand::RDX, 1),
            (Operand::R8, hkid.into()),
        ];
        first.leaf(Leaf::SysConfig, config)?;
        let mut packages = Vec::new();
        for processor in self.processors() {
            if !packages.contains(&processor.package()) {
                packages.push(processor.package());
                processor.leaf(Leaf::SysKeyConfig, [])?;
            }
        }
        while first
            .leaf(Leaf::SysTdmrInit, [(Operand::RCX, tdmr.base)])?
            .rdx
            < tdmr.base + tdmr.size
        {}
        Ok(())
    }
}

/// A logical processor of a server.
#[derive(Clone, Copy)]
pub struct Processor<'s> {
    server: &'s Server,
    lp: u32,
}

impl Processor<'_> {
    /// Returns its number.
    pub fn lp(&self) -> u32 {
        self.lp
    }

    /// Returns its package.
    pub fn package(&self) -> u32 {
        let packages = &self.server.machine.config().lp_to_package;
        packages.get(self.lp as usize).copied().unwrap_or(0)
    }

    /// Calls version 0 of a leaf with these operands. All others are zero.
    ///
    /// # Errors
    /// Every status but SUCCESS.
    pub fn leaf<const N: usize>(
        &self,
        leaf: Leaf,
        operands: [(Operand, u64); N],
    ) -> Result<Gprs, Status> {
        let mut regs = Gprs {
            rax: leaf.rax(),
            ..Gprs::default()
        };
        for (operand, value) in operands {
            match operand {
                Operand::RCX => regs.rcx = value,
                Operand::RDX => regs.rdx = value,
                Operand::R8 => regs.r8 = value,
                Operand::R9 => regs.r9 = value,
                Operand::R10 => regs.r10 = value,
                Operand::R11 => regs.r11 = value,
                _ => return Err(Status::OPERAND_INVALID.with(operand)),
            }
        }
        self.server
            .module
            .seamcall(&self.server.machine, self.lp, &mut regs);
        match Status(regs.rax) {
            Status::SUCCESS => Ok(regs),
            status => Err(status),
        }
    }

    /// Loads the 8 bytes at `pa`, a multiple of 8, as the host's software does: with the KeyID in the address.
    ///
    /// # Errors
    /// The violation for which hardware would block the access. The module has recorded it.
    pub fn load(&self, pa: u64) -> Result<u64, ViolationKind> {
        self.cell(pa, Access::Read)
            .map(|cell| cell.load(Ordering::Acquire))
    }

    /// Stores 8 bytes at `pa`, a multiple of 8, as the host's software does: with the KeyID in the address.
    ///
    /// # Errors
    /// The violation for which hardware would block the access. The module has recorded it.
    pub fn store(&self, pa: u64, value: u64) -> Result<(), ViolationKind> {
        self.cell(pa, Access::Write)
            .map(|cell| cell.store(value, Ordering::Release))
    }

    /// Clears the page that contains `pa`.
    ///
    /// # Errors
    /// The violation for which hardware would block the access. The module has recorded it.
    pub fn clear(&self, pa: u64) -> Result<(), ViolationKind> {
        let Server { machine, module } = self.server;
        module.check_host_access(machine, self.access(pa, Access::Write))?;
        machine.fill_page(machine.platform().without_keyid(pa), 0);
        Ok(())
    }

    const fn access(&self, pa: u64, access: Access) -> HostAccess {
        HostAccess {
            lp: self.lp,
            pa,
            access,
            rip: None,
        }
    }

    fn cell(&self, pa: u64, access: Access) -> Result<&AtomicU64, ViolationKind> {
        let Server { machine, module } = self.server;
        module.check_host_access(machine, self.access(pa, access))?;
        let plain = machine.platform().without_keyid(pa);
        Ok(&machine.page(plain)[(plain % PAGE_4K / 8) as usize])
    }
}

impl SeamCall for Processor<'_> {
    fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault> {
        let Server { machine, module } = self.server;
        module.seamcall(machine, self.lp, regs);
        Ok(())
    }

    // The processor has no host. A wrapper that has one records it.
    fn note_shutdown(&self) {}
}
