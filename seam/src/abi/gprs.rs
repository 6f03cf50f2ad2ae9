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

impl Gprs {
    /// The registers by their numbers in instructions; RSP, which is none of these, is 0.
    #[must_use]
    #[inline]
    pub const fn by_number(&self) -> [u64; 16] {
        [
            self.rax, self.rcx, self.rdx, self.rbx, 0, self.rbp, self.rsi, self.rdi, self.r8,
            self.r9, self.r10, self.r11, self.r12, self.r13, self.r14, self.r15,
        ]
    }

    /// The registers from a list by their numbers, whose RSP is left out.
    #[must_use]
    #[inline]
    pub const fn from_numbers(list: &[u64; 16]) -> Self {
        let [
            rax,
            rcx,
            rdx,
            rbx,
            _,
            rbp,
            rsi,
            rdi,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
        ] = *list;
        Self {
            rax,
            rcx,
            rdx,
            rbx,
            rbp,
            rsi,
            rdi,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
        }
    }
}

const _: () = assert!(size_of::<Gprs>() == 15 * 8);
