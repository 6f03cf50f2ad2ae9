//! The machine that the emulated TDX module runs on: the machine beneath the monitor.
#![expect(unsafe_code, reason = "hands physical pages to the module")]

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use seam::abi::ReportMac;
use spin::Mutex;
use stub_module::vcpu::Vcpu;
use stub_module::{Impossible, Machine, PageWords, PconfigError, Platform, Point, sapphire_rapids};
use stub_rom::WBINVD_SUB_BLOCKS;
use stub_rom::apic::Xapic;
use stub_rom::personality::{self, Cpu, KEYID_BITS, KEYID_MASK, MAX_PA};

use super::lp::Lp;
use super::smp::Hardware;
use super::td::Td;
use super::world::{self, World};
use crate::memory::{self, PAGE};
use crate::{cpu, report};

/// An XMM register of the host, which a SEAMCALL may read and write: low and high half.
pub type Xmm = [AtomicU64; 2];

/// The machine during one SEAMCALL.
pub struct SeamCpu<'a> {
    world: &'static World,
    number: u32,
    cr4: u64,
    /// The host's RFLAGS.IF.
    interrupts_enabled: bool,
    tsc_adjust: u64,
    misc_enable: u64,
    tsx_ctrl: u64,
    /// The host's XMM registers.
    xmm: &'a [Xmm; 16],
    /// The runner of TD vCPUs, on the processor that executes the SEAMCALL.
    td: Mutex<Option<&'static mut Td>>,
}

/// The packages whose key table is being written, one flag each.
static KEY_TABLES: [AtomicBool; 64] = [const { AtomicBool::new(false) }; 64];

impl<'a> SeamCpu<'a> {
    /// Creates the machine for a SEAMCALL on `lp`.
    pub fn new(lp: &'a Lp) -> Self {
        const IF: u64 = 1 << 9;
        Self {
            world: world::get(),
            number: lp.number,
            cr4: lp.cr4(),
            interrupts_enabled: lp.vmcb.save.rflags & IF != 0,
            tsc_adjust: lp.tsc_adjust,
            misc_enable: lp.misc_enable,
            tsx_ctrl: lp.tsx_ctrl,
            xmm: &lp.xmm,
            td: Mutex::new(None),
        }
    }

    /// Creates the machine for a SEAMCALL that `lp` executes, which may run a TD vCPU.
    pub fn executing(lp: &'a mut Lp) -> Self {
        let td = lp.td.take();
        Self {
            td: Mutex::new(td),
            ..Self::new(lp)
        }
    }

    /// Returns the identity of the processor `lp` as software sees it.
    fn personality(&self, lp: u32) -> Cpu {
        let number = if (lp as usize) < self.world.lps.len() {
            lp
        } else {
            self.number
        };
        self.world.personality(number, self.cr4)
    }

    /// Returns the number of the processor.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Ends the SEAMCALL: clears a TD's state from the processor's registers, and returns the runner of TD vCPUs for
    /// the [`Lp`].
    pub fn leave(self) -> Option<&'static mut Td> {
        let mut td = self.td.into_inner();
        if let Some(td) = &mut td
            && core::mem::take(&mut td.ran)
        {
            td.scrub();
        }
        td
    }
}

