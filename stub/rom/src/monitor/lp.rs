//! One logical processor under the monitor.
#![expect(unsafe_code, reason = "takes a processor over")]

use core::arch::naked_asm;
use core::cell::Cell;
use core::fmt;
use core::mem::offset_of;
use core::sync::atomic::AtomicBool;

use seam::abi::x86::{dr6, efer, rflags, vector};
use stub_rom::apic::Apic;
use stub_rom::insn::GprFile;
use stub_rom::vmx::Vmx;
use stub_rom::walk::Trail;

use super::anchor::{self, Anchor};
use super::detour::Detour;
use super::machine::{Data, HostRegisters, Physical, SeamCpu, Td, Xmm};
use super::presence::{self, Presence};
use super::shadow_paging::ShadowPaging;
use super::shared::{self, Shared};
use super::tables::Tables;
use super::vmcb::{self, Vmcb, misc1};
use super::world::World;
use crate::cpu;
use crate::memory;

/// A logical processor. The assembly of the loop depends on the first fields. All data that every exit needs is in one
/// page.
#[repr(C, align(64))]
pub struct Lp {
    pub gprs: GprFile,
    pub xmm: [Xmm; 16],
    /// The VMCB to enter: the software's, or the one that parks the processor.
    entered: *mut Vmcb,
    /// The end of the stack.
    pub anchor: &'static Anchor,
    /// The machine that the processor belongs to.
    pub world: &'static World,
    pub number: u32,
    /// Its presence, and the flag of its mailbox, which every exit needs.
    pub presence: &'static Presence,
    pub posted: &'static AtomicBool,
    pub vmcb: &'static mut Vmcb,
    park: &'static mut Vmcb,
    pub vmx: Vmx,
    /// CR4 bits that a VMCB can't hold, as the software set them.
    pub cr4_shadow: u64,
    /// MSRs that exist only for the software.
    pub spec_ctrl: u64,
    pub misc_enable: u64,
    pub tsc_adjust: u64,
    pub tsx_ctrl: u64,
    pub step: Option<Step>,
    /// The epoch of the shared tables that its TLB and its detour reflect.
    pub epoch: u64,
    /// The walk to the most recently read code, and the epoch in which it was recorded.
    pub trail: Cell<(u64, Trail)>,
    pub nmi_pending: bool,
    /// True if an NMI was delivered and its handler has not executed IRET yet.
    pub nmi_blocked: bool,
    /// The runner of TD vCPUs. A SEAMCALL in progress borrows it.
    pub td: Option<&'static mut Td>,
    tables: &'static Tables,
    host_save: u64,
    // The remaining fields are large and rarely used.
    pub apic: Apic,
    pub detour: Detour,
    pub shadow_paging: ShadowPaging,
    /// A page of all ones, which replaces memory that the software must not access.
    pub scratch: &'static mut [u64; 512],
}

/// A single step in progress.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The software's own trap and interrupt flags.
    pub flags: u64,
    pub dr6: u64,
    pub cr3: u64,
    /// True if the step is over memory that the software must not access.
    pub over_memory: bool,
}

/// Offsets that the loop of entries and exits depends on.
pub mod offset {
    use super::{Lp, offset_of};

    pub const ANCHOR: usize = offset_of!(Lp, anchor);
    pub const XMM: usize = offset_of!(Lp, xmm);
    pub const ENTERED: usize = offset_of!(Lp, entered);
}

/// IA32_MISC_ENABLE: fast strings, no BTS, no PEBS, MONITOR.
const MISC_ENABLE: u64 = 1 | 1 << 11 | 1 << 12 | 1 << 18;

