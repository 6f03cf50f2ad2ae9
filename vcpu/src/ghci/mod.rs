//! The Guest-Hypervisor Communication Interface: what a guest may ask of the host by TDG.VP.VMCALL.
//!
//! R10 is zero for these, R11 the sub-function, R12 to R15 (and, for a fatal error, more) the operands; the answer has a
//! status in R10. Whatever the guest puts there is checked before it is used. Each way that a call can go is a
//! [`Branch`], which is counted.
//!
//! Source: Intel TDX Guest-Hypervisor Communication Interface 1.5, chapter 3; Linux arch/x86/kvm/vmx/tdx.c and
//! arch/x86/coco/tdx/tdx.c for what both sides of it do.

mod branch;
mod fatal;
mod instruction;
mod map_gpa;
mod services;

use crate::host::Host;
use crate::run::{Session, Stop};

pub use branch::{Branch, Branches};
pub use fatal::FatalError;

/// Sub-functions, R11.
mod function {
    pub const CPUID: u64 = 0x0A;
    pub const HLT: u64 = 0x0C;
    pub const IO: u64 = 0x1E;
    pub const RDMSR: u64 = 0x1F;
    pub const WRMSR: u64 = 0x20;
    pub const MMIO: u64 = 0x30;
    pub const GET_TD_VM_CALL_INFO: u64 = 0x1_0000;
    pub const MAP_GPA: u64 = 0x1_0001;
    pub const GET_QUOTE: u64 = 0x1_0002;
    pub const REPORT_FATAL_ERROR: u64 = 0x1_0003;
    pub const SETUP_EVENT_NOTIFY_INTERRUPT: u64 = 0x1_0004;
    pub const SERVICE: u64 = 0x1_0005;
}

/// R10 of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Status {
    /// TDG.VP.VMCALL_SUCCESS.
    Success = 0,
    /// TDG.VP.VMCALL_RETRY: go on from the address in R11.
    Retry = 1,
    /// TDG.VP.VMCALL_INVALID_OPERAND.
    InvalidOperand = 1 << 63,
    /// TDG.VP.VMCALL_ALIGN_ERROR.
    AlignError = 1 << 63 | 2,
    /// TDG.VP.VMCALL_SUBFUNC_UNSUPPORTED.
    SubfunctionUnsupported = 1 << 63 | 3,
}

impl<H: Host> Session<'_, H> {
    /// Serves a TDVMCALL, and says whether the vCPU must not be entered again at once.
    #[inline]
    pub(crate) fn serve_call(&mut self) -> Option<Stop> {
        if self.vcpu.regs.r10 != 0 {
            self.host.vendor_call(self.vcpu.index, &mut self.vcpu.regs);
            self.station.branches().count(Branch::Vendor);
            return None;
        }
        let (branch, stop) = match self.vcpu.regs.r11 {
            function::CPUID => (self.cpuid(), None),
            function::HLT => self.halt(),
            function::IO => self.port_io(),
            function::RDMSR => (self.rdmsr(), None),
            function::WRMSR => (self.wrmsr(), None),
            function::MMIO => self.mmio(),
            function::GET_TD_VM_CALL_INFO => (self.call_info(), None),
            function::MAP_GPA => self.map_gpa(),
            function::GET_QUOTE => (self.get_quote(), None),
            function::REPORT_FATAL_ERROR => self.fatal_error(),
            function::SETUP_EVENT_NOTIFY_INTERRUPT => (self.setup_event_notify(), None),
            function::SERVICE => (self.service(), None),
            _ => (Branch::Unsupported, None),
        };
        self.vcpu.regs.r10 = branch.status() as u64;
        self.station.branches().count(branch);
        stop
    }
}