impl Machine for SeamCpu<'_> {
    #[inline(always)]
    fn platform(&self) -> Platform<'_> {
        self.world.platform()
    }

    #[inline(always)]
    fn page(&self, pa: u64) -> &PageWords {
        let pa = pa & !KEYID_MASK & !(PAGE as u64 - 1);
        // SAFETY: RAM that the monitor's page tables identity-map, or the page that replaces memory that is not RAM;
        // all of it is only ever accessed as atomic words here. The software above may race with it as with any device.
        unsafe { &*(self.world.ram_or_nothing(pa) as *const PageWords) }
    }

    fn guard(&self, lp: u32, pages: Range<u64>, private: bool) {
        self.world.npt.guard(lp, pages, private);
    }

    /// Returns CPUID of a complete Sapphire Rapids, which TDH.SYS.INIT checks, except for machine-dependent values:
    /// ids, topology, caches, clock, address width. TDs get the part of it that exists under TCG.
    fn cpuid(&self, lp: u32, leaf: u32, sub_leaf: u32) -> [u32; 4] {
        const APIC_ID: u32 = 0xFF << 24;
        const ADDRESS_BITS: u32 = 0xFF;
        let here = self.personality(lp).cpuid(cpu::cpuid, leaf, sub_leaf);
        let [eax, ebx, ecx, edx] = sapphire_rapids::cpuid(leaf, sub_leaf);
        match leaf {
            1 => [here[0], ebx & !APIC_ID | here[1] & APIC_ID, ecx, edx],
            0x8000_0008 => [eax & !ADDRESS_BITS | here[0] & ADDRESS_BITS, ebx, ecx, edx],
            0 | 4 | 0xB | 0x15 | 0x16 | 0x1F | 0x8000_0000 => here,
            _ => [eax, ebx, ecx, edx],
        }
    }

    fn td_cpuid(&self, lp: u32, leaf: u32, sub_leaf: u32) -> [u32; 4] {
        self.personality(lp).td_cpuid(cpu::cpuid, leaf, sub_leaf)
    }

    fn rdmsr(&self, _lp: u32, msr: u32) -> u64 {
        match msr {
            0x3B => self.tsc_adjust,
            0x122 => self.tsx_ctrl,
            0x1A0 => self.misc_enable,
            // Capabilities of a complete Sapphire Rapids, as for CPUID.
            0xCF | 0x10A | 0x345 | 0x480..=0x492 => sapphire_rapids::msr(msr),
            _ => personality::constant(msr, &self.world.facts)
                .or_else(|| personality::seam_only(msr))
                .unwrap_or_else(|| cpu::rdmsr(msr)),
        }
    }

    fn rdtsc(&self, _lp: u32) -> u64 {
        cpu::rdtsc()
    }

    /// Returns false: TCG has no TSC scaling, and an exit at each RDTSC would cost too much.
    fn scales_tsc(&self) -> bool {
        false
    }

    fn rdrand(&self, _lp: u32) -> Option<u64> {
        cpu::rdrand()
    }

    /// Draws from RDRAND: TCG has no RDSEED.
    fn rdseed(&self, lp: u32) -> Option<u64> {
        self.rdrand(lp)
    }

    fn interrupt_pending(&self, lp: u32) -> bool {
        let shared = &self.world.lps[lp as usize];
        shared.kicked.load(Ordering::Acquire)
            || self.interrupts_enabled && highest_request() >> 4 > Hardware.read(PPR) >> 4
    }

    fn pconfig(&self, lp: u32, _hkid: u32) -> Result<(), PconfigError> {
        let package = self.world.lps[lp as usize].package as usize;
        let table = &KEY_TABLES[package % KEY_TABLES.len()];
        if table.swap(true, Ordering::Acquire) {
            return Err(PconfigError::Busy);
        }
        // Memory is not encrypted here, but a key is drawn, which can fail.
        let key = self.rdrand(lp);
        table.store(false, Ordering::Release);
        key.map(drop).ok_or(PconfigError::Entropy)
    }

    /// Does nothing: TCG has no caches.
    fn cache_write_back(&self, _lp: u32, _sub_block: u32) {}

    fn reached(&self, _lp: u32, point: Point) {
        if point == Point::Invept
            && let Some(td) = self.td.lock().as_mut()
        {
            td.flush();
        }
    }

    #[inline(always)]
    fn run_vcpu(&self, _lp: u32, vcpu: &Vcpu<'_>) {
        if let Some(td) = self.td.lock().as_mut() {
            td.run(self, vcpu);
        }
    }

    fn impossible(&self, lp: u32, exit: &Impossible) {
        let kind = if exit.shuts_down {
            "module_shutdown"
        } else {
            "td_unexplained"
        };
        report::line(
            kind,
            format_args!(
                r#""lp":{lp},"check":"{}","reason":"{:#x}","qualification":"{:#x}","rip":"{:#x}","length":{}"#,
                exit.check.name(),
                exit.reason,
                exit.qualification,
                exit.rip,
                exit.length
            ),
        );
    }

    fn host_xmm(&self, _lp: u32, index: usize) -> u128 {
        let [low, high] = &self.xmm[index % 16];
        u128::from(low.load(Ordering::Relaxed)) | u128::from(high.load(Ordering::Relaxed)) << 64
    }

    fn set_host_xmm(&self, _lp: u32, index: usize, value: u128) {
        let [low, high] = &self.xmm[index % 16];
        low.store(value as u64, Ordering::Relaxed);
        high.store((value >> 64) as u64, Ordering::Relaxed);
    }

    fn task_priority(&self, _lp: u32) -> u64 {
        u64::from(Hardware.read(TPR) >> 4 & 0xF)
    }

    /// Sends the interrupt that the module has just taken to the processor again, so that the host gets it later. The
    /// interrupt is in service, which would block it, so this ends its service first.
    fn send_self_ipi(&self, _lp: u32, vector: u8) {
        const TO_SELF: u32 = 1 << 18;
        let in_service = Hardware.read(ISR + u32::from(vector / 32) * 0x10);
        if in_service >> (vector % 32) & 1 != 0 {
            Hardware.write(EOI, 0);
        }
        Hardware.write(ICR, TO_SELF | u32::from(vector));
    }

    fn set_task_priority(&self, _lp: u32, priority: u64) {
        Hardware.write(TPR, (priority as u32 & 0xF) << 4);
    }

    fn report_key(&self, _lp: u32) -> Result<[u8; 32], u64> {
        Ok(self.world.report_key)
    }

    fn verify_report(&self, _lp: u32, report: &ReportMac) -> Result<(), u64> {
        stub_module::check_report(report, &self.world.report_key)
    }
}

