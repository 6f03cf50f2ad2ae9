//! The Guest-Hypervisor Communication Interface: the calls that a guest makes to the host by TDG.VP.VMCALL.
//!
//! R10 is zero for these calls, R11 the sub-function, and R12 to R15 (and more for a fatal error) are the operands. The
//! status is returned in R10. Every operand is checked before use. Each outcome of a call is a [`Branch`], which is
//! counted.
//!
//! Source: Intel TDX Guest-Hypervisor Communication Interface 1.5, chapter 3; Linux arch/x86/kvm/vmx/tdx.c and
//! arch/x86/coco/tdx/tdx.c for the behaviour of both sides.

mod branch;
mod fatal;
mod instruction;
mod map_gpa;
mod services;

use seam::abi::ghci;

use crate::host::Host;
use crate::run::{Session, Stop};

pub use branch::{Branch, Branches};
pub use fatal::FatalError;

/// Sub-functions, R11.
mod function {
    use seam::abi::ghci::Request;

    pub const CPUID: u64 = Request::Cpuid as u64;
    pub const HLT: u64 = Request::Hlt as u64;
    pub const IO: u64 = Request::Io as u64;
    pub const RDMSR: u64 = Request::Rdmsr as u64;
    pub const WRMSR: u64 = Request::Wrmsr as u64;
    pub const MMIO: u64 = Request::Mmio as u64;
    pub const GET_TD_VM_CALL_INFO: u64 = Request::GetTdVmCallInfo as u64;
    pub const MAP_GPA: u64 = Request::MapGpa as u64;
    pub const GET_QUOTE: u64 = Request::GetQuote as u64;
    pub const REPORT_FATAL_ERROR: u64 = Request::ReportFatalError as u64;
    pub const SERVICE: u64 = Request::Service as u64;
}

/// Number of tries at a contended resource before the guest is told to retry.
const TRIES: u32 = 16;

/// Status of a call, returned in R10.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Status {
    /// TDG.VP.VMCALL_SUCCESS.
    Success = ghci::SUCCESS,
    /// TDG.VP.VMCALL_RETRY: continue from the address in R11.
    Retry = ghci::RETRY,
    /// TDG.VP.VMCALL_INVALID_OPERAND.
    InvalidOperand = ghci::INVALID_OPERAND,
    /// TDG.VP.VMCALL_ALIGN_ERROR.
    AlignError = ghci::ALIGN_ERROR,
    /// TDG.VP.VMCALL_SUBFUNC_UNSUPPORTED.
    SubfunctionUnsupported = ghci::SUBFUNC_UNSUPPORTED,
}

impl<H: Host> Session<'_, H> {
    /// Serves a TDVMCALL. Returns the reason if the vCPU must not be entered again at once.
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
            function::SERVICE => (self.service(), None),
            _ => (Branch::Unsupported, None),
        };
        self.vcpu.regs.r10 = branch.status() as u64;
        self.station.branches().count(branch);
        stop
    }
}
