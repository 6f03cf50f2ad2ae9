//! One SEAMCALL: the calling processor and the machine it runs on.

use crate::cpuid::{Native, Table};
use crate::hooks::Fault;
use crate::module::SysState;
use crate::{Check, Machine, Module, PconfigError, Point};

/// The context of a leaf: the module, the machine beneath it, and the logical processor that called.
#[derive(Debug)]
pub struct Call<'m, M> {
    /// The module.
    pub module: &'m Module,
    /// The machine that the module runs on.
    pub machine: &'m M,
    /// The number of the logical processor.
    pub lp: u32,
    /// The fault that a test injects into this call.
    pub fault: Option<Fault>,
}

impl<M> Clone for Call<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Call<'_, M> {}

impl<'m, M: Machine> Call<'m, M> {
    /// Returns the package of the calling processor.
    pub fn package(&self) -> u32 {
        self.machine.platform().lp_to_package[self.lp as usize]
    }

    /// Returns whether an interrupt is pending on the processor. A long call then ends early.
    pub fn interrupt_pending(&self) -> bool {
        self.machine.interrupt_pending(self.lp) || self.fault == Some(Fault::Interrupted)
    }

    /// Executes RDRAND. Returns `None` if entropy is insufficient.
    pub fn rdrand(&self) -> Option<u64> {
        let value = self.machine.rdrand(self.lp);
        value.filter(|_| self.fault != Some(Fault::NoEntropy))
    }

    /// Executes RDSEED. Returns `None` if entropy is insufficient.
    pub fn rdseed(&self) -> Option<u64> {
        let value = self.machine.rdseed(self.lp);
        value.filter(|_| self.fault != Some(Fault::NoEntropy))
    }

    /// Programs a fresh key for `hkid` on the package of the calling processor.
    ///
    /// # Errors
    /// Those of PCONFIG. No key has changed then.
    pub fn pconfig(&self, hkid: u32) -> Result<(), PconfigError> {
        if self.fault == Some(Fault::NoEntropy) {
            return Err(PconfigError::Entropy);
        }
        self.machine.pconfig(self.lp, hkid)
    }

    /// Returns the properties of the CPU that TDs run on. They are sampled at the first call, which is in TDH.SYS.INIT.
    pub fn native(&self) -> &'m Native {
        self.module.native.call_once(|| {
            let cpuid = |leaf, sub_leaf| self.machine.td_cpuid(self.lp, leaf, sub_leaf);
            let lps = 0..self.module.lps.len() as u32;
            // All packages have the same model; a TD sees the lowest stepping.
            let fms = lps
                .map(|lp| self.machine.cpuid(lp, 1, 0)[0])
                .min_by_key(|fms| fms & 0xF);
            let rdmsr = |msr| self.machine.rdmsr(self.lp, msr);
            let table = Table::of(self.module.release);
            Native::sample(cpuid, rdmsr, fms.unwrap_or_default(), table)
        })
    }

    /// Ends the module because of an impossible behaviour of the CPU. If the host asked for it, the module first records
    /// the error and tells the other processors.
    pub fn die(&self, check: Check) {
        if let Some(diagnostics) = self.module.diagnostics.get() {
            diagnostics.report(self.machine, self.lp, check);
        }
        self.module.set_state(SysState::Shutdown);
    }

    /// Reports to the machine that the call has reached `point`.
    pub fn reached(&self, point: Point) {
        self.machine.reached(self.lp, point);
    }
}