impl Lp {
    /// Creates the processor `number`, with all the memory that it will ever need. It is not running yet.
    pub fn new(number: u32, apic: Apic, world: &'static World) -> &'static mut Self {
        let anchor = Anchor::new();
        let lp = vmcb::beside(|vmcb| Self {
            gprs: GprFile::default(),
            xmm: Default::default(),
            entered: core::ptr::null_mut(),
            anchor,
            world,
            number,
            presence: presence::of(number),
            posted: shared::posted(number),
            vmcb,
            park: vmcb::page(),
            apic,
            vmx: Vmx::default(),
            cr4_shadow: 0,
            spec_ctrl: 0,
            misc_enable: MISC_ENABLE,
            tsc_adjust: world.options.left_tsc_adjust(number),
            tsx_ctrl: 0,
            step: None,
            detour: Detour::new(),
            shadow_paging: ShadowPaging::new(),
            scratch: memory::page(),
            epoch: 0,
            trail: Cell::default(),
            nmi_pending: false,
            nmi_blocked: false,
            td: world.options.tdx.then(|| Td::new(number, anchor)),
            tables: Tables::new(),
            host_save: memory::pages(1).address(),
        });
        lp.entered = &raw mut *lp.vmcb;
        anchor.set_lp(&raw mut *lp);
        lp.prepare_vmcb();
        lp
    }

    /// Returns the processor as the others see it.
    pub fn shared(&self) -> &'static Shared {
        &self.world.lps[self.number as usize]
    }

    /// Returns the physical memory that the software may access.
    pub fn physical(&self) -> Physical {
        Physical::new(self.world, self.number)
    }

    /// Returns the physical memory that the instruction at the instruction pointer may access.
    pub fn data(&self) -> Data {
        self.physical().at(self.vmcb.save.rip)
    }

    /// Creates the machine for a SEAMCALL that the software executes. It borrows the runner of TD vCPUs, which
    /// [`SeamCpu::leave`] returns.
    pub fn seam(&mut self) -> SeamCpu<'_> {
        let host = HostRegisters {
            cr4: self.cr4(),
            interrupts_enabled: self.vmcb.save.rflags & rflags::IF != 0,
            tsc_adjust: self.tsc_adjust,
            misc_enable: self.misc_enable,
            tsx_ctrl: self.tsx_ctrl,
            xmm: &self.xmm,
        };
        SeamCpu::new(self.world, self.number, host, self.td.take())
    }

    fn prepare_vmcb(&mut self) {
        let world = self.world;
        let c = &mut *self.vmcb;
        c.intercept_cr = vmcb::CR4_WRITE;
        c.intercept_exceptions = exceptions(world.options.tdx);
        c.intercept_misc1 = misc1::NMI | misc1::INIT | misc1::CPUID | misc1::MSR | misc1::SHUTDOWN;
        c.intercept_misc2 = vmcb::SVM_INSTRUCTIONS;
        c.msr_bitmap = world.msr_bitmap;
        c.asid = 1;
        c.nested_control = 1;
        c.nested_cr3 = world.npt.address();
        c.save.pat = cpu::rdmsr(0x277);
    }

    /// Takes this processor over: loads the monitor's descriptor tables, enables SVM, and sets the state that a world
    /// switch expects.
    ///
    /// # Safety
    /// The processor executes the monitor under the monitor's page tables, with interrupts off, and this is its `Lp`.
    /// The guest's values of FS, GS, TR, LDTR and the system call MSRs have been saved in the VMCB.
    pub unsafe fn take_over(&mut self) {
        // SAFETY: by this function's contract; the save area is a page of this processor's own.
        unsafe {
            // Nested page tables can only forbid execution if the monitor itself has NXE set.
            cpu::wrmsr(
                cpu::MSR_EFER,
                cpu::rdmsr(cpu::MSR_EFER) | cpu::EFER_SVME | efer::NXE,
            );
            cpu::wrmsr(cpu::MSR_VM_HSAVE_PA, self.host_save);
            core::arch::asm!("clgi", options(nostack));
            self.tables.load(self.world.limits);
        }
        self.prepare_park();
    }

    /// Prepares the parking guest. It runs the monitor's own `hlt` in the monitor's own address space, and an NMI ends
    /// it.
    fn prepare_park(&mut self) {
        let flat = |attributes| vmcb::Segment {
            selector: 0x10,
            attributes,
            limit: u32::MAX,
            base: 0,
        };
        let p = &mut *self.park;
        p.intercept_misc1 = misc1::NMI | misc1::INIT | misc1::SHUTDOWN;
        p.intercept_misc2 = vmcb::SVM_INSTRUCTIONS;
        p.asid = 1;
        p.save.cs = vmcb::Segment {
            selector: 8,
            ..flat(0xA9B)
        };
        p.save.ss = flat(0xC93);
        (p.save.ds, p.save.es) = (p.save.ss, p.save.ss);
        p.save.tr = vmcb::Segment {
            attributes: 0x8B,
            ..flat(0)
        };
        p.save.efer = cpu::rdmsr(cpu::MSR_EFER);
        let (cr0, cr3, cr4): (u64, u64, u64);
        // SAFETY: reads registers.
        unsafe {
            core::arch::asm!("mov {}, cr0", "mov {}, cr3", "mov {}, cr4",
                out(reg) cr0, out(reg) cr3, out(reg) cr4, options(nomem, nostack));
        }
        (p.save.cr0, p.save.cr3, p.save.cr4) = (cr0, cr3, cr4);
        (p.save.dr6, p.save.dr7, p.save.rflags) = (dr6::INITIAL, 0x400, rflags::RESERVED);
        p.save.pat = cpu::rdmsr(0x277);
        p.save.rip = halted as *const () as u64;
    }

    /// Returns whether the processor waits for a start-up IPI.
    pub fn is_parked(&self) -> bool {
        core::ptr::eq(self.entered, self.park)
    }

    /// Parks the processor: from the next entry on, it waits for a start-up IPI.
    pub fn park(&mut self) {
        self.park.save.rip = halted as *const () as u64;
        self.entered = &raw mut *self.park;
    }

    /// Starts the processor: from the next entry on, it runs the software at the page of a start-up IPI.
    pub fn start_at(&mut self, page: u8) {
        const SIGNATURE: u64 = 0x806F8;
        self.gprs = GprFile::default();
        self.gprs.0[stub_rom::insn::gpr::RDX] = SIGNATURE;
        self.vmcb.start_at(page);
        self.cr4_shadow = 0;
        self.vmcb.intercept_cr = vmcb::CR4_WRITE;
        self.vmcb.intercept_misc1 &= !misc1::IRET;
        self.vmcb.intercept_exceptions = exceptions(self.world.options.tdx);
        self.vmcb.nested_cr3 = self.world.npt.address();
        (self.step, self.nmi_pending, self.nmi_blocked) = (None, false, false);
        self.vmx = Vmx::default();
        self.entered = &raw mut *self.vmcb;
    }

    /// Returns CR4 as the software sees it.
    pub fn cr4(&self) -> u64 {
        self.vmcb.save.cr4 | self.cr4_shadow
    }
}

