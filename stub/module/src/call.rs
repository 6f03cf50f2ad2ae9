//! One SEAMCALL: who executes it, on what.

use crate::cpuid::Native;
use crate::hooks::Fault;
use crate::{Machine, Module, PconfigError, Point};

/// What every leaf is given: the module, the machine beneath it, and the logical processor that called.
#[derive(Debug)]
pub struct Call<'m, M> {
    /// The module.
    pub module: &'m Module,
    /// What it runs on.
    pub machine: &'m M,
    /// The number of the logical processor.
    pub lp: u32,
    /// What a test wants to go wrong in it.
    pub fault: Option<Fault>,
}

impl<M> Clone for Call<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Call<'_, M> {}

impl<'m, M: Machine> Call<'m, M> {
    /// The package of the calling processor.
    pub fn package(&self) -> u32 {
        self.machine.platform().lp_to_package[self.lp as usize]
    }

    /// Whether an interrupt waits for the processor, so that a long call has to end early.
    pub fn interrupt_pending(&self) -> bool {
        self.machine.interrupt_pending(self.lp) || self.fault == Some(Fault::Interrupted)
    }

    /// RDRAND; `None` when there was not enough entropy.
    pub fn rdrand(&self) -> Option<u64> {
        let value = self.machine.rdrand(self.lp);
        value.filter(|_| self.fault != Some(Fault::NoEntropy))
    }

    /// RDSEED; `None` when there was not enough entropy.
    pub fn rdseed(&self) -> Option<u64> {
        let value = self.machine.rdseed(self.lp);
        value.filter(|_| self.fault != Some(Fault::NoEntropy))
    }

    /// Programs a fresh key for `hkid` on the package of the calling processor.
    ///
    /// # Errors
    /// As PCONFIG reports them; nothing has changed then.
    pub fn pconfig(&self, hkid: u32) -> Result<(), PconfigError> {
        if self.fault == Some(Fault::NoEntropy) {
            return Err(PconfigError::Entropy);
        }
        self.machine.pconfig(self.lp, hkid)
    }

    /// What a TD can execute on; sampled at the first time of asking, which is in TDH.SYS.INIT.
    pub fn native(&self) -> &'m Native {
        self.module.native.call_once(|| {
            let cpuid = |leaf, sub_leaf| self.machine.td_cpuid(self.lp, leaf, sub_leaf);
            let lps = 0..self.module.lps.len() as u32;
            // All packages are of one model; the lowest stepping is what a TD is told.
            let fms = lps
                .map(|lp| self.machine.cpuid(lp, 1, 0)[0])
                .min_by_key(|fms| fms & 0xF);
            let rdmsr = |msr| self.machine.rdmsr(self.lp, msr);
            Native::sample(cpuid, rdmsr, fms.unwrap_or_default())
        })
    }

    /// Tells the machine that the call has come to `point`.
    pub fn reached(&self, point: Point) {
        self.machine.reached(self.lp, point);
    }
}
