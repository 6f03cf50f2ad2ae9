//! The machine as all processors see it.

use alloc::vec::Vec;

use stub_module::{Module, Platform};
use stub_rom::WBINVD_SUB_BLOCKS;
use stub_rom::lost::{Fault, Limits, Own};
use stub_rom::options::Options;
use stub_rom::personality::clock::Clock;
use stub_rom::personality::topology::Shifts;
use stub_rom::personality::{self, Cpu, Facts, KEYID_BITS, MAX_PA};

use super::iommu::Iommu;
use super::npt::Npt;
use super::panic;
use super::presence::{PATIENCE, Processors};
use super::shared::Shared;
use super::vmcb::Save;

/// The machine as all processors see it.
pub struct World {
    pub options: Options,
    pub facts: Facts,
    pub seamrr: (u64, u64),
    pub trampoline: u64,
    /// Base and size of each range of RAM in bytes. Those of the largest range, which holds most pages that are looked
    /// up, follow.
    pub ram: Vec<(u64, u64)>,
    pub largest: (u64, u64),
    /// The measured frequency of the time-stamp counter.
    pub tsc_hz: u64,
    /// The clocks as CPUID reports them.
    pub clock: Clock,
    pub shifts: Shifts,
    /// The monitor's page tables.
    pub cr3: u64,
    /// The limits of the monitor's descriptor tables, which distinguish its own faults from a guest's.
    pub limits: Limits,
    /// The nested page tables of the software above.
    pub npt: Npt,
    /// The VT-d unit; `None` on a machine without one.
    pub iommu: Option<Iommu>,
    pub msr_bitmap: u64,
    pub lps: Vec<Shared>,
    pub lp_to_package: Vec<u32>,
    pub cmrs: Vec<(u64, u64)>,
    /// The key that authenticates TDREPORTs.
    pub report_key: [u8; 32],
    /// A page that replaces nonexistent memory.
    pub nothing: u64,
    /// The TDX module; `None` on a machine without SEAM.
    pub module: Option<Module>,
}

impl World {
    /// Returns the inputs of CPUID and the MSR constants of processor `number`.
    pub fn personality(&self, number: u32, cr4: u64) -> Cpu {
        Cpu {
            tdx: self.options.tdx,
            cr4,
            apic_id: self.lps[number as usize].apic_id,
            clock: self.clock,
            shifts: self.shifts,
        }
    }

    /// Returns whether `pa` lies in the SEAM range.
    pub fn is_in_seamrr(&self, pa: u64) -> bool {
        let (base, size) = self.seamrr;
        (base..base + size).contains(&pa)
    }

    /// Returns the end of RAM.
    pub fn end_of_ram(&self) -> u64 {
        let ends = self.ram.iter().map(|(base, size)| base + size);
        ends.max().unwrap_or(0)
    }

    /// Returns the processors that a change of the nested page tables by processor `own` waits for.
    pub fn processors(&self, own: u32) -> Processors<'_> {
        Processors {
            all: &self.lps,
            own,
            patience: PATIENCE.saturating_mul(self.tsc_hz),
        }
    }

    /// Stops if the nested page fault at `pa` that left `save` was the monitor's own, taken when it exited a guest. The
    /// guest's state is lost then. Every handler of nested page faults calls it first.
    ///
    /// TCG 7.2 does this to CPU 0 now and then, while another CPU loads x87 state (see a TD's extended state).
    pub fn check_for_lost_guest(&self, number: u32, save: &Save, pa: u64) {
        let own = Own {
            cr3: self.cr3,
            seamrr: self.seamrr,
            limits: self.limits,
        };
        let fault = Fault {
            lp: number,
            address: pa,
            cr3: save.cr3,
            rip: save.rip,
            gdt_limit: save.gdtr.limit,
            idt_limit: save.idtr.limit,
        };
        if own.has_taken(&fault) {
            panic::stop(format_args!(
                "QEMU left CPU 0 in nested paging when a guest exited, which is rare (see docs/emulation.md): start the machine again"
            ));
        }
    }

    /// Returns the machine's description for the module.
    #[inline(always)]
    pub fn platform(&self) -> Platform<'_> {
        Platform {
            lp_to_package: &self.lp_to_package,
            cmrs: &self.cmrs,
            max_pa: MAX_PA,
            keyid_bits: KEYID_BITS,
            num_mktme_keyids: personality::mktme_keyids(self.options.hkids),
            num_tdx_keyids: self.options.hkids,
            seamrr: self.seamrr,
            wbinvd_sub_blocks: WBINVD_SUB_BLOCKS,
        }
    }

    /// Returns `pa` if the module may use the page there, else the replacement page.
    #[inline(always)]
    pub fn ram_or_nothing(&self, pa: u64) -> u64 {
        let is_in = |(base, size): (u64, u64)| pa.wrapping_sub(base) < size;
        if is_in(self.seamrr) {
            self.nothing
        } else if is_in(self.largest) {
            pa
        } else {
            self.elsewhere(pa)
        }
    }

    #[inline(never)]
    fn elsewhere(&self, pa: u64) -> u64 {
        let is_ram = (self.ram.iter()).any(|&(base, size)| (base..base + size).contains(&pa));
        if is_ram { pa } else { self.nothing }
    }
}