const TPR: u32 = 0x80;
const PPR: u32 = 0xA0;
const EOI: u32 = 0xB0;
const ISR: u32 = 0x100;
const IRR: u32 = 0x200;
const ICR: u32 = 0x300;

/// Returns the highest pending vector in this processor's APIC; 0 if there is none.
fn highest_request() -> u32 {
    (0..8)
        .rev()
        .find_map(|i| {
            let word = Hardware.read(IRR + i * 0x10);
            (word != 0).then(|| i * 32 + 31 - word.leading_zeros())
        })
        .unwrap_or(0)
}

impl World {
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
    fn ram_or_nothing(&self, pa: u64) -> u64 {
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

/// Returns the convertible memory: RAM above 1 MiB, without the SEAM range.
pub fn cmrs(ram: &[(u64, u64)], seamrr: (u64, u64)) -> alloc::vec::Vec<(u64, u64)> {
    const FIRST: u64 = 1 << 20;
    let (hole, hole_end) = (seamrr.0, seamrr.0 + seamrr.1);
    ram.iter()
        .map(|&(base, size)| (base.max(FIRST), base + size))
        .flat_map(|(base, end)| [(base, end.min(hole)), (base.max(hole_end), end)])
        .filter(|(base, end)| base < end)
        .map(|(base, end)| (base, end - base))
        .collect()
}

/// Draws a key for TDREPORTs, which is valid until the next boot.
pub fn draw_report_key() -> [u8; 32] {
    let mut key = [0; 32];
    for chunk in key.chunks_mut(8) {
        chunk.copy_from_slice(&random().to_le_bytes());
    }
    key
}

/// Returns a random number, or the time-stamp counter if RDRAND fails.
pub fn random() -> u64 {
    (0..100)
        .find_map(|_| cpu::rdrand())
        .unwrap_or_else(cpu::rdtsc)
}

/// Allocates the page that replaces nonexistent memory.
pub fn nothing() -> u64 {
    memory::pages(1).address()
}
