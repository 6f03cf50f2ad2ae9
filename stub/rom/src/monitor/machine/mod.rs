//! The machine that the emulated TDX module runs on: the machine beneath the monitor.
#![expect(unsafe_code, reason = "gives the module references to physical pages")]

mod physical;
mod td;

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use seam::abi::ReportMac;
use spin::Mutex;
use stub_module::vcpu::Vcpu;
use stub_module::{Impossible, Machine, PageWords, PconfigError, Platform, Point, sapphire_rapids};
use stub_rom::apic::Xapic;
use stub_rom::personality::{self, Cpu, KEYID_MASK};

pub use self::physical::{Data, Physical, report_violations, word};
pub use self::td::{Td, install_vectors};
use super::hardware::Hardware;
use super::shared::Shared;
use super::world::World;
use crate::memory::PAGE;
use crate::{cpu, report};

/// An XMM register of the host, which a SEAMCALL may read and write: low and high half.
pub type Xmm = [AtomicU64; 2];

/// The registers of the host that a SEAMCALL depends on.
#[derive(Clone, Copy)]
pub struct HostRegisters<'a> {
    pub cr4: u64,
    /// RFLAGS.IF.
    pub interrupts_enabled: bool,
    pub tsc_adjust: u64,
    pub misc_enable: u64,
    pub tsx_ctrl: u64,
    pub xmm: &'a [Xmm; 16],
}

impl HostRegisters<'_> {
    /// The registers for a call that depends on none of them.
    const NONE: Self = {
        static XMM: [Xmm; 16] = [const { [AtomicU64::new(0), AtomicU64::new(0)] }; 16];
        Self {
            cr4: 0,
            interrupts_enabled: false,
            tsc_adjust: 0,
            misc_enable: 0,
            tsx_ctrl: 0,
            xmm: &XMM,
        }
    };
}

/// The machine during one call of the module.
pub struct SeamCpu<'a> {
    world: &'static World,
    number: u32,
    host: HostRegisters<'a>,
    /// The runner of TD vCPUs, on the processor that executes a SEAMCALL.
    td: Mutex<Option<&'static mut Td>>,
}

/// IA32_MISC_ENABLE: performance monitoring available; branch trace store unavailable.
const PERFMON_AVAILABLE: u64 = 1 << 7;
const BTS_UNAVAILABLE: u64 = 1 << 11;

/// The packages whose key table is being written, one flag each.
static KEY_TABLES: [AtomicBool; 64] = [const { AtomicBool::new(false) }; 64];

impl<'a> SeamCpu<'a> {
    /// Creates the machine for a SEAMCALL of the host on processor `number`, which may run a TD vCPU on `td`.
    pub fn new(
        world: &'static World,
        number: u32,
        host: HostRegisters<'a>,
        td: Option<&'static mut Td>,
    ) -> Self {
        Self {
            world,
            number,
            host,
            td: Mutex::new(td),
        }
    }

    /// Creates the machine for the look-up of a page's owner by processor `number`.
    fn for_look_up(world: &'static World, number: u32) -> Self {
        Self::new(world, number, HostRegisters::NONE, None)
    }

    /// Returns the machine as all processors see it.
    fn world(&self) -> &'static World {
        self.world
    }

    /// Returns the executing processor as the others see it.
    fn shared(&self) -> &'static Shared {
        &self.world.lps[self.number as usize]
    }

    /// Returns the identity of the processor `lp` as software sees it.
    fn personality(&self, lp: u32) -> Cpu {
        let number = if (lp as usize) < self.world.lps.len() {
            lp
        } else {
            self.number
        };
        self.world.personality(number, self.host.cr4)
    }

    /// Returns the number of the processor.
    fn number(&self) -> u32 {
        self.number
    }

    /// Ends the SEAMCALL: clears a TD's state from the processor's registers, and returns the runner of TD vCPUs for
    /// the processor.
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
        self.world
            .npt
            .guard(self.world.processors(lp), pages, private);
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
            0x3B => self.host.tsc_adjust,
            0x122 => self.host.tsx_ctrl,
            // Newer modules require performance monitoring, which TCG lacks.
            0x1A0 => self.host.misc_enable & !BTS_UNAVAILABLE | PERFMON_AVAILABLE,
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
            || self.host.interrupts_enabled && highest_request() >> 4 > Hardware.read(PPR) >> 4
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
        let [low, high] = &self.host.xmm[index % 16];
        u128::from(low.load(Ordering::Relaxed)) | u128::from(high.load(Ordering::Relaxed)) << 64
    }

    fn set_host_xmm(&self, _lp: u32, index: usize, value: u128) {
        let [low, high] = &self.host.xmm[index % 16];
        low.store(value as u64, Ordering::Relaxed);
        high.store((value >> 64) as u64, Ordering::Relaxed);
    }

    #[inline(always)]
    fn clear_host_xmm(&self, _lp: u32) {
        // One look at the reference, which the compiler would repeat for each register.
        for half in self.host.xmm.as_flattened() {
            half.store(0, Ordering::Relaxed);
        }
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

    /// The x2APIC's register has the destination in its high half. The module addresses all processors but its own, for
    /// which the low half suffices.
    fn write_icr(&self, _lp: u32, value: u64) {
        Hardware.write(ICR, value as u32);
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
