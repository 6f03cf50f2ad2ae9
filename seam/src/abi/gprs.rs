//! The general-purpose registers of one SEAMCALL or TDCALL.

/// The register operands of a SEAMCALL or TDCALL, in and out. RSP never takes part.
///
/// The layout is fixed because assembly on both sides loads and stores it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the fields are the registers of the same names"
)]
pub struct Gprs {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}

const _: () = assert!(size_of::<Gprs>() == 15 * 8);
