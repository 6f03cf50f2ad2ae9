//! The guest-side interface: TDCALL leafs, and the requests that a TD makes to the host by TDG.VP.VMCALL.

/// A guest-side leaf of the TDX module (RAX bits 15:0 of TDCALL).
///
/// Source: TDX Module ABI 1.5, "Guest-side (TDCALL) interface functions".
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(
    missing_docs,
    reason = "the names are those of the specification, without `TDG.`"
)]
pub enum GuestLeaf {
    VpVmcall = 0,
    VpInfo = 1,
    MrRtmrExtend = 2,
    VpVeinfoGet = 3,
    MrReport = 4,
    VpCpuidveSet = 5,
    MemPageAccept = 6,
    VmRd = 7,
    VmWr = 8,
    VpRd = 9,
    VpWr = 10,
    SysRd = 11,
    SysRdall = 12,
    ServtdRd = 18,
    ServtdWr = 20,
    MrVerifyreport = 22,
    MemPageAttrRd = 23,
    MemPageAttrWr = 24,
    VpEnter = 25,
    VpInvept = 26,
    VpInvvpid = 27,
}

impl GuestLeaf {
    /// Returns RAX for version 0 of the leaf.
    pub const fn rax(self) -> u64 {
        self as u64
    }

    /// Returns RAX for this version of the leaf.
    pub const fn rax_version(self, version: u8) -> u64 {
        self as u64 | (version as u64) << 16
    }
}

/// The standard requests of a TD to its host. R10 is zero and R11 the number of the request.
///
/// Source: Guest-Host-Communication Interface for Intel TDX 1.5, section 3.
pub mod ghci {
    macro_rules! requests {
        ($($name:ident $constant:ident = $number:literal, $text:literal;)*) => {
            /// The numbers of the standard requests (R11).
            pub mod number {
                $(#[doc = $text] pub const $constant: u64 = $number;)*
            }

            /// A standard request (R11).
            #[repr(u64)]
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
            pub enum Request {
                $(#[doc = $text] $name = number::$constant,)*
            }

            impl Request {
                /// All requests.
                pub const ALL: &[Self] = &[$(Self::$name,)*];

                /// Returns the request with this number.
                #[must_use]
                #[inline]
                pub const fn from_number(number: u64) -> Option<Self> {
                    match number {
                        $(number::$constant => Some(Self::$name),)*
                        _ => None,
                    }
                }
            }
        };
    }

    requests! {
        Cpuid CPUID = 10, "Instruction.CPUID.";
        Hlt HLT = 12, "Instruction.HLT.";
        Io IO = 30, "Instruction.IO.";
        Rdmsr RDMSR = 31, "Instruction.RDMSR.";
        Wrmsr WRMSR = 32, "Instruction.WRMSR.";
        Mmio MMIO = 48, "#VE.RequestMMIO.";
        Pconfig PCONFIG = 65, "Instruction.PCONFIG.";
        GetTdVmCallInfo GET_TD_VM_CALL_INFO = 0x10000, "GetTdVmCallInfo.";
        MapGpa MAP_GPA = 0x10001, "MapGPA.";
        GetQuote GET_QUOTE = 0x10002, "GetQuote.";
        ReportFatalError REPORT_FATAL_ERROR = 0x10003, "ReportFatalError.";
        SetupEventNotifyInterrupt SETUP_EVENT_NOTIFY_INTERRUPT = 0x10004, "SetupEventNotifyInterrupt.";
        Service SERVICE = 0x10005, "Service.";
    }

    /// Status in R10: success.
    pub const SUCCESS: u64 = 0;
    /// Status in R10: incomplete. The guest repeats the call for the rest.
    pub const RETRY: u64 = 1;
    /// Status in R10: invalid operand.
    pub const INVALID_OPERAND: u64 = 1 << 63;
    /// Status in R10: an address or size is not aligned.
    pub const ALIGN_ERROR: u64 = 1 << 63 | 2;
    /// Status in R10: the host does not support the request.
    pub const SUBFUNC_UNSUPPORTED: u64 = 1 << 63 | 3;
}

#[cfg(test)]
mod tests {
    use super::ghci::Request;
    use super::*;

    #[test]
    fn requests_and_numbers_map_both_ways() {
        for request in Request::ALL {
            assert_eq!(Request::from_number(*request as u64), Some(*request));
        }
        assert_eq!(Request::from_number(11), None);
    }

    #[test]
    fn the_version_is_above_the_leaf() {
        assert_eq!(GuestLeaf::MemPageAccept.rax(), 6);
        assert_eq!(GuestLeaf::VmRd.rax_version(1), 0x1_0007);
    }
}
