//! Status details: bits 31:0, decoded as the code defines them, and the roles of the registers that they name.

use core::fmt;

use crate::abi::{Leaf, Operand, PageSize, Status};

/// The detail of a status, decoded.
///
/// Source: TDX Module ABI 1.5, "Function completion status codes", details level 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// No detail.
    None,
    /// An operand of the leaf, or a resource of the module.
    Operand(Operand),
    /// An MSR address.
    Msr(u32),
    /// A CPUID leaf.
    CpuidLeaf(u32),
    /// Index of a TDMR in the list given to TDH.SYS.CONFIG, from 0.
    Tdmr(u8),
    /// A PAMT area of a TDMR.
    Pamt {
        /// Index of the TDMR in the list.
        tdmr: u8,
        /// Page size that the area describes; `None` for an undefined code.
        size: Option<PageSize>,
    },
    /// A PAMT area that overlaps a TDMR.
    PamtOverlap {
        /// Index of the TDMR that owns the PAMT area.
        tdmr: u8,
        /// Page size that the area describes; `None` for an undefined code.
        size: Option<PageSize>,
        /// Index of the other TDMR.
        other: u8,
    },
    /// A reserved area of a TDMR.
    Reserved {
        /// Index of the TDMR in the list.
        tdmr: u8,
        /// Index of the area in the TDMR.
        area: u8,
    },
    /// An SMRR: 0 is SMRR, 1 is SMRR2.
    Smrr(u8),
    /// An SMRR that overlaps a CMR.
    SmrrCmr {
        /// 0 is SMRR, 1 is SMRR2.
        smrr: u8,
        /// Index of the CMR in the list.
        cmr: u8,
    },
    /// A nested VM, and the level of an entry of its S-EPT.
    L2 {
        /// Number of the VM, from 1.
        vm: u16,
        /// Level of the entry.
        level: u16,
    },
    /// A package number.
    Package(u32),
    /// The maximum number of HKIDs that the module supports.
    MaxHkids(u32),
    /// The level of an S-EPT entry.
    Level(u32),
    /// The VMX exit reason of a TD exit.
    ExitReason(u32),
    /// A number without a known meaning.
    Raw(u32),
}

impl Detail {
    /// Decodes the detail of `status`.
    pub fn of(status: Status) -> Self {
        let detail = status.detail();
        let [byte0, byte1, byte2, _] = detail.to_le_bytes();
        let size = PageSize::from_level(byte1);
        match status.code() {
            Status::INCONSISTENT_MSR | Status::INCORRECT_MSR_VALUE => Self::Msr(detail),
            Status::CPUID_LEAF_NOT_SUPPORTED | Status::INCONSISTENT_CPUID_FIELD => {
                Self::CpuidLeaf(detail)
            }
            Status::INVALID_TDMR | Status::NON_ORDERED_TDMR | Status::TDMR_OUTSIDE_CMRS => {
                Self::Tdmr(byte0)
            }
            Status::INVALID_PAMT | Status::PAMT_OUTSIDE_CMRS => Self::Pamt { tdmr: byte0, size },
            Status::PAMT_OVERLAP => Self::PamtOverlap {
                tdmr: byte0,
                size,
                other: byte2,
            },
            Status::INVALID_RESERVED_IN_TDMR | Status::NON_ORDERED_RESERVED_IN_TDMR => {
                Self::Reserved {
                    tdmr: byte0,
                    area: byte1,
                }
            }
            Status::SMRR_NOT_LOCKED | Status::INVALID_SMRR_CONFIGURATION => Self::Smrr(byte0),
            Status::SMRR_OVERLAPS_CMR => Self::SmrrCmr {
                smrr: byte0,
                cmr: byte1,
            },
            Status::L2_SEPT_WALK_FAILED | Status::L2_SEPT_ENTRY_NOT_FREE => Self::L2 {
                vm: (detail >> 16) as u16,
                level: detail as u16,
            },
            Status::INVALID_PKG_ID => Self::Package(detail),
            Status::NUM_ACTIVATED_HKIDS_NOT_SUPPORTED => Self::MaxHkids(detail),
            Status::PAGE_ALREADY_ACCEPTED | Status::PAGE_SIZE_MISMATCH => Self::Level(detail),
            // RAX is operand 0. Only a refused leaf number refers to it.
            Status::OPERAND_INVALID => Self::operand(detail),
            code if is_td_exit(code) => Self::ExitReason(detail),
            _ if detail == 0 => Self::None,
            _ => Self::operand(detail),
        }
    }