/// Returns the exceptions that the monitor intercepts: invalid opcodes, and page faults if addresses can carry a KeyID.
pub fn exceptions(tdx: bool) -> u32 {
    1 << vector::UD | if tdx { 1 << vector::PF } else { 0 }
}

/// Formats the executing processor's state for the report of a panic.
pub fn describe(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Some(anchor) = anchor::current() else {
        return Ok(());
    };
    // SAFETY: only `Lp::new` sets the address, and an `Lp` is never freed. Nothing else runs on a processor that has
    // panicked, so the state does not change while it is read.
    match unsafe { anchor.lp().cast::<Lp>().as_ref() } {
        Some(lp) => write!(f, ",{}", State(lp)),
        None => Ok(()),
    }
}

/// Halts: the code of a parked processor.
#[unsafe(naked)]
unsafe extern "C" fn halted() {
    naked_asm!("2: hlt", "jmp 2b")
}

/// A processor with its last exit and the software's registers, formatted as members of a JSON object.
pub struct State<'a>(pub &'a Lp);

impl fmt::Display for State<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(lp) = self;
        write!(f, r#""lp":{}"#, lp.number)?;
        let (v, s, g) = (&lp.vmcb, &lp.vmcb.save, &lp.gprs.0);
        for (name, value) in [
            ("exit", v.exit_code),
            ("info1", v.exit_info1),
            ("info2", v.exit_info2),
            ("cs", s.cs.selector.into()),
            ("rip", s.rip),
            ("rsp", s.rsp),
            ("rflags", s.rflags),
            ("cr0", s.cr0),
            ("cr2", s.cr2),
            ("cr3", s.cr3),
            ("cr4", s.cr4),
            ("efer", s.efer),
            ("rax", g[0]),
            ("rcx", g[1]),
            ("rdx", g[2]),
            ("rbx", g[3]),
            ("rbp", g[5]),
            ("rsi", g[6]),
            ("rdi", g[7]),
        ] {
            write!(f, r#","{name}":"{value:#x}""#)?;
        }
        Ok(())
    }
}
