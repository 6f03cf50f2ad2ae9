//! One logical processor under the monitor: its state, and the loop that enters the guest and handles its exits.
#![expect(unsafe_code, reason = "world switch")]

use core::arch::naked_asm;
use core::cell::Cell;
use core::mem::offset_of;
use core::sync::atomic::AtomicU32;

use stub_rom::apic::Apic;
use stub_rom::insn::GprFile;
use stub_rom::vmx::Vmx;
use stub_rom::walk::Trail;

use super::machine::Xmm;
use super::npt::Detour;
use super::switch::through_guest;
use super::tables::Tables;
use super::td::Td;
use super::vmcb::{self, Vmcb, misc1, vector};
use super::{exits, presence, world};
use crate::cpu;
use crate::memory;

/// Size in bytes of the monitor's stack of each processor, a power of two. The emulated module runs on it too.
pub const STACK: usize = 128 << 10;
/// Size of the end of a stack, which starts with the address of the processor's [`Lp`]. Code on the stack finds the
/// [`Lp`] there, because FS, GS and the task register hold the guest's values even while the monitor runs.
pub const ANCHOR: usize = 16;

/// A logical processor. The assembly of the loop depends on the first fields. All data that every exit needs is in one
/// page.
#[repr(C, align(64))]
pub struct Lp {
    pub gprs: GprFile,
    pub xmm: [Xmm; 16],
    /// The VMCB to enter: the software's, or the one that parks the processor.
    entered: *mut Vmcb,
    /// The address of the stack's [`ANCHOR`]. Nothing is pushed above it.
    stack: u64,
    pub number: u32,
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
    pub step: Option<exits::Step>,
    /// The epoch of the shared tables that its TLB and its detour reflect.
    pub epoch: u64,
    /// The walk to the most recently read code, and the epoch in which it was recorded.
    pub trail: Cell<(u64, Trail)>,
    pub nmi_pending: bool,
    /// True if an NMI was delivered and its handler has not executed IRET yet.
    pub nmi_blocked: bool,
    /// The vector of the interrupt that was last taken for the host; 0 for none. The assembly of its handlers sets it.
    pub interrupt: AtomicU32,
    /// Nonzero once an NMI has arrived. The assembly of its handler sets it.
    pub took_nmi: AtomicU32,
    /// The runner of TD vCPUs. A SEAMCALL in progress borrows it.
    pub td: Option<&'static mut Td>,
    tables: &'static Tables,
    host_save: u64,
    // The remaining fields are large and rarely used.
    pub apic: Apic,
    pub detour: Detour,
    pub shadow_paging: exits::ShadowPaging,
    /// A page of all ones, which replaces memory that the software must not access.
    pub scratch: &'static mut [u64; 512],
}

/// IA32_MISC_ENABLE: fast strings, no BTS, no PEBS, MONITOR.
const MISC_ENABLE: u64 = 1 | 1 << 11 | 1 << 12 | 1 << 18;

