//! TD vCPUs, run as SVM guests: the processor that the emulated TDX module believes itself to have.
//!
//! [`Td`] is what one logical processor needs for it. A run takes the vCPU's state from its VMCS fields ([`state`]), enters the
//! guest ([`switch`]), and handles what a processor with VMX would do by itself: fill a TLB ([`memory`]), deliver
//! virtual interrupts ([`interrupts`]), let the guest have its own MSRs and control registers ([`msr`], [`cr`]). Everything
//! else becomes a VM exit ([`exits`]) in the VMCS, which is the module's to handle.

mod code;
mod cr;
mod exits;
mod extended;
mod interrupts;
mod memory;
mod msr;
mod state;
mod step;
mod switch;

use core::cell::Cell;

use stub_module::vcpu::{Field, Vcpu};
use stub_rom::doubt::Doubt;
use stub_rom::insn::GprFile;
use stub_rom::shadow::Shadow;
use stub_rom::walk::Trail;

use super::machine::SeamCpu;
use super::vmcb::{self, Vmcb, misc1, misc2};

pub use exits::VmExit;
pub use interrupts::install as install_vectors;

/// Tables of a processor's shadow: 1 MiB of them.
const SHADOW_TABLES: usize = 256;

/// What a logical processor needs to run TD vCPUs. The assembly of the world switch knows the first fields.
#[repr(C, align(16))]
pub struct Td {
    pub gprs: GprFile,
    /// Where the guest's XMM registers are: in its extended-state area, while it runs.
    xmm: *mut u128,
    /// The VMCB's physical address.
    entered: *mut Vmcb,
    pub vmcb: &'static mut Vmcb,
    pub shadow: Shadow,
    /// The way to the code that was last looked at, and the shadow's generation in which it was.
    trail: Cell<(u64, Trail)>,
    /// The guest's task priority when it was entered: the upper half of its TPR.
    priority: u8,
    /// The vector that waits in the VMCB to be taken by the guest.
    offered: Option<u8>,
    /// The guest handles an NMI.
    nmi_blocked: bool,
    step: Option<step::Step>,
    doubt: Doubt,
    /// What XCR0 can have.
    supported: u64,
    /// The guest's extended state is in the registers; the host's is lost.
    pub ran: bool,
}

// SAFETY: the pointers are to what the processor that owns this runs, and only that processor uses them.
#[expect(unsafe_code, reason = "the world switch takes addresses")]
unsafe impl Send for Td {}

/// What becomes of a run after an SVM exit.
enum Next {
    /// The guest goes on.
    Resume,
    /// The module has to look at it.
    Exit(VmExit),
}

impl Td {
    /// For one processor.
    pub fn new() -> &'static mut Self {
        let td = vmcb::beside(|vmcb| Self {
            gprs: GprFile::default(),
            xmm: core::ptr::null_mut(),
            entered: &raw mut *vmcb,
            vmcb,
            shadow: Shadow::new(SHADOW_TABLES),
            trail: Cell::default(),
            priority: 0,
            offered: None,
            nmi_blocked: false,
            step: None,
            doubt: Doubt::default(),
            supported: extended::supported(),
            ran: false,
        });
        td.prepare_vmcb();
        td
    }

    /// What no vCPU changes in the VMCB.
    fn prepare_vmcb(&mut self) {
        /// Any but the host's.
        const ASID: u32 = 2;
        let c = &mut *self.vmcb;
        // Of CR8, TCG takes any value; and a lower task priority may let a waiting interrupt through.
        c.intercept_cr = vmcb::CR0_WRITE | vmcb::CR4_WRITE | vmcb::CR8_WRITE;
        c.intercept_misc1 = misc1::INTR
            | misc1::NMI
            | misc1::INIT
            | misc1::CPUID
            | misc1::RDPMC
            | misc1::INVD
            | misc1::HLT
            | misc1::INVLPGA
            | misc1::IO
            | misc1::MSR
            | misc1::SHUTDOWN;
        c.intercept_misc2 = vmcb::SVM_INSTRUCTIONS | misc2::WBINVD | misc2::XSETBV;
        c.io_bitmap = switch::io_bitmap();
        c.msr_bitmap = msr::bitmap();
        c.asid = ASID;
        c.nested_control = 1;
        c.nested_cr3 = self.shadow.root();
    }

    /// Forgets the guest's translations, as INVEPT does.
    pub fn flush(&mut self) {
        self.shadow.flush();
        self.vmcb.tlb_control = 1;
    }

    /// Runs the vCPU until its next VM exit, which is in the VMCS afterwards.
    #[inline(always)]
    pub fn run(&mut self, machine: &SeamCpu, vcpu: &Vcpu<'_>) {
        let exit = match self.window(vcpu) {
            Some(exit) => exit,
            None => self.run_guest(machine, vcpu),
        };
        exits::record(&exit, vcpu);
    }

    #[inline(always)]
    fn run_guest(&mut self, machine: &SeamCpu, vcpu: &Vcpu<'_>) -> VmExit {
        self.load(vcpu);
        let exit = loop {
            self.before_entry(vcpu);
            self.enter();
            match self.exited(machine, vcpu) {
                Next::Resume => {}
                Next::Exit(exit) => break exit,
            }
        };
        self.store(vcpu);
        exit
    }

    /// What the CPU checks between two instructions of the guest.
    #[inline(always)]
    fn before_entry(&mut self, vcpu: &Vcpu<'_>) {
        self.begin_step(vcpu);
        self.offer_interrupt(vcpu);
    }

    /// An exit that is due before the guest executes anything.
    fn window(&self, vcpu: &Vcpu<'_>) -> Option<VmExit> {
        const NMI_WINDOW: u64 = 1 << 22;
        const BLOCKED: u64 = state::blocking::NMI | state::blocking::MOV_SS | state::blocking::STI;
        let wanted = vcpu.vmcs(Field::PROC_BASED) & NMI_WINDOW != 0;
        let open = vcpu.vmcs(Field::INTERRUPTIBILITY) & BLOCKED == 0
            && vcpu.vmcs(Field::ENTRY_INT_INFO) & state::EVENT_VALID == 0;
        (wanted && open).then(|| VmExit::of(exits::reason::NMI_WINDOW))
    }
}