    fn operand(id: u32) -> Self {
        match Operand(id).name() {
            Some(_) => Self::Operand(Operand(id)),
            None => Self::Raw(id),
        }
    }

    /// Returns the role of the operand in `leaf`, if the detail is a register that the leaf takes.
    pub fn role(self, leaf: Leaf) -> Option<&'static str> {
        match self {
            Self::Operand(operand) => role(leaf, operand),
            _ => None,
        }
    }
}

/// Returns whether TDH.VP.ENTER reports a TD exit with this code and the exit reason as its detail. SUCCESS is another
/// such code, for that leaf alone.
fn is_td_exit(code: Status) -> bool {
    matches!(
        code,
        Status::NON_RECOVERABLE_VCPU
            | Status::NON_RECOVERABLE_TD
            | Status::NON_RECOVERABLE_TD_NON_ACCESSIBLE
            | Status::NON_RECOVERABLE_TD_WRONG_APIC_MODE
            | Status::NON_RECOVERABLE_TD_CORRUPTED_MD
            | Status::CROSS_TD_FAULT
            | Status::CROSS_TD_TRAP
            | Status::HOST_PRIORITY_BUSY_TIMEOUT
            | Status::L2_EXIT_HOST_ROUTED_ASYNC
            | Status::L2_EXIT_HOST_ROUTED_TDVMCALL
            | Status::L2_EXIT_PENDING_INTERRUPT
            | Status::TD_EXIT_BEFORE_L2_ENTRY
            | Status::TD_EXIT_ON_L2_VM_EXIT
            | Status::TD_EXIT_ON_L2_TO_L1
    )
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::None => Ok(()),
            Self::Operand(operand) => write!(f, "{operand:?}"),
            Self::Msr(msr) => match msr_name(msr) {
                Some((name, what)) => write!(f, "MSR {msr:#x}, {name}: {what}"),
                None => write!(f, "MSR {msr:#x}"),
            },
            Self::CpuidLeaf(leaf) => write!(f, "CPUID leaf {leaf:#x}"),
            Self::Tdmr(tdmr) => write!(f, "TDMR {tdmr}"),
            Self::Pamt { tdmr, size } => write!(f, "{} PAMT of TDMR {tdmr}", name(size)),
            Self::PamtOverlap { tdmr, size, other } => {
                write!(f, "{} PAMT of TDMR {tdmr} and TDMR {other}", name(size))
            }
            Self::Reserved { tdmr, area } => write!(f, "reserved area {area} of TDMR {tdmr}"),
            Self::Smrr(smrr) => f.write_str(smrr_name(smrr)),
            Self::SmrrCmr { smrr, cmr } => write!(f, "{} and CMR {cmr}", smrr_name(smrr)),
            Self::L2 { vm, level } => write!(f, "level {level} of nested VM {vm}"),
            Self::Package(package) => write!(f, "package {package}"),
            Self::MaxHkids(max) => write!(f, "at most {max}"),
            Self::Level(level) => write!(f, "level {level}"),
            Self::ExitReason(reason) => write!(f, "exit reason {reason:#x}"),
            Self::Raw(raw) => write!(f, "detail {raw:#x}"),
        }
    }
}

fn name(size: Option<PageSize>) -> &'static str {
    match size {
        Some(PageSize::Size4K) => "4 KiB",
        Some(PageSize::Size2M) => "2 MiB",
        Some(PageSize::Size1G) => "1 GiB",
        None => "unknown",
    }
}

fn smrr_name(smrr: u8) -> &'static str {
    if smrr == 0 { "SMRR" } else { "SMRR2" }
}

