//! The machine that the module runs on: memory, processors, time, entropy.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use seam::abi::ReportMac;

use crate::guest::Impossible;
use crate::vcpu::Vcpu;

/// One 4 KiB page of physical memory as the module sees it, regardless of the KeyID.
pub type PageWords = [AtomicU64; 512];

/// The machine's invariable properties.
#[derive(Clone, Copy, Debug)]
pub struct Platform<'a> {
    /// The package of each logical processor; its length is the number of logical processors.
    pub lp_to_package: &'a [u32],
    /// Convertible memory regions: base and size in bytes, sorted.
    pub cmrs: &'a [(u64, u64)],
    /// Bits of a physical address, KeyID bits included.
    pub max_pa: u32,
    /// KeyID bits at the top of the physical address.
    pub keyid_bits: u32,
    /// Shared (MKTME) KeyIDs; private HKIDs start at this number plus one.
    pub num_mktme_keyids: u32,
    /// Private (TDX) HKIDs.
    pub num_tdx_keyids: u32,
    /// Base and size in bytes of the SEAM range.
    pub seamrr: (u64, u64),
    /// Cache sub-blocks per package, the unit of TDH.PHYMEM.CACHE.WB.
    pub wbinvd_sub_blocks: u32,
}

/// The reason why a key could not be programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PconfigError {
    /// Not enough entropy (PCONFIG code 2).
    Entropy,
    /// The key table is in use by another processor (PCONFIG code 5).
    Busy,
}

/// A point inside a SEAMCALL, reached with its locks held, at which a test may let other processors act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the operation of that name")]
pub enum Point {
    Guest,
    Pconfig,
    Wbnoinvdp,
    Movdir64b,
    Sha384,
    Rdtsc,
    IntrCheck,
    Invept,
    Clflush,
}

