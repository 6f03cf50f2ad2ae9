//! The outcomes of a guest's GHCI calls, the status of each, and counters.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use seam::abi::ghci;

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

macro_rules! branches {
    ($($name:ident = $status:ident, $text:literal;)*) => {
        /// An outcome of a guest call.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Branch {
            $(#[doc = $text] $name,)*
        }

        impl Branch {
            /// All branches.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            const STATUSES: &[Status] = &[$(Status::$status,)*];

            /// Returns a human-readable description.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

branches! {
    CpuidTopology = Success, "CPUID of the topology";
    CpuidHypervisor = Success, "CPUID of the hypervisor's leaves";
    CpuidEmpty = Success, "CPUID of a leaf with nothing in it";
    CpuidInvalid = InvalidOperand, "CPUID with a leaf beyond 32 bits";
    HltPending = Success, "HLT with an event pending";
    HltHalted = Success, "HLT";
    HltInvalid = InvalidOperand, "HLT with an operand that is no flag";
    IoInvalid = InvalidOperand, "I/O with an invalid size, direction or port";
    IoAbsentIn = Success, "IN from a port without a device";
    IoAbsentOut = Success, "OUT to a port without a device";
    IoIn = Success, "IN from a device";
    IoOut = Success, "OUT to a device";
    IoPower = Success, "OUT that ends the TD";
    IoTransfer = Success, "OUT that starts a transfer to shared memory";
    IoTransferRefused = Success, "OUT that starts a transfer that is not possible";
    Rdmsr = Success, "RDMSR";
    RdmsrUnknown = InvalidOperand, "RDMSR of an MSR that the guest does not have";
    Wrmsr = Success, "WRMSR";
    WrmsrTimer = Success, "WRMSR of the timer";
    WrmsrIpi = Success, "WRMSR that sends an interrupt";
    WrmsrInvalid = InvalidOperand, "WRMSR of an MSR or value that the guest may not write";
    MmioInvalid = InvalidOperand, "MMIO with an invalid size or direction, or across a page";
    MmioPrivate = InvalidOperand, "MMIO at an address that is not shared";
    MmioAbsentLoad = Success, "MMIO load where no device is";
    MmioAbsentStore = Success, "MMIO store where no device is";
    MmioLoad = Success, "MMIO load from a device";
    MmioStore = Success, "MMIO store to a device";
    InfoBase = Success, "GetTdVmCallInfo of the base calls";
    InfoOptional = Success, "GetTdVmCallInfo of the optional calls";
    InfoInvalid = InvalidOperand, "GetTdVmCallInfo of a leaf that is not defined";
    MapInvalid = InvalidOperand, "MapGPA of an invalid range";
    MapMisaligned = AlignError, "MapGPA of a range that is not aligned";
    MapShared = Success, "MapGPA to shared";
    MapPrivate = Success, "MapGPA to private";
    MapRetry = Retry, "MapGPA to be continued";
    MapFailed = InvalidOperand, "MapGPA for which there is no memory";
    QuoteInvalid = InvalidOperand, "GetQuote with an invalid buffer";
    QuoteMisaligned = AlignError, "GetQuote with a buffer that is not aligned";
    QuoteUnavailable = SubfunctionUnsupported, "GetQuote, for which there is no quoting service";
    QuoteTaken = Success, "GetQuote, handed to the quoting service";
    QuoteBusy = Retry, "GetQuote with too many requests in flight, or while memory is being converted";
    FatalError = Success, "ReportFatalError";
    ServiceInvalid = InvalidOperand, "Service with invalid buffers or vector";
    ServiceMisaligned = AlignError, "Service with buffers that are not aligned";
    ServiceUnsupported = Success, "Service, answered that there is none";
    ServiceBusy = Retry, "Service while the TD's memory is being converted";
    Unsupported = SubfunctionUnsupported, "an unknown sub-function";
    Vendor = Success, "a call of the host's own";
}

impl Branch {
    /// Returns the status for R10.
    #[must_use]
    pub const fn status(self) -> Status {
        Self::STATUSES[self as usize]
    }

    /// Returns whether this branch ends the TD. Such a branch is taken once at most.
    #[must_use]
    pub const fn ends(self) -> bool {
        matches!(self, Self::IoPower | Self::FatalError)
    }
}

/// Branch counters of one vCPU. One CPU writes them, any CPU reads them.
#[derive(Debug)]
pub struct Branches([AtomicU64; Branch::ALL.len()]);

impl Default for Branches {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; Branch::ALL.len()])
    }
}

impl Branches {
    /// Returns how often this branch was taken.
    #[must_use]
    pub fn get(&self, branch: Branch) -> u64 {
        self.0[branch as usize].load(Relaxed)
    }

    /// Counts a branch. Only the CPU that runs the vCPU calls this, so no count is lost.
    #[inline]
    pub(crate) fn count(&self, branch: Branch) {
        let cell = &self.0[branch as usize];
        cell.store(cell.load(Relaxed).wrapping_add(1), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_branch_has_its_own_place_and_status() {
        assert_eq!(Branch::STATUSES.len(), Branch::ALL.len());
        let branches = Branches::default();
        for (place, branch) in Branch::ALL.iter().enumerate() {
            assert_eq!(*branch as usize, place);
            branches.count(*branch);
            assert_eq!(branches.get(*branch), 1);
        }
        assert_eq!(Branch::MapRetry.status(), Status::Retry);
        assert_eq!(Branch::Unsupported.status(), Status::SubfunctionUnsupported);
    }
}
