//! TDCALL: calls to the TDX module.
#![expect(unsafe_code, reason = "TDCALL is an instruction without an intrinsic")]

use core::mem::MaybeUninit;

use seam::abi::{Attributes, Gprs, GuestLeaf, Measurement, Status, TdReport};

/// Executes TDCALL with these registers, and stores the registers that the module returns.
pub fn raw(regs: &mut Gprs) {
    // SAFETY: `regs` is a valid block of registers. The module accesses memory at addresses in them, and callers pass
    // only their own.
    unsafe { tdcall(regs) }
}

/// Calls a leaf of version 0. Returns RAX as a status, and the registers.
pub fn leaf(leaf: GuestLeaf, mut regs: Gprs) -> (Status, Gprs) {
    regs.rax = leaf.rax();
    raw(&mut regs);
    (Status(regs.rax), regs)
}

/// The result of TDG.VP.INFO.
#[derive(Clone, Copy, Debug)]
pub struct VpInfo {
    /// Width of guest-physical addresses in bits; the highest bit is the SHARED bit.
    pub gpa_width: u32,
    /// The TD's ATTRIBUTES.
    pub attributes: Attributes,
    /// Number of vCPUs of the TD.
    pub vcpus: u32,
    /// This vCPU's number.
    pub index: u32,
}

/// Executes TDG.VP.INFO, which can't fail.
pub fn vp_info() -> VpInfo {
    let (_, regs) = leaf(GuestLeaf::VpInfo, Gprs::default());
    VpInfo {
        gpa_width: regs.rcx as u32,
        attributes: Attributes::from_bits_retain(regs.rdx),
        vcpus: regs.r8 as u32,
        index: regs.r9 as u32,
    }
}

/// Details of an instruction or access that raised #VE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VeInfo {
    /// The exit reason.
    pub reason: u32,
    /// The exit qualification.
    pub qualification: u64,
    /// The guest-linear address of an access.
    pub gla: u64,
    /// The guest-physical address of an access.
    pub gpa: u64,
    /// The instruction's length in bytes.
    pub length: u32,
    /// The VM-exit instruction information.
    pub information: u32,
}

/// Executes TDG.VP.VEINFO.GET.
///
/// # Errors
/// NO_VALID_VE_INFO.
pub fn veinfo_get() -> Result<VeInfo, Status> {
    match leaf(GuestLeaf::VpVeinfoGet, Gprs::default()) {
        (Status::SUCCESS, regs) => Ok(VeInfo {
            reason: regs.rcx as u32,
            qualification: regs.rdx,
            gla: regs.r8,
            gpa: regs.r9,
            length: regs.r10 as u32,
            information: (regs.r10 >> 32) as u32,
        }),
        (status, _) => Err(status),
    }
}

/// Executes TDG.MEM.PAGE.ACCEPT for the page of `level` (0 for 4 KiB, 1 for 2 MiB) at `gpa`. Returns the status, which
/// may be success.
pub fn page_accept(gpa: u64, level: u64) -> Status {
    let regs = Gprs {
        rcx: gpa | level,
        ..Gprs::default()
    };
    leaf(GuestLeaf::MemPageAccept, regs).0
}

/// Executes TDG.MEM.PAGE.ATTR.RD. Returns the level at which the page with `gpa` is mapped, 0 for 4 KiB and 1 for 2
/// MiB.
///
/// # Errors
/// The status.
pub fn page_level(gpa: u64) -> Result<u64, Status> {
    let regs = Gprs {
        rcx: gpa,
        ..Gprs::default()
    };
    match leaf(GuestLeaf::MemPageAttrRd, regs) {
        (Status::SUCCESS, regs) => Ok(regs.rcx & 7),
        (status, _) => Err(status),
    }
}

/// Executes TDG.MR.REPORT with `data` in the report.
///
/// # Errors
/// The status.
pub fn mr_report(data: &[u8; 64]) -> Result<TdReport, Status> {
    #[repr(align(1024))]
    struct Report(MaybeUninit<TdReport>);
    #[repr(align(64))]
    struct Data([u8; 64]);

    let mut report = Report(MaybeUninit::uninit());
    let data = Data(*data);
    let regs = Gprs {
        // All memory is identity-mapped.
        rcx: report.0.as_mut_ptr() as u64,
        rdx: &raw const data.0 as u64,
        ..Gprs::default()
    };
    match leaf(GuestLeaf::MrReport, regs).0 {
        // SAFETY: the module wrote all of it, and every bit pattern is a report.
        Status::SUCCESS => Ok(unsafe { report.0.assume_init() }),
        status => Err(status),
    }
}

/// Executes TDG.MR.RTMR.EXTEND for register `index` with `digest`.
///
/// # Errors
/// The status.
pub fn rtmr_extend(index: u8, digest: &Measurement) -> Result<(), Status> {
    #[repr(align(64))]
    struct Digest(Measurement);

    let digest = Digest(*digest);
    let regs = Gprs {
        // All memory is identity-mapped.
        rcx: &raw const digest.0 as u64,
        rdx: index.into(),
        ..Gprs::default()
    };
    match leaf(GuestLeaf::MrRtmrExtend, regs).0 {
        Status::SUCCESS => Ok(()),
        status => Err(status),
    }
}

/// Executes TDG.VM.RD for a field of the TD.
///
/// # Errors
/// The status.
pub fn vm_rd(field: u64) -> Result<u64, Status> {
    let regs = Gprs {
        rdx: field,
        ..Gprs::default()
    };
    match leaf(GuestLeaf::VmRd, regs) {
        (Status::SUCCESS, regs) => Ok(regs.r8),
        (status, _) => Err(status),
    }
}

/// Executes TDCALL with the registers of `regs`, and writes all of them back.
#[unsafe(naked)]
unsafe extern "sysv64" fn tdcall(regs: *mut Gprs) {
    seam::naked_with_gprs!(
        execute: [".byte 0x66, 0x0F, 0x01, 0xCC"],
        end: [],
        tail: [],
    )
}
