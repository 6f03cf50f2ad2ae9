//! TD vCPUs, run as SVM guests: provides the processor that the emulated TDX module expects.
//!
//! [`Td`] is the state that one logical processor needs for this. A run loads the vCPU's state from its VMCS fields
//! ([`state`]), enters the guest ([`switch`]), and does the work that a processor with VMX would do itself: it fills a
//! TLB ([`memory`]), delivers virtual interrupts ([`interrupts`]), and handles the guest's own MSRs and control
//! registers ([`msr`], [`cr`]). Everything else becomes a VM exit ([`exits`]) in the VMCS, which the module handles.

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
use stub_rom::lost::{Entered, Entry};
use stub_rom::shadow::Shadow;
use stub_rom::walk::Trail;

use super::SeamCpu;
use crate::monitor::anchor::Anchor;
use crate::monitor::vmcb::{self, Vmcb, misc1, misc2};

pub use interrupts::install as install_vectors;
use seam::abi::x86::exit_reason as reason;
use stub_rom::translation::VmExit;

/// Number of tables of a processor's shadow: 1 MiB of them.
const SHADOW_TABLES: usize = 256;

/// The state that a logical processor needs to run TD vCPUs. The assembly of the world switch depends on the first
/// fields.
#[repr(C, align(16))]
pub struct Td {
    pub gprs: GprFile,
    /// The address of the guest's XMM registers, in its extended-state area, while it runs.
    xmm: *mut u128,
    /// The VMCB's physical address.
    entered: *mut Vmcb,
    pub vmcb: &'static mut Vmcb,
    /// The end of the processor's stack, where interrupt handlers leave the vector.
    anchor: &'static Anchor,
    /// The number of the processor.
    number: u32,
    pub shadow: Shadow,
    /// The walk to the most recently read code, and the shadow's generation in which it was recorded.
    trail: Cell<(u64, Trail)>,
    /// The guest's task priority when it was entered: the upper half of its TPR.
    priority: u8,
    /// The vector offered in the VMCB, which the guest has not taken yet.
    offered: Option<u8>,
    /// True while the guest handles an NMI.
    nmi_blocked: bool,
    step: Option<step::Step>,
    doubt: Doubt,
    /// The last entry of the guest.
    entered_at: Entered,
    /// The components that XCR0 supports.
    supported: u64,
    /// True if the registers hold the guest's extended state. The host's is lost then.
    pub ran: bool,
}

// SAFETY: the pointers are to state that the owning processor runs, and only that processor uses them.
#[expect(unsafe_code, reason = "contains pointers for the world switch")]
unsafe impl Send for Td {}

/// The continuation of a run after an SVM exit.
enum Next {
    /// Resume the guest.
    Resume,
    /// Return the exit to the module.
    Exit(VmExit),
}

impl Td {
    /// Creates the state of one processor.
    pub fn new(number: u32, anchor: &'static Anchor) -> &'static mut Self {
        let td = vmcb::beside(|vmcb| Self {
            gprs: GprFile::default(),
            xmm: core::ptr::null_mut(),
            entered: &raw mut *vmcb,
            vmcb,
            anchor,
            number,
            shadow: Shadow::new(SHADOW_TABLES),
            trail: Cell::default(),
            priority: 0,
            offered: None,
            nmi_blocked: false,
            step: None,
            doubt: Doubt::default(),
            entered_at: Entered::default(),
            supported: extended::supported(),
            ran: false,
        });
        td.prepare_vmcb();
        td
    }

    /// Sets the parts of the VMCB that no vCPU changes.
    fn prepare_vmcb(&mut self) {
        /// Any ASID other than the host's.
        const ASID: u32 = 2;
        let c = &mut *self.vmcb;
        // TCG accepts any value of CR8, and a lower task priority may unblock a pending interrupt.
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

    /// Drops the guest's translations, as INVEPT does.
    pub fn flush(&mut self) {
        self.shadow.flush();
        self.vmcb.tlb_control = 1;
    }

    /// Runs the vCPU until its next VM exit, and records the exit in the VMCS.
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

    /// Performs the CPU's checks between two instructions of the guest.
    #[inline(always)]
    fn before_entry(&mut self, vcpu: &Vcpu<'_>) {
        self.begin_step(vcpu);
        self.offer_interrupt(vcpu);
        self.entered_at.note(Entry {
            rip: self.vmcb.save.rip,
            rsp: self.vmcb.save.rsp,
            cr2: self.vmcb.save.cr2,
            event: self.vmcb.event_injection,
        });
    }

    /// Returns an exit that is due before the guest executes anything.
    fn window(&self, vcpu: &Vcpu<'_>) -> Option<VmExit> {
        const NMI_WINDOW: u64 = 1 << 22;
        const BLOCKED: u64 = state::blocking::NMI | state::blocking::MOV_SS | state::blocking::STI;
        let wanted = vcpu.vmcs(Field::PROC_BASED) & NMI_WINDOW != 0;
        let open = vcpu.vmcs(Field::INTERRUPTIBILITY) & BLOCKED == 0
            && vcpu.vmcs(Field::ENTRY_INT_INFO) & state::EVENT_VALID == 0;
        (wanted && open).then(|| VmExit::of(reason::NMI_WINDOW))
    }
}