/// Returns whether a leaf takes a guest address in RCX and the TDR in RDX. Such a leaf reports the S-EPT entry in the
/// same two registers.
pub(crate) fn takes_gpa(leaf: Leaf) -> bool {
    use Leaf as L;
    matches!(
        leaf,
        L::MemPageAdd
            | L::MemPageAug
            | L::MemPageRemove
            | L::MemPageRelocate
            | L::MemPageDemote
            | L::MemPagePromote
            | L::MemSeptAdd
            | L::MemSeptRd
            | L::MemSeptRemove
            | L::MemRangeBlock
            | L::MemRangeUnblock
            | L::MemRd
            | L::MemWr
            | L::MrExtend
    )
}

/// Returns the role of a register operand of a leaf.
///
/// Source: TDX Module ABI 1.5, the input operands of each function.
fn role(leaf: Leaf, operand: Operand) -> Option<&'static str> {
    use Leaf as L;
    use Operand as O;
    Some(match (leaf, operand) {
        (_, O::RAX) => "leaf number and version",
        (L::MngAddcx | L::VpAddcx, O::RCX) => "the page to add",
        (L::VpAddcx, O::RDX) => "the TDVPR",
        (L::MngCreate, O::RCX) => "the page for the TDR",
        (L::MngCreate, O::RDX) => "the HKID",
        (L::VpCreate, O::RCX) => "the page for the TDVPR",
        (L::MngInit, O::RDX) => "TD_PARAMS, its address or a reserved field",
        (L::VpEnter | L::VpInit | L::VpFlush | L::VpRd | L::VpWr, O::RCX) => "the TDVPR",
        (L::VpInit, O::R8) => "the x2APIC id",
        (L::MngRd | L::MngWr | L::VpRd | L::VpWr | L::SysRd, O::RDX) => "the field id",
        (L::MngWr | L::VpWr, O::R8) => "the value",
        (L::MngWr | L::VpWr, O::R9) => "the write mask",
        (
            L::MngRd
            | L::MngWr
            | L::MngKeyConfig
            | L::MngKeyFreeid
            | L::MngVpflushdone
            | L::MngInit
            | L::MrFinalize
            | L::MemTrack,
            O::RCX,
        ) => "the TDR",
        (_, O::RCX) if takes_gpa(leaf) => "the guest address, its level, or the S-EPT entry there",
        (L::MngAddcx | L::VpCreate, O::RDX) => "the TDR",
        (_, O::RDX) if takes_gpa(leaf) => "the TDR",
        (L::MemPageAdd | L::MemPageAug | L::MemPageRelocate, O::R8) => "the page to map",
        (L::MemPageAdd, O::R9) => "the source page",
        (L::MemSeptAdd | L::MemPageDemote, O::R8) => "the page for the S-EPT",
        (L::PhymemPageRdmd | L::PhymemPageReclaim | L::PhymemPageWbinvd, O::RCX) => "the page",
        (L::MemPageDemote, O::R12 | O::R13) => "a page of the range's PAMT pair",
        (L::PhymemPamtAdd | L::PhymemPamtRemove, O::RCX) => "the range of 2 MiB",
        (L::PhymemPamtAdd, O::RDX | O::R8) => "a page of the range's PAMT pair",
        (L::PhymemCacheWb, O::RCX) => "start or resume",
        (L::SysInfo, O::RCX) => "the TDSYSINFO_STRUCT buffer",
        (L::SysInfo, O::RDX) => "the buffer's size",
        (L::SysInfo, O::R8) => "the CMR_INFO array",
        (L::SysInfo, O::R9) => "the array's length",
        (L::SysInit, O::RCX) => "the attributes",
        (L::SysInit, O::R8) => "the place or the notification of fatal errors",
        (L::SysConfig, O::RCX) => "the list of TDMR_INFO addresses, or one of them",
        (L::SysConfig, O::RDX) => "the number of TDMRs",
        (L::SysConfig, O::R8) => "the global HKID, or the flag for a dynamic PAMT",
        (L::SysTdmrInit, O::RCX) => "the TDMR",
        (L::SysRdall, O::RDX) => "the metadata list's page",
        (L::SysShutdown, O::RCX) => "the handoff version",
        _ => return None,
    })
}

