//! Bringing the TDX module up: SYS.INIT once, LP.INIT on every logical processor, and what the module says of itself.
//!
//! Each function is one step; who calls it on which CPU is the host's business.

use core::fmt;

use arrayvec::ArrayVec;

use crate::{
    abi::{Gprs, Leaf, MAX_CMRS, Status},
    call::{Fault, SeamCall},
};

/// How often a call is repeated when the module lacked entropy or was busy with another CPU's call.
const ATTEMPTS: u32 = 10_000;

/// Why a step failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Error {
    /// The leaf.
    pub leaf: Leaf,
    /// What went wrong with it.
    pub cause: Cause,
}

/// What went wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The instruction failed, no module looked at it.
    Fault(Fault),
    /// The module's answer.
    Status(Status),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leaf = self.leaf.name();
        match self.cause {
            Cause::Fault(Fault::NotLoaded) => write!(
                f,
                "{leaf}: no TDX module is loaded (CF = 1); have the firmware load one"
            ),
            Cause::Fault(Fault::NotEnabled) => {
                write!(f, "{leaf}: SEAM is not enabled on this CPU (#GP)")
            }
            Cause::Fault(Fault::NotVmx) => {
                write!(f, "{leaf}: the CPU is not in VMX operation (#UD)")
            }
            Cause::Status(status) => write!(f, "{leaf}: {status:?}"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// TDH.SYS.INIT: initialises the module, once, on any CPU.
///
/// # Errors
/// [`Error`], as the module checks the platform (TDX Module ABI 1.5, TDH.SYS.INIT).
pub fn sys_init(call: &impl SeamCall) -> Result<(), Error> {
    invoke(call, Leaf::SysInit, Gprs::default()).map(drop)
}

/// TDH.SYS.LP.INIT: initialises the CPU that it is called on. Any number of CPUs may call it at once.
///
/// # Errors
/// [`Error`], as the module compares the CPU with the one that ran SYS.INIT (TDX Module ABI 1.5, TDH.SYS.LP.INIT).
pub fn lp_init(call: &impl SeamCall) -> Result<(), Error> {
    invoke(call, Leaf::SysLpInit, Gprs::default()).map(drop)
}

/// One convertible memory region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cmr {
    /// First byte.
    pub base: u64,
    /// Bytes.
    pub size: u64,
}

/// What the module says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the fields are the metadata fields of the same names"
)]
pub struct Info {
    pub vendor_id: u32,
    pub build_date: u32,
    pub build_num: u16,
    pub minor_version: u16,
    pub major_version: u16,
    pub update_version: u16,
    pub tdx_features0: u64,
    pub max_tdmrs: u16,
    pub max_reserved_per_tdmr: u16,
    pub pamt_4k_entry_size: u16,
    pub pamt_2m_entry_size: u16,
    pub pamt_1g_entry_size: u16,
    /// MAX_VCPUS_PER_TD; older modules do not have the field.
    pub max_vcpus_per_td: Option<u16>,
    /// The convertible memory regions, ascending.
    pub cmrs: ArrayVec<Cmr, MAX_CMRS>,
}

/// Reads what the module says of itself. The calling CPU has run LP.INIT.
///
/// # Errors
/// [`Error`] for a field that every module 1.5 has.
pub fn read_info(call: &impl SeamCall) -> Result<Info, Error> {
    let read = |field| sys_rd(call, field);
    let mut info = Info {
        vendor_id: read(field::VENDOR_ID)? as u32,
        build_date: read(field::BUILD_DATE)? as u32,
        build_num: read(field::BUILD_NUM)? as u16,
        minor_version: read(field::MINOR_VERSION)? as u16,
        major_version: read(field::MAJOR_VERSION)? as u16,
        update_version: read(field::UPDATE_VERSION)? as u16,
        tdx_features0: read(field::TDX_FEATURES0)?,
        max_tdmrs: read(field::MAX_TDMRS)? as u16,
        max_reserved_per_tdmr: read(field::MAX_RESERVED_PER_TDMR)? as u16,
        pamt_4k_entry_size: read(field::PAMT_4K_ENTRY_SIZE)? as u16,
        pamt_2m_entry_size: read(field::PAMT_2M_ENTRY_SIZE)? as u16,
        pamt_1g_entry_size: read(field::PAMT_1G_ENTRY_SIZE)? as u16,
        max_vcpus_per_td: read(field::MAX_VCPUS_PER_TD).ok().map(|v| v as u16),
        cmrs: ArrayVec::new(),
    };
    // Element i of a field is at its id plus i; unused entries have size 0.
    for i in 0..read(field::NUM_CMRS)?.min(MAX_CMRS as u64) {
        let size = read(field::CMR_SIZE + i)?;
        if size != 0 {
            let base = read(field::CMR_BASE + i)?;
            info.cmrs.push(Cmr { base, size });
        }
    }
    Ok(info)
}

/// TDH.SYS.RD: one metadata field of the module.
///
/// # Errors
/// [`Error`], METADATA_FIELD_ID_INCORRECT for a field that this module does not have.
pub fn sys_rd(call: &impl SeamCall, field: u64) -> Result<u64, Error> {
    let regs = Gprs {
        rdx: field,
        ..Gprs::default()
    };
    invoke(call, Leaf::SysRd, regs).map(|out| out.r8)
}

