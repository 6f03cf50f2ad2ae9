//! The general-purpose registers of one SEAMCALL or TDCALL.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The register operands of a SEAMCALL or TDCALL, input and output. RSP is never an operand.
///
/// The layout is fixed because assembly on both sides loads and stores it.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
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
    /// Returns the register with this number in instruction encodings (0 to 15). The number must not be RSP's, for
    /// which RBP is returned.
    #[must_use]
    #[inline(always)]
    pub fn numbered(&self, number: usize) -> u64 {
        let list: &[u64; 15] = zerocopy::transmute_ref!(self);
        list[Self::index(number)]
    }

    /// Sets the register with this number in instruction encodings; see [`Self::numbered`].
    #[inline(always)]
    pub fn set_numbered(&mut self, number: usize, value: u64) {
        let list: &mut [u64; 15] = zerocopy::transmute_mut!(self);
        list[Self::index(number)] = value;
    }

    const fn index(number: usize) -> usize {
        let number = number % 16;
        number - (number > 4) as usize
    }

    /// Returns all registers in the order of their numbers in instruction encodings. The entry of RSP is 0.
    #[must_use]
    #[inline]
    pub const fn by_number(&self) -> [u64; 16] {
        [
            self.rax, self.rcx, self.rdx, self.rbx, 0, self.rbp, self.rsi, self.rdi, self.r8,
            self.r9, self.r10, self.r11, self.r12, self.r13, self.r14, self.r15,
        ]
    }

    /// Creates the registers from a list in the order of their numbers. The entry of RSP is ignored.
    #[must_use]
    #[inline]
    pub const fn from_numbers(list: &[u64; 16]) -> Self {
        Self {
            rax: list[0],
            rcx: list[1],
            rdx: list[2],
            rbx: list[3],
            rbp: list[5],
            rsi: list[6],
            rdi: list[7],
            r8: list[8],
            r9: list[9],
            r10: list[10],
            r11: list[11],
            r12: list[12],
            r13: list[13],
            r14: list[14],
            r15: list[15],
        }
    }
}

const _: () = assert!(size_of::<Gprs>() == 15 * 8);

/// The body of a naked `extern "sysv64" fn(*mut Gprs)`: loads the registers, executes `execute`, stores the registers,
/// executes `end`, and returns the value in RAX. `end` may change RAX alone. `tail` is placed behind the function.
#[doc(hidden)]
#[macro_export]
macro_rules! naked_with_gprs {
    (
        execute: [$($execute:expr),* $(,)?],
        end: [$($end:expr),* $(,)?],
        tail: [$($tail:expr),* $(,)?],
        $($operands:tt)*
    ) => {
        core::arch::naked_asm!(
            "push rbx",
            "push rbp",
            "push r12",
            "push r13",
            "push r14",
            "push r15",
            "push rdi",
            "mov rax, [rdi + 8 * 0]",
            "mov rcx, [rdi + 8 * 1]",
            "mov rdx, [rdi + 8 * 2]",
            "mov rbx, [rdi + 8 * 3]",
            "mov rbp, [rdi + 8 * 4]",
            "mov rsi, [rdi + 8 * 5]",
            "mov r8, [rdi + 8 * 7]",
            "mov r9, [rdi + 8 * 8]",
            "mov r10, [rdi + 8 * 9]",
            "mov r11, [rdi + 8 * 10]",
            "mov r12, [rdi + 8 * 11]",
            "mov r13, [rdi + 8 * 12]",
            "mov r14, [rdi + 8 * 13]",
            "mov r15, [rdi + 8 * 14]",
            "mov rdi, [rdi + 8 * 6]",
            $($execute,)*
            "push rdi",
            "mov rdi, [rsp + 8]",
            "mov [rdi + 8 * 0], rax",
            "mov [rdi + 8 * 1], rcx",
            "mov [rdi + 8 * 2], rdx",
            "mov [rdi + 8 * 3], rbx",
            "mov [rdi + 8 * 4], rbp",
            "mov [rdi + 8 * 5], rsi",
            "mov [rdi + 8 * 7], r8",
            "mov [rdi + 8 * 8], r9",
            "mov [rdi + 8 * 9], r10",
            "mov [rdi + 8 * 10], r11",
            "mov [rdi + 8 * 11], r12",
            "mov [rdi + 8 * 12], r13",
            "mov [rdi + 8 * 13], r14",
            "mov [rdi + 8 * 14], r15",
            "pop rax",
            "mov [rdi + 8 * 6], rax",
            $($end,)*
            "pop rdi",
            "pop r15",
            "pop r14",
            "pop r13",
            "pop r12",
            "pop rbp",
            "pop rbx",
            "ret",
            $($tail,)*
            $($operands)*
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_ordered_by_number() {
        const RSP: usize = 4;
        let mut list = core::array::from_fn(|number| number as u64 + 100);
        let mut regs = Gprs::from_numbers(&list);
        list[RSP] = 0;
        assert_eq!(regs.by_number(), list);
        for number in (0..16).filter(|&number| number != RSP) {
            assert_eq!(regs.numbered(number), list[number]);
            regs.set_numbered(number, 7);
            list[number] = 7;
            assert_eq!(regs.by_number(), list);
        }
    }
}
