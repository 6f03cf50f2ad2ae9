//! What the module runs on: memory, processors, time, entropy.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use seam::abi::ReportMac;

use crate::guest::Impossible;
use crate::vcpu::Vcpu;

/// One 4 KiB page of physical memory as the module sees it, whatever KeyID guards it.
pub type PageWords = [AtomicU64; 512];

/// What does not change while the machine is up.
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
    /// Cache sub-blocks per package, the grain of TDH.PHYMEM.CACHE.WB.
    pub wbinvd_sub_blocks: u32,
}

/// Why a key could not be programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PconfigError {
    /// Not enough entropy (PCONFIG code 2).
    Entropy,
    /// The key table is in use by another processor (PCONFIG code 5).
    Busy,
}

/// A point inside a SEAMCALL, while it holds its locks, at which a test may let other processors act.
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
    /// The machine's description.
    fn platform(&self) -> Platform<'_>;
    /// The page that contains `pa` (KeyID bits stripped). What was never written reads as zero.
    fn page(&self, pa: u64) -> &PageWords;
    /// The 8 bytes at `pa`, rounded down to a multiple of 8.
    #[inline(always)]
    fn word(&self, pa: u64) -> u64 {
        self.page(pa)[(pa as usize >> 3) & 511].load(Ordering::Acquire)
    }
    /// What every word of the page that contains `pa` is, where the machine knows that they are all the same.
    fn repeated(&self, _pa: u64) -> Option<u64> {
        None
    }
    /// Makes every word of the page that contains `pa` equal to `word`.
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
    /// Keeps the host's software away from `pages` (multiples of 4 KiB), or no longer if not `private`.
    ///
    /// The module calls it when pages become its own or a TD's, before they hold anything, and when they become the
    /// host's again. The PAMT has said so already, which
    /// [`Module::check_host_access`](crate::Module::check_host_access) goes by: a machine that asks it at each access of
    /// the host has nothing to do here. When this returns, no processor that executes the host's software reaches
    /// private pages by a translation that it made before.
    fn guard(&self, lp: u32, pages: Range<u64>, private: bool);
    /// CPUID as that processor answers it: EAX, EBX, ECX, EDX.
    fn cpuid(&self, lp: u32, leaf: u32, sub_leaf: u32) -> [u32; 4];
    /// CPUID of the processor that TDs run on, where the machine offers them less, or more, than it has itself.
    fn td_cpuid(&self, lp: u32, leaf: u32, sub_leaf: u32) -> [u32; 4] {
        self.cpuid(lp, leaf, sub_leaf)
    }
    /// RDMSR.
    fn rdmsr(&self, lp: u32, msr: u32) -> u64;
    /// The time-stamp counter.
    fn rdtsc(&self, lp: u32) -> u64;
    /// Whether a TD's time-stamp counter can run at another frequency than the machine's own (TSC scaling). If not, RDTSC
    /// in a TD shows the machine's counter plus the TD's offset, whatever TSC_FREQUENCY is, and TSC_MULTIPLIER is one.
    fn scales_tsc(&self) -> bool;
    /// RDRAND; `None` when there was not enough entropy.
    fn rdrand(&self, lp: u32) -> Option<u64>;
    /// RDSEED; `None` when there was not enough entropy.
    fn rdseed(&self, lp: u32) -> Option<u64>;
    /// Whether an interrupt waits for that processor (MSR 0x9A).
    fn interrupt_pending(&self, lp: u32) -> bool;
    /// Programs a fresh key for `hkid` on the package of `lp`.
    ///
    /// # Errors
    /// As PCONFIG reports them; nothing has changed then.
    fn pconfig(&self, lp: u32, hkid: u32) -> Result<(), PconfigError>;
    /// Writes back one cache sub-block of the package of `lp` (WBNOINVDP).
    fn cache_write_back(&self, lp: u32, sub_block: u32);
    /// Tells that the SEAMCALL on `lp` has reached `point`.
    ///
    /// The module tells of [`Point::Movdir64b`], [`Point::Sha384`], [`Point::Invept`] and [`Point::Clflush`]; the others
    /// are methods of the machine, which knows of them by itself.
    fn reached(&self, lp: u32, point: Point);
    /// Runs a TD vCPU on `lp` until its next VM exit.
    ///
    /// The guest is entered with the state in `vcpu` (GPRs, VMCS guest area, controls and VM-entry interruption
    /// information, the registers that the module holds, extended state). At the exit its new state is back in
    /// `vcpu`, with the exit's reason, qualification, addresses, interruption and IDT-vectoring information,
    /// instruction length and information in the VMCS's read-only fields, as the CPU leaves them; the valid bit
    /// of the VM-entry interruption information is clear.
    fn run_vcpu(&self, lp: u32, vcpu: &Vcpu<'_>);
    /// Tells of a VM exit of a TD that no CPU gives: the module shuts down for it, or ends the TD.
    fn impossible(&self, _lp: u32, _exit: &Impossible) {}
    /// Reads an XMM register (0 to 15) of the host, as it was at the SEAMCALL on `lp`.
    fn host_xmm(&self, lp: u32, index: usize) -> u128;
    /// Sets an XMM register (0 to 15) that the host will find after the SEAMCALL on `lp`.
    fn set_host_xmm(&self, lp: u32, index: usize, value: u128);
    /// The task priority (CR8) of the physical APIC of `lp`.
    fn task_priority(&self, lp: u32) -> u64;
    /// Sets the task priority of the physical APIC of `lp`, 0 to 15.
    fn set_task_priority(&self, lp: u32, priority: u64);
    /// Makes the physical APIC of `lp` deliver an interrupt to itself: one that the module took and the host is to
    /// have again.
    fn send_self_ipi(&self, lp: u32, vector: u8);
    /// The key with which TDREPORTs are authenticated on this machine (SEAMREPORT).
    ///
    /// # Errors
    /// The result code of the CPU operation, when it failed.
    fn report_key(&self, lp: u32) -> Result<[u8; 32], u64>;
    /// Verifies the first part of a TDREPORT (SEAMVERIFYREPORT); [`check_report`](crate::check_report) does it by a key.
    ///
    /// # Errors
    /// The result code of the CPU operation: 4 for a CPUSVN that it does not know, 5 for a report that is not its own.
    fn verify_report(&self, lp: u32, report: &ReportMac) -> Result<(), u64>;
}