/// The machine beneath the module. `lp` is the number of the logical processor that executes the SEAMCALL.
pub trait Machine: Sync {
    /// Returns the machine's description.
    fn platform(&self) -> Platform<'_>;
    /// Returns the page that contains `pa` (KeyID bits stripped). Memory never written reads as zero.
    fn page(&self, pa: u64) -> &PageWords;
    /// Returns the 8 bytes at `pa`, rounded down to a multiple of 8.
    #[inline(always)]
    fn word(&self, pa: u64) -> u64 {
        self.page(pa)[(pa as usize >> 3) & 511].load(Ordering::Acquire)
    }
    /// Returns the value of every word of the page that contains `pa`, if the machine knows that they are all equal.
    fn repeated(&self, _pa: u64) -> Option<u64> {
        None
    }
    /// Sets every word of the page that contains `pa` to `word`.
    ///
    /// A machine with sparse memory need not make the page resident for that.
    fn fill_page(&self, pa: u64, word: u64) {
        for cell in self.page(pa) {
            cell.store(word, Ordering::Release);
        }
    }
    /// Copies the page that contains `from` over the one that contains `to`.
    fn copy_page(&self, from: u64, to: u64) {
        for (to, from) in self.page(to).iter().zip(self.page(from)) {
            to.store(from.load(Ordering::Acquire), Ordering::Release);
        }
    }
    /// Blocks the host's software from `pages` (multiples of 4 KiB), or unblocks it if not `private`.
    ///
    /// The module calls it when pages become private to itself or to a TD, before they hold any content, and when they
    /// return to the host. The PAMT is updated first, and
    /// [`Module::check_host_access`](crate::Module::check_host_access) follows the PAMT: a machine that asks it at each
    /// access of the host has nothing to do here. When this returns, no processor that executes the host's software
    /// reaches private pages by a translation that it cached before.
    fn guard(&self, lp: u32, pages: Range<u64>, private: bool);
    /// Executes CPUID on that processor: EAX, EBX, ECX, EDX.
    fn cpuid(&self, lp: u32, leaf: u32, sub_leaf: u32) -> [u32; 4];
    /// Returns CPUID of the processor that TDs run on. It may offer less or more than the machine's own.
    fn td_cpuid(&self, lp: u32, leaf: u32, sub_leaf: u32) -> [u32; 4] {
        self.cpuid(lp, leaf, sub_leaf)
    }
    /// Executes RDMSR.
    fn rdmsr(&self, lp: u32, msr: u32) -> u64;
    /// Reads the time-stamp counter.
    fn rdtsc(&self, lp: u32) -> u64;
    /// Returns whether a TD's time-stamp counter can run at a frequency different from the machine's (TSC scaling). If
    /// not, RDTSC in a TD returns the machine's counter plus the TD's offset, whatever TSC_FREQUENCY is, and
    /// TSC_MULTIPLIER is one.
    fn scales_tsc(&self) -> bool;
    /// Executes RDRAND. Returns `None` if entropy is insufficient.
    fn rdrand(&self, lp: u32) -> Option<u64>;
    /// Executes RDSEED. Returns `None` if entropy is insufficient.
    fn rdseed(&self, lp: u32) -> Option<u64>;
    /// Returns whether an interrupt is pending on that processor (MSR 0x9A).
    fn interrupt_pending(&self, lp: u32) -> bool;
    /// Programs a fresh key for `hkid` on the package of `lp`.
    ///
    /// # Errors
    /// Those of PCONFIG. No key has changed then.
    fn pconfig(&self, lp: u32, hkid: u32) -> Result<(), PconfigError>;
    /// Writes back one cache sub-block of the package of `lp` (WBNOINVDP).
    fn cache_write_back(&self, lp: u32, sub_block: u32);
    /// Reports that the SEAMCALL on `lp` has reached `point`.
    ///
    /// The module reports [`Point::Movdir64b`], [`Point::Sha384`], [`Point::Invept`] and [`Point::Clflush`]. The other
    /// points are methods of the machine, which observes them itself.
    fn reached(&self, lp: u32, point: Point);
    /// Runs a TD vCPU on `lp` until its next VM exit.
    ///
    /// The guest is entered with the state in `vcpu` (GPRs, VMCS guest area, controls and VM-entry interruption
    /// information, the registers that the module holds, extended state). At the exit `vcpu` holds the guest's new
    /// state. The VMCS's read-only fields hold the exit's reason, qualification, addresses, interruption and
    /// IDT-vectoring information, instruction length and information, as the CPU leaves them. The valid bit of the
    /// VM-entry interruption information is clear.
    fn run_vcpu(&self, lp: u32, vcpu: &Vcpu<'_>);
    /// Returns the number of instructions that the vCPU on `lp` retired between its last entry and its last exit (fixed
    /// counter 0), or `None` if the machine can't count them.
    fn instructions_retired(&self, _lp: u32) -> Option<u64> {
        None
    }
    /// Writes the interrupt command register of the x2APIC of `lp`.
    fn write_icr(&self, lp: u32, value: u64);
    /// Reports a VM exit of a TD that no CPU produces: the module shuts down because of it, or terminates the TD.
    fn impossible(&self, lp: u32, exit: &Impossible);
    /// Reads an XMM register (0 to 15) of the host, as it was at the SEAMCALL on `lp`.
    fn host_xmm(&self, lp: u32, index: usize) -> u128;
    /// Sets an XMM register (0 to 15) of the host for the return from the SEAMCALL on `lp`.
    fn set_host_xmm(&self, lp: u32, index: usize, value: u128);
    /// Sets all of them to zero.
    fn clear_host_xmm(&self, lp: u32) {
        for index in 0..16 {
            self.set_host_xmm(lp, index, 0);
        }
    }
    /// Returns the task priority (CR8) of the physical APIC of `lp`.
    fn task_priority(&self, lp: u32) -> u64;
    /// Sets the task priority of the physical APIC of `lp`, 0 to 15.
    fn set_task_priority(&self, lp: u32, priority: u64);
    /// Makes the physical APIC of `lp` send an interrupt to itself. It returns an interrupt that the module took to the
    /// host.
    fn send_self_ipi(&self, lp: u32, vector: u8);
    /// Returns the key that authenticates TDREPORTs on this machine (SEAMREPORT).
    ///
    /// # Errors
    /// The result code of the CPU operation if it failed.
    fn report_key(&self, lp: u32) -> Result<[u8; 32], u64>;
    /// Verifies the first part of a TDREPORT (SEAMVERIFYREPORT). [`check_report`](crate::check_report) does it with a
    /// key.
    ///
    /// # Errors
    /// The result code of the CPU operation: 4 for an unknown CPUSVN, 5 for a report of another machine.
    fn verify_report(&self, lp: u32, report: &ReportMac) -> Result<(), u64>;
}
