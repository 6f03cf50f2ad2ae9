//! ReportFatalError: the last message of a guest.

use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayString;
use mm::shared::Words;
use seam::abi::Gprs;
use seam::address::Gpa;

/// Capacity of a message in bytes: 64 bytes from registers, and as many more as fit on a line.
const MESSAGE: usize = 160;

/// A fatal error that a guest reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FatalError {
    /// R12 bits 62:0: the error code; 0 is a panic.
    pub code: u64,
    /// Guest-physical address of the rest of the message, if there is more.
    pub more: Option<Gpa>,
    /// The message: up to 64 characters from registers, and the beginning of the rest. A character that is not
    /// printable ASCII is replaced by a dot.
    pub message: ArrayString<MESSAGE>,
}

impl FatalError {
    /// Decodes the registers of the call.
    #[must_use]
    pub fn decode(regs: &Gprs) -> Self {
        const HAS_MORE: u64 = 1 << 63;
        let words = [
            regs.r14, regs.r15, regs.rbx, regs.rdi, regs.rsi, regs.r8, regs.r9, regs.rdx,
        ];
        let mut error = Self {
            code: regs.r12 & !HAS_MORE,
            more: (regs.r12 & HAS_MORE != 0).then_some(Gpa(regs.r13)),
            message: ArrayString::new(),
        };
        error.append(words.into_iter());
        error
    }

    /// Appends the rest of the message from a shared page, which the guest may change at any time.
    pub(crate) fn go_on(&mut self, words: &Words) {
        if !self.message.is_empty() {
            self.append(core::iter::once(u64::from(b' ')));
        }
        self.append(words.iter().map(|word| word.load(Relaxed)));
    }

    /// Appends characters up to the first zero byte, as long as there is room.
    fn append(&mut self, words: impl Iterator<Item = u64>) {
        let bytes = words.flat_map(u64::to_le_bytes);
        for byte in bytes.take_while(|byte| *byte != 0) {
            let shown = match byte {
                b' '..=b'~' => char::from(byte),
                _ => '.',
            };
            if self.message.try_push(shown).is_err() {
                break;
            }
        }
    }
}

impl fmt::Display for FatalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it reported fatal error {:#x}", self.code)?;
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        match self.more {
            Some(gpa) => write!(f, " (more at {gpa:?})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn the_message_is_in_the_registers_order_and_printable() {
        let word = |text: &[u8; 8]| u64::from_le_bytes(*text);
        let regs = Gprs {
            r12: 1 << 63 | 7,
            r13: 0x5000,
            r14: word(b"no root "),
            r15: word(b"\x1b[2J\xff!\0x"),
            ..Gprs::default()
        };
        let error = FatalError::decode(&regs);
        assert_eq!(
            std::format!("{error}"),
            "it reported fatal error 0x7: no root .[2J.! (more at GPA 0x5000)"
        );
    }

    #[test]
    fn all_eight_registers_may_be_full() {
        let full = u64::from_le_bytes(*b"aaaaaaaa");
        let regs = Gprs {
            rbx: full,
            rdx: full,
            rsi: full,
            rdi: full,
            r8: full,
            r9: full,
            r14: full,
            r15: full,
            ..Gprs::default()
        };
        assert_eq!(FatalError::decode(&regs).message.len(), 64);
        assert_eq!(FatalError::decode(&Gprs::default()).message.len(), 0);
    }
}