/// Returns the name of an MSR that the module checks, and the firmware setting behind it.
fn msr_name(msr: u32) -> Option<(&'static str, &'static str)> {
    Some(match msr {
        0x3b => (
            "IA32_TSC_ADJUST",
            "the firmware left the time stamp counters of the processors with different offsets",
        ),
        0x87 => ("IA32_MKTME_KEYID_PARTITIONING", "how many KeyIDs are TDX's"),
        0xbc => ("IA32_MISC_PACKAGE_CTLS", "energy filtering has to be on"),
        0xbd => (
            "IA32_XAPIC_DISABLE_STATUS",
            "x2APIC has to be enabled, and locked so",
        ),
        0xcf => ("IA32_CORE_CAPABILITIES", "it follows from the microcode"),
        0x10a => (
            "IA32_ARCH_CAPABILITIES",
            "it follows from the microcode, which has to be recent",
        ),
        0x1a0 => (
            "IA32_MISC_ENABLE",
            "CPUID must not be limited, and performance monitoring has to be available",
        ),
        0x345 => ("IA32_PERF_CAPABILITIES", "it follows from the processor"),
        0x480..=0x492 => (
            "a VMX capability",
            "it follows from the processor and its microcode",
        ),
        0x981 => ("IA32_TME_CAPABILITY", "it follows from the processor"),
        0x982 => (
            "IA32_TME_ACTIVATE",
            "multi-key total memory encryption (TME-MT) has to be enabled",
        ),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    fn text(status: Status) -> std::string::String {
        Detail::of(status).to_string()
    }

    #[test]
    fn a_register_is_named_with_what_it_is_to_the_leaf() {
        let of = |status: Status, leaf| Detail::of(status).role(leaf);
        let page = Status::OPERAND_BUSY.with(Operand::R8);
        assert_eq!(of(page, Leaf::MemPageAug), Some("the page to map"));
        assert_eq!(of(page, Leaf::MemTrack), None);
        let leaf = Status::OPERAND_INVALID.with(Operand::RAX);
        assert_eq!(text(leaf), "RAX");
        assert_eq!(of(leaf, Leaf::MemTrack), Some("leaf number and version"));
        assert_eq!(
            text(Status::OPERAND_BUSY.with(Operand::SEPT_TREE)),
            "SEPT_TREE"
        );
    }

    #[test]
    fn sys_config_says_which_part_of_which_tdmr() {
        let of = |code: Status, detail| text(code.with_detail(detail));
        assert_eq!(of(Status::INVALID_TDMR, 0), "TDMR 0");
        assert_eq!(of(Status::INVALID_PAMT, 0x0103), "2 MiB PAMT of TDMR 3");
        assert_eq!(
            of(Status::PAMT_OVERLAP, 0x05_0001),
            "4 KiB PAMT of TDMR 1 and TDMR 5"
        );
        assert_eq!(
            of(Status::NON_ORDERED_RESERVED_IN_TDMR, 0x0f02),
            "reserved area 15 of TDMR 2"
        );
    }

    #[test]
    fn platform_errors_name_the_register_at_fault() {
        let msr = Status::INCORRECT_MSR_VALUE.with_detail(0x982);
        assert!(text(msr).starts_with("MSR 0x982, IA32_TME_ACTIVATE: "));
        assert_eq!(
            text(Status::INCONSISTENT_MSR.with_detail(0x1234)),
            "MSR 0x1234"
        );
        let overlap = Status::SMRR_OVERLAPS_CMR.with_detail(0x0401);
        assert_eq!(text(overlap), "SMRR2 and CMR 4");
        assert_eq!(text(Status::INVALID_PKG_ID.with_detail(9)), "package 9");
        let leaf = Status::CPUID_LEAF_NOT_SUPPORTED.with_detail(0x15);
        assert_eq!(text(leaf), "CPUID leaf 0x15");
        assert_eq!(text(Status::NO_VCPUS), "");
    }

    #[test]
    fn an_exit_reason_is_no_operand() {
        let triple_fault = Status::NON_RECOVERABLE_VCPU.with_detail(2);
        assert_eq!(Detail::of(triple_fault), Detail::ExitReason(2));
    }
}