/// Global metadata fields, in their single-element form.
///
/// Source: TDX Module ABI 1.5, "Global scope metadata"; MAX_VCPUS_PER_TD from later modules.
mod field {
    pub const VENDOR_ID: u64 = 0x0800_0002_0000_0000;
    pub const BUILD_DATE: u64 = 0x8800_0002_0000_0001;
    pub const BUILD_NUM: u64 = 0x8800_0001_0000_0002;
    pub const MINOR_VERSION: u64 = 0x0800_0001_0000_0003;
    pub const MAJOR_VERSION: u64 = 0x0800_0001_0000_0004;
    pub const UPDATE_VERSION: u64 = 0x0800_0001_0000_0005;
    pub const TDX_FEATURES0: u64 = 0x0A00_0003_0000_0008;
    pub const NUM_CMRS: u64 = 0x9000_0001_0000_0000;
    pub const CMR_BASE: u64 = 0x9000_0003_0000_0080;
    pub const CMR_SIZE: u64 = 0x9000_0003_0000_0100;
    pub const MAX_TDMRS: u64 = 0x9100_0001_0000_0008;
    pub const MAX_RESERVED_PER_TDMR: u64 = 0x9100_0001_0000_0009;
    pub const PAMT_4K_ENTRY_SIZE: u64 = 0x9100_0001_0000_0010;
    pub const PAMT_2M_ENTRY_SIZE: u64 = 0x9100_0001_0000_0011;
    pub const PAMT_1G_ENTRY_SIZE: u64 = 0x9100_0001_0000_0012;
    pub const MAX_VCPUS_PER_TD: u64 = 0x9900_0001_0000_0008;
}

/// The names of the bits of TDX_FEATURES0 that are published.
///
/// Source: TDX Module ABI 1.5, TDX_FEATURES0.
pub const FEATURES0: &[(u32, &str)] = &[
    (0, "TD_MIGRATION"),
    (1, "TD_PRESERVING"),
    (2, "SERVICE_TD"),
    (3, "TDG_VP_RDWR"),
    (4, "RELAXED_MEM_MNG_CONCURRENCY"),
    (5, "CPUID_VIRT_GUEST_CTRL"),
    (16, "PENDING_EPT_VIOLATION_V2"),
    (17, "FMS_CONFIG"),
    (18, "NO_RBP_MOD"),
    (19, "L2_TLB_INVD_OPT"),
    (20, "TOPOLOGY_ENUM"),
    (21, "PARTITIONED_TD_MIGRATION"),
    (36, "DYNAMIC_PAMT"),
];

/// Calls a leaf, again while the module lacks entropy or is busy.
fn invoke(call: &impl SeamCall, leaf: Leaf, regs: Gprs) -> Result<Gprs, Error> {
    let mut attempts = 0;
    loop {
        let mut out = Gprs {
            rax: u64::from(leaf.number()),
            ..regs
        };
        call.seamcall(&mut out).map_err(|fault| Error {
            leaf,
            cause: Cause::Fault(fault),
        })?;
        let status = Status(out.rax);
        if !status.is_error() {
            return Ok(out);
        }
        attempts += 1;
        let again = matches!(
            status.code(),
            Status::RND_NO_ENTROPY | Status::SYS_BUSY | Status::OPERAND_BUSY
        );
        if !again || attempts == ATTEMPTS {
            return Err(Error {
                leaf,
                cause: Cause::Status(status),
            });
        }
        core::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;

    /// A module that answers each call with the next status.
    struct Script(Cell<&'static [u64]>);

    impl SeamCall for Script {
        fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault> {
            let Some((first, rest)) = self.0.get().split_first() else {
                return Err(Fault::NotLoaded);
            };
            self.0.set(rest);
            regs.r8 = regs.rdx;
            regs.rax = *first;
            Ok(())
        }
    }

    fn script(statuses: &'static [u64]) -> Script {
        Script(Cell::new(statuses))
    }

    #[test]
    fn lack_of_entropy_is_tried_again() {
        let call = script(&[0x8000_0203_0000_0000, 0x8000_0202_0000_0000, 0]);
        assert_eq!(sys_init(&call), Ok(()));
        assert!(call.0.get().is_empty());
    }

    #[test]
    fn any_other_error_ends_the_step_and_is_named() {
        let call = script(&[0xC000_0921_0000_010A]);
        let error = sys_init(&call).unwrap_err();
        assert_eq!(
            alloc::format!("{error}"),
            "TDH.SYS.INIT: INCORRECT_MSR_VALUE (0x10a)"
        );
    }

    #[test]
    fn a_missing_module_says_what_to_do() {
        let error = lp_init(&script(&[])).unwrap_err();
        assert_eq!(error.cause, Cause::Fault(Fault::NotLoaded));
        assert!(alloc::format!("{error}").contains("no TDX module is loaded"));
    }

    #[test]
    fn waiting_for_entropy_is_bounded() {
        struct Never;
        impl SeamCall for Never {
            fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault> {
                regs.rax = Status::RND_NO_ENTROPY.0;
                Ok(())
            }
        }
        assert_eq!(
            lp_init(&Never).unwrap_err().cause,
            Cause::Status(Status::RND_NO_ENTROPY)
        );
    }
}