impl Lp {
    /// Creates the processor `number`, with all the memory that it will ever need. It is not running yet.
    pub fn new(number: u32, apic: Apic) -> &'static mut Self {
        let stack = memory::aligned(STACK).address() + (STACK - ANCHOR) as u64;
        let lp = vmcb::beside(|vmcb| Self {
            gprs: GprFile::default(),
            xmm: Default::default(),
            entered: core::ptr::null_mut(),
            stack,
            number,
            vmcb,
            park: vmcb::page(),
            apic,
            vmx: Vmx::default(),
            cr4_shadow: 0,
            spec_ctrl: 0,
            misc_enable: MISC_ENABLE,
            tsc_adjust: 0,
            tsx_ctrl: 0,
            step: None,
            detour: Detour::new(),
            shadow_paging: exits::ShadowPaging::new(),
            scratch: memory::page(),
            epoch: 0,
            trail: Cell::default(),
            nmi_pending: false,
            nmi_blocked: false,
            interrupt: AtomicU32::new(0),
            took_nmi: AtomicU32::new(0),
            td: world::get().options.tdx.then(Td::new),
            tables: Tables::new(),
            host_save: memory::pages(1).address(),
        });
        lp.entered = &raw mut *lp.vmcb;
        // SAFETY: the stack was just allocated, and nobody uses it yet.
        unsafe { (stack as *mut *const Self).write(&raw const *lp) };
        lp.prepare_vmcb();
        lp
    }

    /// Returns the initial stack pointer of the monitor on this processor. The stack grows downwards.
    pub fn stack(&self) -> u64 {
        self.stack
    }

    fn prepare_vmcb(&mut self) {
        let world = world::get();
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
            cpu::wrmsr(
                cpu::MSR_EFER,
                cpu::rdmsr(cpu::MSR_EFER) | cpu::EFER_SVME | cpu::EFER_NXE,
            );
            cpu::wrmsr(cpu::MSR_VM_HSAVE_PA, self.host_save);
            core::arch::asm!("clgi", options(nostack));
            self.tables.load(world::get().limits);
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
        (p.save.dr6, p.save.dr7, p.save.rflags) = (0xFFFF_0FF0, 0x400, 2);
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
        self.vmcb.intercept_exceptions = exceptions(world::get().options.tdx);
        self.vmcb.nested_cr3 = world::get().npt.address();
        (self.step, self.nmi_pending, self.nmi_blocked) = (None, false, false);
        self.vmx = Vmx::default();
        self.entered = &raw mut *self.vmcb;
    }

    /// Returns CR4 as the software sees it.
    pub fn cr4(&self) -> u64 {
        self.vmcb.save.cr4 | self.cr4_shadow
    }

    /// Enters the guest and handles its exits forever.
    ///
    /// # Safety
    /// [`Self::take_over`] was called on this processor.
    pub unsafe fn run(&'static mut self) -> ! {
        presence::enter(self);
        // SAFETY: by the contract; the loop uses the stack that belongs to this processor.
        unsafe { world_switch(self) }
    }
}

/// Returns the exceptions that the monitor intercepts: invalid opcodes, and page faults if addresses can carry a KeyID.
pub fn exceptions(tdx: bool) -> u32 {
    1 << vector::UD | if tdx { 1 << vector::PF } else { 0 }
}

/// Returns the executing processor; `None` before it runs on the monitor's stack.
pub fn current() -> Option<&'static Lp> {
    let rsp: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, rsp", out(reg) rsp, options(nomem, nostack)) };
    let (base, size) = world::try_get()?.seamrr;
    if !(base..base + size).contains(&rsp) {
        return None;
    }
    let anchor = (rsp | (STACK as u64 - 1)) - (ANCHOR as u64 - 1);
    // SAFETY: among all stacks, only those of the processors lie inside the SEAM range. Each is aligned to its size and
    // ends with the address of its `Lp`, which is never freed.
    Some(unsafe { &**(anchor as *const *const Lp) })
}

/// Handles an exit. The loop calls it after each one.
extern "C" fn exited(lp: &mut Lp) {
    if world::is_dead() {
        cpu::stop();
    }
    presence::exit(lp);
    lp.gprs.0[0] = lp.vmcb.save.rax;
    lp.gprs.0[4] = lp.vmcb.save.rsp;
    exits::handle(lp);
    presence::enter(lp);
    lp.vmcb.save.rax = lp.gprs.0[0];
    lp.vmcb.save.rsp = lp.gprs.0[4];
}

/// Halts: the code of a parked processor.
#[unsafe(naked)]
unsafe extern "C" fn halted() {
    naked_asm!("2: hlt", "jmp 2b")
}

/// Lets a pending NMI in, and drops it.
pub fn take_nmi() {
    // SAFETY: interrupts are off in the monitor, so that only an NMI comes in, whose handler returns at once.
    unsafe { core::arch::asm!("stgi", "nop", "clgi") };
}

/// Loops over entries and exits. Between exit and entry, the XMM registers are the monitor's. The monitor executes no
/// VEX instructions, so the upper halves of the YMM registers are preserved. XCR0 always holds the guest's value.
#[unsafe(naked)]
unsafe extern "C" fn world_switch(lp: &mut Lp) -> ! {
    through_guest!(
        xmm_by: "lea",
        before: ["mov rsp, [rdi + {stack}]", "2:", "mov rdi, [rsp]"],
        enter: ["vmload rax", "vmrun rax", "vmsave rax"],
        after: ["mov rdi, rax", "cld", "call {exited}", "jmp 2b"],
        stack = const offset_of!(Lp, stack),
        xmm = const offset_of!(Lp, xmm),
        entered = const offset_of!(Lp, entered),
        exited = sym exited,
    )
}
